"""What fits, by XLA's own TPU compiler: it runs here without a TPU."""

import dataclasses
import logging
import math
import re
import warnings
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from aha_lib import devices
from aha_lib.model import gemma
from aha_lib.presets import MODELS, SETTINGS
from aha_lib.tpu import plan

pytest.importorskip("libtpu", reason="libtpu, of the extra tpu, is the TPU compiler")

SMALL = dict(prompts=8, group=2, completion_len=64)


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["v3-8", "v5e-8"])
def test_gemma_270m_fits_a_free_tpu(chip):
    answer = plan.plan("gemma3-270m", chip)
    print(answer)
    assert answer.fits
    apply = next(p for p in answer.programs if p.name == "update: apply")
    # Parameters, Adam's two moments and the gradient: float32, over eight cores.
    sharded = 4 * 4 * MODELS["gemma3-270m"].parameters / 8 / plan.GiB
    assert apply.total == pytest.approx(sharded, rel=0.2)


@pytest.mark.slow
def test_weights_that_the_sampler_shares_are_counted_once():
    kept = {}
    for gather in (True, False):  # whole layers are a copy; sharded ones are the state's own
        answer = plan.plan("tiny", "v3-8", **SMALL, lora=2, gather=gather)
        kept[gather] = next(p.resident for p in answer.programs if p.name == "sample: decode")
    config = MODELS["tiny"]
    layers = config.parameters - config.vocab * config.width  # bfloat16; small norms on all cores
    assert kept[True] - kept[False] == pytest.approx(2 * layers / 8 / plan.GiB, rel=0.05)


@pytest.mark.slow
def test_layers_that_are_not_computed_again_are_held():
    held = {}
    for remat in (True, False):
        answer = plan.plan("tiny", "v3-8", **SMALL | {"micro_batch": 16}, remat=remat)
        held[remat] = next(p.total for p in answer.programs if p.name == "update: gradient")
    assert held[False] > 1.2 * held[True]


def decoding(**changes):
    """What the compiled decode loop copies and gathers on a v5e: shapes of large arrays."""
    settings = dataclasses.replace(SETTINGS["gemma3-270m"], **changes)
    mesh = plan._mesh_of_absent_tpu(plan.CHIPS["v5e-8"], 1)
    jax.clear_caches()  # of what is lowered: another function may stand in for one of its own
    found = {program.name: program for program in plan.programs(CONFIG, settings, mesh)}
    with jax.set_mesh(mesh):
        compiled = found["sample: decode"].lower().compile()
    text = re.sub(r"\{[^{}]*\}", "", compiled.as_text())  # layouts
    each = re.findall(r"= \(?\w+\[([\d,]+)\]\S* (copy|all-gather)(?:-start)?\(", text)
    shapes = {"copy": set(), "all-gather": set()}
    for dims, name in each:
        shape = tuple(map(int, dims.split(",")))
        shapes[name] |= {shape} if math.prod(shape) >= 2**18 else set()
    return shapes, compiled.memory_analysis()


CONFIG = MODELS["gemma3-270m"]
ROWS = SETTINGS["gemma3-270m"].prompts * SETTINGS["gemma3-270m"].group // 8  # of a core
SLICES = {(1, ROWS, 1, slots, 256) for slots in (1280, 512)}  # of a layer's keys, or values
ARRAYS = {(layers, *of[1:]) for of, layers in zip(sorted(SLICES), (15, 3), strict=True)}


@pytest.mark.slow
def test_the_decode_loop_copies_no_cache_and_gathers_no_weights(monkeypatch):
    shapes, memory = decoding()
    assert not shapes["copy"] & (SLICES | ARRAYS) and not shapes["all-gather"]
    cache = 2 * 2 * sum(map(math.prod, ARRAYS))  # bytes: keys and values in bfloat16
    assert memory.alias_size_in_bytes == pytest.approx(cache, rel=0.01), "written in place"
    assert memory.temp_size_in_bytes < cache / 4
    weights = {(1, 640, 2048), (1, 2048, 640)}
    assert decoding(gather=False)[0]["all-gather"] >= weights, "layers are gathered if asked"
    monkeypatch.setattr(gemma, "row_major", lambda x, *names: x)
    assert decoding()[0]["copy"] >= SLICES | ARRAYS, "what the layout is for"


@pytest.mark.slow
def test_largest_is_the_last_that_fits(monkeypatch):
    totals = [p.total for p in plan.plan("tiny", "v3-8", **SMALL | {"micro_batch": 16}).programs]
    just = dataclasses.replace(plan.CHIPS["v3-8"], hbm=max(totals))
    monkeypatch.setitem(plan.CHIPS, "v3-8", just)
    assert plan.largest("micro_batch", "tiny", "v3-8", **SMALL) == 16
    monkeypatch.setitem(plan.CHIPS, "v3-8", dataclasses.replace(just, hbm=1e-6))
    assert plan.largest("micro_batch", "tiny", "v3-8", **SMALL) == 0


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["v5e-1", "v6e-1"])
def test_a_single_chip(chip):
    answer = plan.plan("tiny", chip, model="hf:anyone/their-tiny", **SMALL)  # weights elsewhere
    assert answer.fits
    assert all(0 < seconds < 10 for seconds in answer.times.values())  # nothing to move


