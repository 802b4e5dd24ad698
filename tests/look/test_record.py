"""What is kept of a run, and read again."""

import dataclasses
import gzip
import json
import shutil

import pytest
from flax import nnx

from aha_lib.look import record
from aha_lib.model import lora, weights
from aha_lib.presets import Settings
from aha_lib.run import train
from aha_lib.tasks import task as tasks
from aha_lib.tasks import traces

SMALL = Settings(
    steps=1,
    prompts=2,
    group=2,
    eval_puzzles=4,
    pass_k=1,
    completion_len=2,
    micro_batch=4,
    lora=2,
    seed=3,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "mine"
    list(train.train(SMALL, out))
    return out


@pytest.mark.slow
def test_a_record_says_what_the_folder_said(run, tmp_path):
    record.main([str(run), str(tmp_path / "kept")])
    one, other = record.read(run), record.read(tmp_path / "kept")
    assert one == dataclasses.replace(other, name="mine") and one.settings == SMALL
    assert [row["step"] for row in one.rows] == [0, 1] == [row["step"] for row in one.measured]
    assert len(one.panel) == 4 == len(one.kept[1]["greedy"])
    assert not (tmp_path / "kept" / "checkpoints").exists()
    assert json.loads((tmp_path / "kept" / "machine.json").read_text())["cores"] >= 1
    packed = (tmp_path / "kept" / "rollouts.jsonl.gz").read_bytes()
    assert gzip.decompress(packed) == (run / "rollouts.jsonl").read_bytes()
    record.keep(run, tmp_path / "again")
    assert (tmp_path / "again" / "rollouts.jsonl.gz").read_bytes() == packed, "the same bytes"


@pytest.mark.slow
def test_a_record_has_the_adapters(run, tmp_path):
    record.keep(run, tmp_path)
    model, *_ = train.trained(run)
    again = weights.load("tiny")[0]
    lora.load(again, tmp_path / "adapters.safetensors")
    for kept, value in zip(
        *(nnx.to_pure_dict(nnx.state(m, nnx.LoRAParam))["layers"].items() for m in (again, model)),
        strict=True,
    ):
        assert kept[0] == value[0] and abs(kept[1] - value[1]).max() < 0.01


RECORDS = [path.parent for path in sorted(record.DATA.glob("**/rollouts.jsonl.gz"))]
COUNTDOWN = [folder for folder in RECORDS if not folder.parent.name.startswith("look-up")]


def slow_if_large(folder):
    marks = () if folder.parent.name == "run" else pytest.mark.slow
    return pytest.param(folder, marks=marks, id="/".join(folder.parts[-2:]))


@pytest.mark.parametrize("folder", map(slow_if_large, RECORDS))
def test_the_records_of_the_package(folder):
    """Each has a text for every puzzle of its panel, and these have the accuracies of its rows."""
    shipped = record.read(folder)
    task = tasks.load(shipped.settings)
    assert [row["step"] for row in shipped.kept] == [row["step"] for row in shipped.measured]
    for row, kept in zip(shipped.measured, shipped.kept, strict=True):
        for kind, name in (("sampled", "accuracy"), ("greedy", "greedy")):
            right = [
                task.reward(text, puzzle) == 1
                for text, puzzle in zip(kept[kind], shipped.panel, strict=True)
            ]
            if row["step"] or kind == "greedy" or shipped.settings.pass_k == 1:
                assert row[f"heldout_{name}"] == sum(right) / len(right)


@pytest.mark.slow
@pytest.mark.parametrize("folder", COUNTDOWN, ids=lambda path: "/".join(path.parts[-2:]))
def test_the_records_have_the_backtracks_that_the_rules_see(folder):
    """At their last evaluation."""
    shipped = record.read(folder)
    row, kept = shipped.measured[-1], shipped.kept[-1]
    if row["step"] or shipped.settings.pass_k == 1:  # else its texts are a part of the answers
        pairs = zip(kept["sampled"], shipped.panel, strict=True)
        backtracks = [traces.parse(*pair).backtracks for pair in pairs]
        assert row["heldout_backtracks"] == sum(backtracks) / len(backtracks)


def test_a_run_that_has_not_been_measured_is_none_to_read(tmp_path):
    """As in the minutes of a cold start, which has a folder of its own, and before step 0."""
    assert record.read_evaluated(tmp_path / "nowhere") is None
    (tmp_path / "base").mkdir()
    (tmp_path / "base/settings.json").write_text("{}")
    (tmp_path / "base/metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    assert record.read_evaluated(tmp_path) is None
    (tmp_path / "settings.json").write_text(json.dumps(dataclasses.asdict(SMALL)))
    (tmp_path / "rollouts.jsonl").write_text('{"step": 0, "sampled": [], "greedy": []}\n')
    assert record.read_evaluated(tmp_path) is None, "its texts are there, its row is not yet"
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "heldout_accuracy": 0.0}\n')
    found = record.read_evaluated(tmp_path)
    assert found == record.read(tmp_path) and len(found.kept) == 1


def test_there_are_records():
    places = {path.parts[-2] for path in RECORDS}
    of_countdown = {"run", "gemma3-270m", "h100", "h100_2e-4", "tinyzero-small"}
    assert places == of_countdown | {"look-up-270m"}


def test_no_run_is_a_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        record.main([str(tmp_path), str(tmp_path / "kept")])
    assert ended.value.code == 2 and "holds no whole run" in capsys.readouterr().err


@pytest.mark.slow
def test_a_record_does_not_go_into_a_run(run, tmp_path, capsys):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    other = tmp_path / "other"
    (other / "checkpoints").mkdir(parents=True)
    for place, said in ((run, "is the run's own folder"), (other, "holds a run: choose another")):
        with pytest.raises(SystemExit) as ended:
            record.main([str(run), str(place)])
        assert ended.value.code == 2 and said in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert [path.name for path in other.iterdir()] == ["checkpoints"]


@pytest.mark.slow
def test_a_run_that_goes_on_is_read_to_its_last_row(run, tmp_path):
    """An evaluation's texts are there before its row, and lines before they are whole."""
    live = tmp_path / "mine"
    shutil.copytree(run, live)
    with (live / "rollouts.jsonl").open("a") as file:
        file.write('{"step": 2, "sampled": [], "greedy": []}\n{"step": 3, "sam')
    with (live / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "rew')
    assert record.read(live) == record.read(run)
    before = sorted(live.rglob("*"))
    record.keep(live, tmp_path / "kept")
    assert sorted(live.rglob("*")) == before
    assert record.read(tmp_path / "kept").kept == record.read(run).kept


@pytest.mark.slow
def test_damage_is_named(run, tmp_path, capsys):
    """The file, and where it has lines the line."""
    record.keep(run, tmp_path / "kept")
    harms = {
        "settings.json": (lambda old: b"", "settings.json is damaged ("),
        "metrics.jsonl": (lambda old: b"\0\0" + old, "metrics.jsonl, line 1: damaged"),
        "rollouts.jsonl.gz": (lambda old: old[:60], "rollouts.jsonl.gz is damaged, perhaps cut"),
    }
    for name, (harm, said) in harms.items():
        out = tmp_path / name
        shutil.copytree(tmp_path / "kept", out)
        (out / name).write_bytes(harm((out / name).read_bytes()))
        with pytest.raises(SystemExit) as ended:
            record.main([str(out), str(tmp_path / "again")])
        assert ended.value.code == 2 and said in capsys.readouterr().err
