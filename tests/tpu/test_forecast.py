"""Minutes before they are spent: sums, what makes them more, and when the answer is no."""

import json

import pytest

from aha_lib.presets import MODELS, PRETRAINING, SETTINGS
from aha_lib.tpu import chips, forecast, plan
from aha_lib.tpu.forecast import forecast as ask

# A record of its own: the package's grows.
ROWS = [
    {"name": "sample: decode", "size": 2, "seconds": 20.0, "GiB": 5.0},
    *[{"name": "sample: decode", "size": 1}] * 9,
    {"name": "update: gradient", "size": 1, "seconds": 100.0, "GiB": 9.0},
    {"name": "update: apply", "size": 1, "seconds": 40.0, "GiB": 3.0},
]


@pytest.fixture(autouse=True)
def record(tmp_path, monkeypatch):
    """Write what was compiled before: a run each."""
    monkeypatch.setattr(forecast, "RECORD", tmp_path / "compile_times.json")

    def write(rows, preset="gemma3-1b", chip="v5e-8"):
        run = {"preset": preset, "chip": chip, "programs": rows}
        forecast.RECORD.write_text(json.dumps({"runs": [run]}))

    write(ROWS)
    return write


def test_the_parts_are_the_whole():
    answer = ask("gemma3-270m-short", "v5e-1")
    assert list(answer.parts) == ["download", "compilation", "cold start", "run"]
    assert all(part.minutes > 0 and part.basis for part in answer.parts.values())
    assert answer.minutes == pytest.approx(sum(part.minutes for part in answer.parts.values()))
    printed = str(answer).splitlines()
    assert printed[0] == f"gemma3-270m-short on v5e-1: about {answer.minutes:.0f} minutes"
    for line, (name, part) in zip(printed[1:], answer.parts.items(), strict=False):
        assert name in line and f"{part.minutes:.0f} min" in line and part.basis in line
    assert printed[-1] == answer.verdict and len(printed) == 6


def test_compilation_is_side_by_side_and_no_faster_than_the_longest():
    """10 decode programs of 20 s, 100 s and 40 s: 340 s in sum."""
    many = ask("gemma3-1b", "v5e-8").compilation
    assert many.minutes == pytest.approx(100 / 60)
    assert "12 programs, 6 min one after the other and the longest 100 s" in many.basis
    assert "224 cores; as kept of gemma3-1b, v5e-8" in many.basis


def test_weights_of_another_place_take_as_long():
    here = ask("gemma3-1b", "v5e-8")
    assert ask("gemma3-1b", "v5e-8", model="hf:google/gemma-3-1b-pt").minutes == here.minutes


def test_few_cores_of_the_host_take_longer(monkeypatch):
    monkeypatch.setitem(forecast.HOST_CORES, "v5e-8", 2)
    assert ask("gemma3-1b", "v5e-8").compilation.minutes == pytest.approx(340 / 2 / 60)


def test_the_compiler_counts_more_than_the_record():
    asked = ask("gemma3-1b", "v5e-8", seconds={"update: gradient": 300.0, "unknown": 1.0})
    assert asked.compilation.minutes == pytest.approx(5)
    assert "as the compiler took here" in asked.compilation.basis


def test_more_work_takes_more_minutes():
    base = ask("gemma3-1b", "v5e-8")
    for changes in (dict(steps=800), dict(completion_len=2048), dict(prompts=64)):
        more = ask("gemma3-1b", "v5e-8", **changes)
        assert more.run.minutes > 1.5 * base.run.minutes, changes
    seldom = ask("gemma3-1b", "v5e-8", eval_every=100)
    assert seldom.run.minutes < base.run.minutes, "evaluations are counted"
    larger = ask("gemma2-2b", "v5e-8")
    assert larger.download.minutes > 2 * base.download.minutes
    assert larger.run.minutes > base.run.minutes
    assert ask("gemma3-1b", "v5e-1").run.minutes > 2 * base.run.minutes


def test_the_measured_share_is_what_the_run_is_divided_by(monkeypatch):
    before = ask("gemma3-1b", "v5e-8").run.minutes
    monkeypatch.setattr(forecast, "SHARE", forecast.SHARE / 2)
    assert ask("gemma3-1b", "v5e-8").run.minutes == pytest.approx(2 * before)
    assert "10% to 18%" in ask("gemma3-1b", "v5e-8").run.basis


def test_only_what_starts_from_its_own_base_has_a_cold_start():
    assert "400 steps" in ask("gemma3-270m-short", "v5e-8").cold_start.basis
    for preset in ("gemma3-1b", "tiny"):
        none = ask(preset, "v5e-8").cold_start
        assert (none.minutes, none.basis) == (0, "none")


