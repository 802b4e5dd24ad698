"""What fits, by XLA's own TPU compiler: it runs here without a TPU."""

import dataclasses

import pytest

from aha_lib import plan
from aha_lib.presets import MODELS

pytest.importorskip("libtpu", reason="libtpu, of the extra tpu, is the TPU compiler")


@pytest.mark.parametrize("chip", ["v3-8", "v5e-8"])
def test_gemma_270m_fits_a_free_tpu(chip):
    answer = plan.plan("gemma3-270m", chip)
    print(answer)
    assert answer.fits
    apply = next(p for p in answer.programs if p.name == "update: apply")
    # Parameters, Adam's two moments and the gradient: float32, over eight cores.
    sharded = 4 * 4 * MODELS["gemma3-270m"].parameters / 8 / plan.GiB
    assert apply.total == pytest.approx(sharded, rel=0.2)


def test_what_does_not_fit_is_a_sentence_and_status_1(monkeypatch, capsys):
    small = dataclasses.replace(plan.CHIPS["v3-8"], hbm=1.0)
    monkeypatch.setitem(plan.CHIPS, "v3-8", small)
    assert plan.main(["--model", "gemma3-270m", "--chip", "v3-8"]) == 1
    assert "lower micro_batch" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model", "llama", "--chip", "v3-8"],
        ["--model", "tiny", "--chip", "abacus"],
        ["--model", "tiny", "--chip", "v3-8", "--set", "group=1"],
    ],
)
def test_bad_input_is_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        plan.main(arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err