def test_an_older_compiler_is_a_sentence(monkeypatch, capsys):
    """As in Colab's list of August 2026: with JAX 0.7.2 a libtpu that crashes where it compiles."""
    version = plan.importlib.metadata.version
    old = lambda name: "0.0.1" if name == "libtpu" else version(name)  # noqa: E731
    monkeypatch.setattr(plan.importlib.metadata, "version", old)
    with pytest.raises(SystemExit) as stopped:
        plan.main(["--model", "tiny", "--chip", "v5e-8"])
    assert stopped.value.code == 2 and "libtpu 0.0.1, is older" in capsys.readouterr().err


@pytest.mark.slow
def test_what_does_not_fit_is_a_sentence_and_status_1(monkeypatch, capsys):
    small = dataclasses.replace(plan.CHIPS["v3-8"], hbm=1.0)
    monkeypatch.setitem(plan.CHIPS, "v3-8", small)
    assert plan.main(["--model", "gemma3-270m", "--chip", "v3-8"]) == 1
    assert "lower micro_batch" in capsys.readouterr().out


@pytest.mark.parametrize("task", ["countdown", "aha_lib.tasks.last_first:LastFirst"])
def test_prompts_of_any_task_have_to_fit(task):
    """Where the tokenizer lies here; as `train` says it."""
    with pytest.raises(ValueError, match="A prompt has 7 tokens"):
        plan.plan("tiny", "v3-8", task=task, prompt_len=6)


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """Ask the compiler, or the cache, about a small program of this CPU; and the cache's folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    lower = lambda: jax.jit(lambda x: x @ x.T).lower(np.ones((256, 256), np.float32))  # noqa: E731
    program = plan.Program("update: apply", 0.5, lower)
    mesh = devices.make_mesh(jax.devices()[:1])
    return lambda: plan._memory(program, mesh, plan.CHIPS["v3-8"]), tmp_path / "aha_lib" / "plan"


def test_the_compiler_is_asked_once(ask):
    answer, folder = ask
    first = answer()
    assert first.arguments == 256 * 256 * 4 / plan.GiB and first.resident == 0.5
    assert answer() == first, "the seconds that it took are those of the first time"
    (kept,) = folder.iterdir()
    assert kept.suffix == ".json", "nothing half-written is left"


@pytest.mark.parametrize("damage", ["", "[0.1, 0.2", "[0.1]", "[0.1, null, 3]", '{"a": 1}', "7"])
def test_a_damaged_cache_file_is_asked_anew(ask, damage):
    answer, folder = ask
    first = answer()
    (kept,) = folder.iterdir()
    kept.write_text(damage)
    again = answer()
    assert (again.arguments, again.temporaries) == (first.arguments, first.temporaries)
    assert answer() == again, "and whole from now on"


def test_a_kept_program_of_an_absent_chip_is_no_warning(monkeypatch, recwarn):
    """JAX's compilation cache cannot read it without the chip; it is compiled, and nothing said."""
    sizes = dict(output_size_in_bytes=0, alias_size_in_bytes=0, temp_size_in_bytes=2**30)
    memory = SimpleNamespace(**sizes, argument_size_in_bytes=2**31)

    def compile(lowered):
        warnings.warn("Error reading persistent compilation cache entry for 'jit_f'", stacklevel=1)
        warnings.warn("another", stacklevel=1)
        return SimpleNamespace(memory_analysis=lambda: memory)

    monkeypatch.setattr(jax.stages.Lowered, "compile", compile)
    assert plan._ask_compiler(jax.jit(abs).lower(1.0))[:2] == [2.0, 1.0]
    assert [str(one.message) for one in recwarn] == ["another"]


def test_a_cache_that_cannot_be_written_is_a_line(ask, caplog):
    answer, folder = ask
    folder.parent.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        assert answer().arguments > 0
    (record,) = caplog.records
    assert "plan cannot be written" in record.getMessage()


@pytest.mark.parametrize(
    "message, needed",
    [  # libtpu 0.0.42's own
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (4.54T) exceeds available HBM (15.48G).",
            4.54 * 1024,
        ),
        ("Ran out of memory in memory space hbm. Used 22.50G of 15.48G hbm.", 22.5),
        ("Ran out of memory in memory space vmem. Used 512.00K of 16.00M", 0.5 / 1024),
        ("INTERNAL: something else", None),
    ],
)
def test_what_is_needed_is_read_with_its_unit(message, needed):
    assert plan._needed(message) == (needed and pytest.approx(needed))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model", "llama", "--chip", "v3-8"],
        ["--model", "tiny", "--chip", "abacus"],
        ["--model", "tiny", "--chip", "v3-8", "--set", "group=1"],
        ["--model", "tiny", "--chip", "v3-8", "--set", "task=chess"],
    ],
)
def test_bad_input_is_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        plan.main(arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err