def test_the_tiny_model_is_not_downloaded():
    assert ask("tiny", "v5e-8").download.minutes == 0


# Go, or no go


def test_go():
    answer = ask("gemma3-1b", "v5e-8")
    assert answer.go and answer.verdict == "Go: all fits, and a session has 540 minutes."
    assert answer.session == 540, "Kaggle's nine hours"
    elsewhere = ask("gemma3-1b", "v6e-8")
    assert elsewhere.go and elsewhere.session is None
    assert elsewhere.verdict == "Go: whether all fits was not asked (`aha plan` does)."


def test_no_go_where_the_session_is_shorter():
    answer = ask("gemma3-1b", "v5e-8", hours=1)
    assert not answer.go and answer.minutes > 60
    sessions = -(-answer.minutes // 60)
    assert "No go in one session, which has 60 minutes" in answer.verdict
    assert f"{sessions:.0f} sessions in all" in answer.verdict
    assert ask("gemma3-1b", "v5e-8", hours=answer.minutes / 60 + 0.1).go


def test_no_go_where_a_program_does_not_fit(record):
    record([*ROWS[:-1], {"name": "update: apply", "size": 1, "seconds": 40.0, "GiB": 16.5}])
    answer = ask("gemma3-1b", "v5e-8", hours=1000)
    assert not answer.go
    assert answer.verdict == "No go: update: apply needs 16.5 GiB of a core's 15.75."
    assert ask("gemma3-1b", "v5e-8", hours=1000, too_large="").go, "who asked knows better"
    changed = ask("gemma3-1b", "v5e-8", hours=1000, micro_batch=8)
    assert changed.go and "was not asked" in changed.verdict, "the record is of other settings"


def test_what_was_timed_in_part_says_nothing_of_memory(record):
    record([*ROWS, {"name": "sample: prefill", "size": 1}])
    assert "was not asked" in ask("gemma3-1b", "v5e-8").verdict


@pytest.mark.parametrize("preset, chip", [("llama", "v5e-8"), ("tiny", "abacus")])
def test_unknown_names_are_a_sentence(preset, chip):
    with pytest.raises(ValueError, match="is not in the tables: there are presets tiny"):
        ask(preset, chip)


def test_a_plan_hands_on_what_the_compiler_said():
    settings = SETTINGS["gemma3-1b"]
    times = {"prefill": 1.0, "decode": 1.0, "update": 1.0}
    large = plan.Memory("update: gradient", 1.0, 15.0, 0.5, 300.0)
    answer = plan.Plan("gemma3-1b", "v5e-8", settings, [large], times)
    assert answer.forecast.compilation.minutes == pytest.approx(5)
    assert not answer.forecast.go and "lower micro_batch" in answer.forecast.verdict
    assert str(answer).endswith(answer.forecast.verdict)
    assert plan.Plan("gemma3-4b", "v5e-8", settings, [], times).forecast is None


# The peaks


def test_the_vocabulary_is_for_tokens_with_logits():
    """Reading prompts computes none: of Gemma 3 270M the embedding has 63 % of the parameters."""
    c, chip = MODELS["gemma3-270m"], chips.CHIPS["v5e-1"]
    s = SETTINGS["gemma3-270m"]
    head = c.vocab * c.width
    layers = 2 * (c.parameters - head) + 4 * c.layers * c.heads * c.head_dim * s.prompt_len
    tokens = s.prompts * s.prompt_len
    times = chips.estimate(c, s, chip)
    assert times["prefill"] == pytest.approx(tokens * layers / chip.flops)
    context = s.prompt_len + s.completion_len
    layers = 2 * (c.parameters - head) + 4 * c.layers * c.heads * c.head_dim * context
    rows = s.prompts * s.group
    work = rows * (context * layers + s.completion_len * 2 * head)
    assert times["update"] == pytest.approx(5 * work / chip.flops)  # recomputed, and a KL term


def test_supervised_rows_are_filled_up_to_the_cores():
    c, cold = MODELS["gemma3-270m"], PRETRAINING["gemma3-270m-short"]
    one, eight = (chips.CHIPS[chip] for chip in ("v5e-1", "v5e-8"))
    alone = chips.estimate_supervised(c, cold, one)
    tokens = cold.rows * cold.row_len
    operations = 2 * c.parameters + 4 * c.layers * c.heads * c.head_dim * cold.row_len
    assert alone == pytest.approx(4 * tokens * operations / one.flops)
    shared = chips.estimate_supervised(c, cold, eight)
    assert shared >= alone / cold.rows * 0.99, "three rows keep three of eight cores busy"
