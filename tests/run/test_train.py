"""The loop on a very small random model: what it feeds to the step, what it measures and keeps."""

import dataclasses
import gc
import itertools
import json
import logging
import re
import shutil
import signal
import subprocess
import sys
import time
import weakref
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from aha_lib import devices, loop
from aha_lib.model import export, lora, weights
from aha_lib.model.gemma import Gemma
from aha_lib.model.tokenizer import Tokenizer, tiny_model
from aha_lib.presets import MODELS, PUZZLES, Pretraining, Settings
from aha_lib.rl import grpo, sampler
from aha_lib.run import pretrain, session, train
from aha_lib.run.folder import read_settings
from aha_lib.tasks import countdown
from aha_lib.tasks.countdown import Reward
from aha_lib.tasks.rollout import Policy, Rollout, held_out_panel, training_puzzles
from aha_lib.tasks.task import Countdown

TOKENIZER = Tokenizer(tiny_model())
TASK = Countdown()
TIMINGS = ("seconds", "per_second")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model of the tiny vocabulary that now and then ends a completion."""
    shape = dict(layers=2, width=32, heads=2, head_dim=16, ff=48, window=16)
    model = Gemma(dataclasses.replace(MODELS["tiny"], **shape), rngs=nnx.Rngs(0))
    for name in ("post_attn_norm", "post_ff_norm"):
        norm = getattr(model.layers, name)
        norm[...] = norm[...] + 1.0
    model.embed[...] = model.embed[...].at[TOKENIZER.eos_id].multiply(2.5)
    path = tmp_path_factory.mktemp("model")
    export.save_hf(model, path, TOKENIZER)
    return path


@pytest.fixture
def settings(folder):
    return Settings(
        model=str(folder),
        prompts=2,
        group=4,
        completion_len=16,
        micro_batch=4,
        steps=5,
        warmup=1,
        eval_every=2,
        eval_puzzles=8,
        pass_k=1,
        checkpoint_every=2,
        temperature=0.7,
        kl=0.1,
        learning_rate=1e-2,
    )


@pytest.fixture
def rewarded(monkeypatch):
    """Rewards that a random model earns: 0, 0.5 or 1 by a sum over the text's characters."""
    judge = lambda text, puzzle, **_: Reward(sum(map(ord, text)) % 3 / 2, "", "")  # noqa: E731
    monkeypatch.setattr(countdown, "reward", judge)


def run(settings, out):
    return list(train.train(settings, out))


def untimed(rows):
    """Rows as JSON has them, without what a clock measured."""
    rows = json.loads(json.dumps(rows))
    return [{k: v for k, v in row.items() if not k.endswith(TIMINGS)} for row in rows]


def spied(monkeypatch, module, name, watch=lambda args, kwargs, result: result):
    """Calls of a function from now on, as a list of what `watch` makes of them."""
    real, calls = getattr(module, name), []

    def spy(*args, **kwargs):
        result = real(*args, **kwargs)
        calls.append(watch(args, kwargs, result))
        return result

    monkeypatch.setattr(module, name, spy)
    return calls


# Programs


@pytest.fixture
def compiled():
    """Names of the programs that JAX compiles from now on."""

    class Names(logging.Handler):
        def emit(self, record):
            names.extend(re.findall(r"^Compiling (?:jit\()?(\w+)", record.getMessage()))

    names, listener = [], Names()
    jax.config.update("jax_log_compiles", True)
    logging.getLogger("jax").addHandler(listener)
    yield names
    logging.getLogger("jax").removeHandler(listener)
    jax.config.update("jax_log_compiles", False)


@pytest.mark.slow
def test_what_is_compiled_depends_on_nothing_but_lengths(settings, compiled, rewarded, tmp_path):
    settings = dataclasses.replace(settings, steps=12, kl=0.0, micro_batch=2, learning_rate=1e-4)
    lengths, by_step = [], []
    for row in train.train(settings, tmp_path / "first"):
        by_step.append([*compiled])
        lengths.append(row.get("length"))
        compiled.clear()
    assert len({*lengths}) > 8, "completions of many lengths"
    assert {"_prefill", "_decode"} <= {*by_step[0]} and {"accumulate", "apply"} <= {*by_step[1]}
    later = list(itertools.chain(*by_step[3:]))
    assert {*later} <= {"_decode", "_resize", "_pick_rows"}
    every = list(itertools.chain(*by_step))
    assert every.count("_decode") <= 16, "four stages of 8, 4, 2 or 1 rows"
    assert every.count("accumulate") == 1, "packed rows are all of one shape"
    run(settings, tmp_path / "second")
    again = {*compiled} - {"map"}  # a program of JAX's own, made anew by each run
    assert not again & {*every}, "nothing is compiled twice"


# Puzzles


def test_puzzles_of_a_step_are_its_own(settings):
    steps = [training_puzzles(TASK, settings, n) for n in range(1, 40)]
    assert all(len(step) == settings.prompts for step in steps)
    assert steps == [training_puzzles(TASK, settings, n) for n in range(1, 40)]
    drawn = list(itertools.chain(*steps))
    assert len(set(drawn)) > 0.95 * len(drawn), "a step does not repeat another's puzzles"
    other = dataclasses.replace(settings, seed=1)
    assert training_puzzles(TASK, other, 1) != steps[0]


def test_the_panel_shares_no_numbers_with_training(settings):
    settings = dataclasses.replace(settings, eval_puzzles=200, prompts=16)
    panel = {tuple(sorted(p.numbers)) for p in held_out_panel(TASK, settings)}
    trained = {
        tuple(sorted(p.numbers)) for n in range(1, 60) for p in training_puzzles(TASK, settings, n)
    }
    assert len(panel) > 50 and len(trained) > 400 and not panel & trained
    other = dataclasses.replace(settings, seed=7)
    assert held_out_panel(TASK, settings) == held_out_panel(TASK, other), "one panel for every seed"


# What the step is fed


@pytest.mark.slow
def test_the_batch_of_a_step(settings, rewarded, monkeypatch, tmp_path):
    """One BOS, EOS trained once, sampler and trainer at one temperature, rewards in their rows."""
    batches = spied(monkeypatch, grpo, "train_step", lambda args, kwargs, result: args[3])
    temperatures = spied(monkeypatch, sampler, "sample", lambda a, kwargs, r: a[4].temperature)
    groups = spied(monkeypatch, loop, "rollout")
    rows = run(settings, tmp_path)
    assert len(batches) == 5 and set(temperatures) == {0.7, 0.0}
    rollouts = [g for g in groups if len(g.puzzles) == len(batches[0].mask) and g.valid[0].any()]
    rollouts = [g for b in batches for g in rollouts if g.completions.tokens is b.completions]
    for batch, out in zip(batches, rollouts, strict=True):
        bos = (batch.prompts == TOKENIZER.bos_id) & batch.valid
        assert (bos.sum(1) == 1).all()
        assert (bos.argmax(1) == batch.valid.argmax(1)).all(), "BOS comes first"
        for i, (tokens, mask) in enumerate(zip(batch.completions, batch.mask, strict=True)):
            trained = tokens[mask].tolist()
            assert TOKENIZER.eos_id not in trained[:-1]
            assert trained[-1] == TOKENIZER.eos_id or len(trained) == 16
            assert out.texts[i] == TOKENIZER.decode(trained)
            prompt = countdown.prompt(out.puzzles[i], "tiny")
            assert batch.prompts[i][batch.valid[i]].tolist() == TOKENIZER.encode(prompt)
        rewards = np.array([countdown.reward(text, None).value for text in out.texts])
        grouped = rewards.reshape(2, 4)
        spread = np.maximum(grouped.std(1, keepdims=True), 1e-9)
        gain = (grouped - grouped.mean(1, keepdims=True)) / spread
        np.testing.assert_allclose(batch.advantages.reshape(2, 4), gain, atol=1e-5)
    assert any((b.mask.sum(1) < 16).any() for b in batches), "some completion came to its end"
    first, second = rows[1], rows[3]
    assert first["clip_fraction"] == 0, "on-policy: sampler and trainer agree at 0.7"
    assert abs(first["kl"]) < 1e-6 < second["kl"], "the reference stays the base"


@pytest.mark.slow
def test_refills_replace_groups_without_signal(monkeypatch):
    """Dynamic sampling on the tiny base: what is drawn, what is learned from, what is measured."""
    P, G = 4, 3
    settings = Settings(prompts=P, group=G, completion_len=32, steps=8, refills=2)
    model, tokenizer, _ = weights.load("tiny")
    rollouts = spied(monkeypatch, loop, "rollout")
    batches = []
    monkeypatch.setattr(grpo, "train_step", lambda *args: batches.append(args[3]) or (args[1], {}))

    def take(number, refills):
        """Step `number`, without an update: metrics, batch, rollouts and their rewards [P, G]."""
        rollouts.clear()
        s = dataclasses.replace(settings, refills=refills)
        policy = Policy(model, tokenizer, TASK, s)
        _, row = loop.step(policy, None, None, number, jax.random.key(0))
        rewards = [
            np.array([countdown.reward(*x).value for x in zip(out.texts, out.puzzles, strict=True)])
            for out in rollouts
        ]
        return row, batches[-1], list(rollouts), np.reshape(rewards, (-1, P, G))

    draws_made, left, drawn = [], [], []
    for number in range(1, 7):
        row, batch, draws, rewards = take(number, refills=2)
        right = rewards == 1
        fresh = np.cumsum((right.max(2) > right.min(2)).sum(1))
        assert (fresh[:-1] < P).all(), "drawn again only while a group lacks signal"
        assert len(draws) == 3 or fresh[-1] >= P, "and then as long as the settings allow"
        for i, out in enumerate(draws):
            assert out.puzzles[::G] == training_puzzles(TASK, settings, number, i)
            drawn += out.puzzles[::G]
        found = [origin(batch, g, G, draws, rewards, tokenizer) for g in range(P)]
        assert len(set(found)) == P, "no group is taken twice"
        silent = [g for g, (d, i) in enumerate(found) if right[d, i].all() or not right[d, i].any()]
        assert len(silent) == max(0, P - fresh[-1]), "as few without signal as the draws allow"

        plain, old, (out,), (first,) = take(number, refills=0)
        assert P * plain["zero_variance_groups"] == (np.ptp(first, 1) == 0).sum()
        (one,), (other,) = untimed([row]), untimed([plain])
        assert (one.pop("draws"), other.pop("draws")) == (len(draws), 1)
        assert one == other, "the metrics are those of the first draw"
        assert one["reward"] == pytest.approx(first.mean())
        assert one["length"] == pytest.approx(out.completions.mask.sum(1).mean())
        kept = (right[0].max(1) > right[0].min(1)).repeat(G)
        for ours, theirs in zip(batch[:6], old[:6], strict=True):
            np.testing.assert_array_equal(ours[kept], theirs[kept], "groups with signal stay")
        draws_made.append(len(draws))
        left.append(len(silent))
    assert {2, 3} <= set(draws_made) and min(left) == 0 < max(left), "each case was met"
    assert len(set(drawn)) > 0.9 * len(drawn), "a draw does not repeat another's puzzles"


def origin(batch, g, G, draws, rewards, tokenizer):
    """Draw and group that the batch's group `g` is: its rows have to be that group's throughout."""
    rows = slice(g * G, g * G + G)
    ours = batch.logprobs[rows]
    drawn = {
        (d, i): draws[d].completions.logprobs[i * G : i * G + G]
        for d, i in np.ndindex(rewards.shape[:2])
    }
    ((d, i),) = [at for at, theirs in drawn.items() if np.array_equal(ours, theirs)]
    mine = slice(i * G, i * G + G)
    np.testing.assert_array_equal(batch.completions[rows], draws[d].completions.tokens[mine])
    np.testing.assert_array_equal(batch.mask[rows], draws[d].completions.mask[mine])
    prompt = tokenizer.encode(countdown.prompt(draws[d].puzzles[i * G], "tiny"))
    for tokens, valid in zip(batch.prompts[rows], batch.valid[rows], strict=True):
        assert tokens[valid].tolist() == prompt
    centred = rewards[d, i] - rewards[d, i].mean()
    gain = centred / max(rewards[d, i].std(), 1e-9)
    np.testing.assert_allclose(batch.advantages[rows], gain, atol=1e-5)
    return d, i


@pytest.mark.slow
def test_every_rollout_has_fresh_keys(settings, monkeypatch, tmp_path):
    """The same puzzles at every step and a model that stays: completions differ all the same."""
    settings = dataclasses.replace(settings, learning_rate=0.0, eval_every=1, steps=3)
    panel = held_out_panel(TASK, settings)
    monkeypatch.setattr(loop, "training_puzzles", lambda task, s, n: panel[: s.prompts])
    drawn = spied(monkeypatch, sampler, "sample", lambda a, k, result: (a[4].temperature, result))
    run(settings, tmp_path / "a")
    count = len(drawn)
    run(settings, tmp_path / "b")
    texts = [tuple(map(tuple, result.tokens.tolist())) for _, result in drawn]
    assert texts[:count] == texts[count:], "the same settings reproduce every step"
    greedy = [text for text, (t, _) in zip(texts[:count], drawn, strict=False) if t == 0]
    sampled = [text for text, (t, _) in zip(texts[:count], drawn, strict=False) if t]
    assert len(sampled) == 3 + 4 and len(set(sampled)) == len(sampled)
    assert len(set(greedy)) == 1


# The run


def test_rows_have_what_a_run_is_read_by(settings, rewarded, tmp_path):
    rows = run(settings, tmp_path)
    assert [row["step"] for row in rows] == list(range(6))
    assert untimed(train.read_rows(tmp_path / "metrics.jsonl")) == untimed(rows)
    wanted = """step reward train_accuracy length backtracks zero_variance_groups entropy kl
    clip_fraction grad_norm sample_seconds reward_seconds update_seconds sample_tokens_per_second
    update_tokens_per_second""".split()
    for row in rows[1:]:
        assert set(wanted) <= set(row)
        assert 0 < row["length"] <= 16 and row["entropy"] > 0 and row["grad_norm"] >= 0
    evaluated = [row["step"] for row in rows if "heldout_accuracy" in row]
    assert evaluated == [0, 2, 4, 5], "every eval_every steps and at the end"
    texts = train.read_rows(tmp_path / "rollouts.jsonl")
    assert [row["step"] for row in texts] == evaluated
    assert all(len(row["sampled"]) == len(row["greedy"]) == 8 for row in texts)


@pytest.mark.slow
def test_evaluation_does_not_touch_training(settings, rewarded, tmp_path):
    often = run(settings, tmp_path / "often")
    never = run(dataclasses.replace(settings, eval_every=100), tmp_path / "never")
    assert sum("heldout_accuracy" in row for row in never) == 2
    for a, b in zip(untimed(often), untimed(never), strict=True):
        assert b.items() <= a.items()  # those of the base and of the last step included


OTHERS = [
    pytest.param(changes, marks=pytest.mark.slow)
    for changes in ({"lora": 2}, {"refills": 2, "group": 2})
]


@pytest.mark.parametrize("changes", [{}, *OTHERS], ids=str)
def test_a_killed_run_goes_on_as_if_it_had_not_been(
    settings, changes, rewarded, monkeypatch, tmp_path
):
    """Killed after step 3, one step past its checkpoint, with the last lines half written."""
    settings = dataclasses.replace(settings, **changes)
    drawn = spied(monkeypatch, loop, "training_puzzles", lambda args, kwargs, result: args[2:])
    rows = run(settings, tmp_path / "whole")
    with closing(train.train(settings, tmp_path / "killed")) as going:
        while next(going)["step"] < 3:
            pass
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        with (tmp_path / "killed" / name).open("a") as file:
            file.write('{"step": 4, "rewa')
    again = run(settings, tmp_path / "killed")
    assert [row["step"] for row in again] == [3, 4, 5]
    assert untimed(again) == untimed(rows[3:])
    assert rows[4]["grad_norm"] > 0, "there was something to learn"
    refilled = {step for step, *draw in drawn if any(draw)}
    assert refilled >= {3, 4} if settings.refills else not refilled, "drawn again on both sides"
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        one, other = (untimed(train.read_rows(tmp_path / x / name)) for x in ("whole", "killed"))
        assert one == other
    one, other = (restored(tmp_path / x) for x in ("whole", "killed"))
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)
    assert run(settings, tmp_path / "killed") == [], "nothing is left to do"
    assert untimed(train.read_rows(tmp_path / "killed" / "metrics.jsonl")) == untimed(rows)


@pytest.mark.slow
def test_a_damaged_checkpoint_costs_its_steps_and_no_more(settings, rewarded, tmp_path, capsys):
    whole = run(settings, tmp_path / "whole")
    with closing(train.train(settings, tmp_path / "harmed")) as going:
        rows = [next(going) for _ in range(5)]
    files = [path for path in (tmp_path / "harmed/checkpoints/4").rglob("*") if path.is_file()]
    max(files, key=lambda path: path.stat().st_size).write_bytes(b"")
    again = run(settings, tmp_path / "harmed")
    assert "The checkpoint of step 4 is damaged" in capsys.readouterr().out
    assert [row["step"] for row in again] == [3, 4, 5]
    assert untimed(rows[:3] + again) == untimed(whole)
    kept = sorted(path.name for path in (tmp_path / "harmed/checkpoints").iterdir())
    assert kept == ["4", "5"], "that of step 4 is written anew"


def restored(out):
    return checkpoint(out, 5)


def checkpoint(out, step):
    with ocp.CheckpointManager(out / "checkpoints") as manager:
        assert manager.latest_step() == step
        return manager.restore(step, args=ocp.args.StandardRestore())


@pytest.mark.slow
def test_adapters_alone_are_trained_and_kept(settings, folder, rewarded, monkeypatch, tmp_path):
    """And the base under them is the KL term's reference: no second copy is handed to the step."""
    steps = spied(monkeypatch, grpo, "train_step", lambda args, kwargs, result: (args, *result))
    settings = dataclasses.replace(settings, lora=2, updates=2, warmup=0)
    run(settings, tmp_path)
    kls = [metrics["kl"] for *_, metrics in steps]
    assert 1e-9 < kls[0] < kls[-1], "measured after the first of two updates; it grows"
    assert all(args[2] is None for args, *_ in steps)
    model, tokenizer, _ = weights.load(folder)
    base = jax.tree.leaves(nnx.state(model))
    lora.add(model, 2, rngs=nnx.Rngs(devices.random_key(settings.seed, "adapters")))
    start = grpo.trainable(nnx.state(model), settings.lora)[0]
    checkpoint = restored(tmp_path)
    kept, adam = (jax.tree.leaves(checkpoint[name]) for name in ("params", "opt_state"))
    assert [x.shape for x in kept] == [x.shape for x in jax.tree.leaves(start)]
    assert all((x != y).any() for x, y in zip(kept, jax.tree.leaves(start), strict=True))
    assert sum(x.size for x in adam) < 2 * sum(x.size for x in kept) + 10
    rest = jax.tree.leaves(grpo.trainable(steps[-1][1].params, settings.lora)[1])
    for x, y in zip(rest, base, strict=True):
        np.testing.assert_array_equal(x, y)
    found, merged = train.trained(tmp_path)[0], train.trained(tmp_path, merged=True)[0]
    for x, y in zip(jax.tree.leaves(nnx.state(found, nnx.LoRAParam)), kept, strict=True):
        np.testing.assert_array_equal(x, y, "they are kept apart unless asked")
    assert not nnx.state(merged, nnx.LoRAParam)


def test_a_cold_start_and_a_run_of_one_seed_draw_other_adapters(settings, folder):
    cold, _ = pretrain.begin(Pretraining(model=str(folder), lora=2))
    settings = dataclasses.replace(settings, lora=2, seed=0)
    graph, state, *_ = train.begin(settings, devices.make_mesh(), TASK)
    ours = nnx.merge(graph, state.params)
    for name in ("q_a", "gate_a", "down_a"):
        assert (getattr(ours.layers, name)[...] != getattr(cold.layers, name)[...]).all(), name


@pytest.mark.slow
def test_killed_before_its_first_checkpoint(settings, rewarded, tmp_path):
    """That is in the middle of saving step 0: its row is there, and no other can be."""
    rows = run(settings, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    kept = (tmp_path / "metrics.jsonl").read_text()
    with pytest.raises(ValueError, match="rows up to step 5, and no checkpoint to go on from"):
        run(settings, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == kept, "nothing begins anew by itself"
    (tmp_path / "metrics.jsonl").write_text(kept.splitlines(keepends=True)[0])
    (tmp_path / "rollouts.jsonl").unlink()
    assert untimed(run(settings, tmp_path)) == untimed(rows)
    assert len(train.read_rows(tmp_path / "metrics.jsonl")) == 6


def test_a_folder_is_trained_in_once(settings, rewarded, tmp_path):
    """A second run is refused and changes nothing; the first does not notice."""
    with closing(train.train(settings, tmp_path)) as going:
        rows = [next(going), next(going)]
        before = listing(tmp_path)
        with pytest.raises(ValueError, match="is being trained by this very process"):
            run(settings, tmp_path)
        assert listing(tmp_path) == before
        rows += going
    assert [row["step"] for row in rows] == [*range(6)] and not (tmp_path / "stopped.txt").exists()


def listing(out):
    """Files with their contents; checkpoints, which are written meanwhile, aside."""
    paths = (path for path in out.rglob("*") if "checkpoints" not in path.parts)
    return {str(path): path.read_bytes() for path in paths if path.is_file()}


def test_a_caller_who_leaves_is_told_of(settings, rewarded, tmp_path):
    with closing(train.train(settings, tmp_path)) as going:
        next(going)
    said = (tmp_path / "stopped.txt").read_text()
    assert said.startswith("Closed by its caller. The last row is that of step 0; the same command")


@pytest.mark.slow
def test_the_first_typo_does_not_burn_the_folder(settings, folder, rewarded, tmp_path):
    """What a run was refused for can be put right in the same folder."""
    settings = dataclasses.replace(settings, steps=0, eval_puzzles=2)
    advice = "prompt_len is 7, and the longest prompt has 8 tokens: set prompt_len=8."
    for bad, said in {
        "no/such/model": "no/such/model",
        str(folder): re.escape(advice),
    }.items():
        wrong = dataclasses.replace(settings, model=bad, prompt_len=7, puzzles="tinyzero")
        with pytest.raises((ValueError, FileNotFoundError), match=said):
            run(wrong, tmp_path)
        assert not (tmp_path / "settings.json").exists()
        assert said.replace("\\", "") in (tmp_path / "stopped.txt").read_text()
    right = dataclasses.replace(settings, prompt_len=8, puzzles="tinyzero")
    assert [row["step"] for row in run(right, tmp_path)] == [0]
    assert not (tmp_path / "stopped.txt").exists()


@pytest.mark.slow
def test_adapters_do_not_go_on_over_another_base(settings, folder, rewarded, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(folder, base)
    settings = dataclasses.replace(settings, lora=2, steps=1, model=str(base), kl=0.0)
    out = tmp_path / "run"
    run(settings, out)
    model, tokenizer, _ = weights.load(base)
    model.layers.q[...] = model.layers.q[...] * 1.1
    shutil.rmtree(base)
    export.save_hf(model, base, tokenizer)
    rows = (out / "metrics.jsonl").read_text()
    more = dataclasses.replace(settings, steps=2)
    with pytest.raises(ValueError, match="has other weights now than when the run in"):
        run(more, out)
    with pytest.raises(ValueError, match="has other weights now than when the run in"):
        train.trained(out)
    assert (out / "metrics.jsonl").read_text() == rows
    (out / "base.json").unlink()  # as in a folder of before
    assert [row["step"] for row in run(more, out)] == [2]


def test_damaged_files_do_not_keep_a_run_from_going_on(settings, rewarded, tmp_path, capsys):
    """Its checkpoint is whole: the rest is said, and the damaged file kept."""
    whole = run(settings, tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    lines[2:3] = [b"\0\0\0" + lines[2], b"\n"]
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(lines))
    (tmp_path / "settings.json").write_text("")
    again = run(dataclasses.replace(settings, steps=6), tmp_path)
    assert [row["step"] for row in again] == [6]
    said = (tmp_path / "log.txt").read_text()
    assert "settings.json is damaged (" in said and "metrics.jsonl: damaged lines (3)" in said
    rows = train.read_rows(tmp_path / "metrics.jsonl")
    assert untimed(rows[:2] + rows[2:5]) == untimed(whole[:2] + whole[3:])
    assert (tmp_path / "damaged" / "metrics.jsonl").read_bytes() == b"".join(lines)


def test_another_number_of_devices_is_a_sentence(settings, tmp_path):
    settings = dataclasses.replace(settings, tp=2)
    with pytest.raises(ValueError, match="tp is 2, and 1 devices cannot be split by it: set tp=1"):
        run(settings, tmp_path)


@pytest.mark.slow
def test_too_little_memory_is_a_sentence_with_the_setting(settings, monkeypatch, tmp_path):
    asks_too_much = lambda *args, **kwargs: jax.numpy.zeros(2**46).block_until_ready()  # noqa: E731
    monkeypatch.setattr(grpo, "train_step", asks_too_much)
    with pytest.raises(MemoryError, match=r"\(allocating 281474976710656 bytes\).* micro_batch; "):
        run(settings, tmp_path)


@pytest.mark.slow
def test_a_resumed_run_lets_go_of_what_it_began_with(settings, rewarded, monkeypatch, tmp_path):
    """The parameters that were loaded are off the device once those of the checkpoint are on it."""
    arrays = lambda a, k, result: [weakref.ref(x) for x in jax.tree.leaves(nnx.state(result[0]))]  # noqa: E731
    loaded = spied(monkeypatch, weights, "load", arrays)
    with closing(train.train(settings, tmp_path)) as going:
        while next(going)["step"] < 2:
            pass
    with closing(train.train(settings, tmp_path)) as going:
        assert next(going)["step"] == 3
        gc.collect()
        assert all(ref() is None or ref().is_deleted() for ref in loaded[1])


@pytest.mark.slow
def test_updates_that_are_not_finite_change_nothing(settings, rewarded, monkeypatch, tmp_path):
    """One is skipped and counted, and the run goes on; after three in a row it stops."""
    poisoned, real, states = [3], grpo.accumulate, []

    def poison(graph, weights, *args):
        grads, sums = real(graph, weights, *args)
        states.append(jax.tree.map(np.asarray, weights.params))
        if len(batches) + 1 in poisoned:
            grads = jax.tree.map(lambda x: x * np.nan, grads)
        return grads, sums

    batches = spied(monkeypatch, grpo, "apply")
    monkeypatch.setattr(grpo, "accumulate", poison)
    settings = dataclasses.replace(settings, steps=8, micro_batch=8, eval_every=8)
    rows = run(settings, tmp_path / "one")
    assert [row["skipped_updates"] for row in rows[1:]] == [0, 0, 1, 0, 0, 0, 0, 0]
    assert np.isnan(rows[3]["grad_norm"]) and rows[4]["grad_norm"] > 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(states))
    after = zip(*(jax.tree.leaves(states[i]) for i in (1, 2, 3, 4)), strict=True)
    moved = np.array([[(a != b).any() for a, b in itertools.pairwise(x)] for x in after])
    assert moved.any(0).tolist() == [True, False, True], "steps 2, 3, 4"

    batches.clear()
    poisoned[:] = range(3, 9)
    with pytest.raises(FloatingPointError, match="Step 5: .* lower learning_rate"):
        run(settings, tmp_path / "three")
    assert "gradients were not finite" in (tmp_path / "three" / "stopped.txt").read_text()
    kept = checkpoint(tmp_path / "three", 4)["params"]
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(states[-1]), strict=True):
        np.testing.assert_array_equal(a, b, "the last good parameters")


def test_a_loss_that_is_not_finite_is_not_applied(settings):
    state = grpo.TrainState(nnx.State({"w": nnx.Param(np.ones(3, np.float32))}), None)
    state = state._replace(opt_state=grpo.optimizer(settings).init(state.params))
    grads = jax.tree.map(np.ones_like, state.params)
    before = jax.tree.map(np.asarray, state)
    after, norm = grpo.apply(state, grads, 1e-3, np.inf, grpo.OptimizerSettings.of(settings))
    assert norm == pytest.approx(3**0.5)
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_ctrl_c_saves_the_step(settings, rewarded, tmp_path, capsys):
    """And leaves Ctrl-C to others afterwards; the run goes on as if nothing had been."""
    whole, handler, rows = run(settings, tmp_path / "whole"), signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt):
        for row in train.train(settings, tmp_path / "stopped"):
            rows.append(row)
            if row["step"] == 2:
                signal.raise_signal(signal.SIGINT)
    assert [row["step"] for row in rows] == [0, 1, 2, 3], "the step after it is finished"
    assert signal.getsignal(signal.SIGINT) is handler
    assert "Stopped: step 3 of 5 is saved." in capsys.readouterr().out
    rows += run(settings, tmp_path / "stopped")
    assert untimed(rows) == untimed(whole)


@pytest.mark.slow
def test_sigterm_saves_the_step(settings, tmp_path):
    with pytest.raises(SystemExit) as ended:
        for row in train.train(settings, tmp_path):
            if row["step"] == 0:
                signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 143
    assert "step 1 of 5 is saved" in (tmp_path / "stopped.txt").read_text()


@pytest.mark.slow
def test_the_clock_and_the_stop_file(settings, rewarded, monkeypatch, tmp_path):
    """The run stops with a saved step and a sentence, and goes on as if it had not stopped."""
    settings, out = dataclasses.replace(settings, checkpoint_every=100), tmp_path / "stopped"
    whole = run(settings, tmp_path / "whole")
    rows = run(dataclasses.replace(settings, hours=1e-6), out)
    assert [row["step"] for row in rows] == [0]
    told = "0 minutes left: step 0 of 5 is saved. The same command, or cell, goes on from there.\n"
    assert (out / "stopped.txt").read_text() == told and told in (out / "log.txt").read_text()
    for row in train.train(settings, out):
        assert (out / "stopped.txt").exists() == (row["step"] == 3)
        rows.append(row)
        if row["step"] == 2:
            (out / "stop").touch()
    assert (out / "stopped.txt").read_text().startswith("Stopped: step 3 of 5 is saved.")
    assert "Taken over: hours: 1e-06 -> 0.0" in (out / "log.txt").read_text()
    monkeypatch.setattr(session, "deadline", lambda hours: time.monotonic() + 1e6)
    rows += run(settings, out)
    assert untimed(rows) == untimed(whole) and not (out / "stop").exists()


@pytest.mark.slow
def test_a_checkpoint_after_so_many_minutes(settings, tmp_path):
    settings = dataclasses.replace(settings, checkpoint_every=100, checkpoint_minutes=0.0)
    with closing(train.train(settings, tmp_path)) as going:
        assert [next(going)["step"] for _ in range(3)] == [0, 1, 2]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["1", "2"]


def test_preflight(settings, monkeypatch, tmp_path):
    """Of a model that is never right: no go, with the reason; else the run begins."""
    settings = dataclasses.replace(settings, preflight=True, steps=0)
    with pytest.raises(ValueError, match="of 8 answers 0.0% are right .* No go. No group has both"):
        run(settings, tmp_path)
    assert not train.read_rows(tmp_path / "metrics.jsonl")
    one_right = itertools.cycle([1.0] + 7 * [0.0])
    monkeypatch.setattr(countdown, "reward", lambda *_, **__: Reward(next(one_right), "", ""))
    run(settings, tmp_path)
    told = (tmp_path / "log.txt").read_text()
    assert "12.5% are right and 12.5% have the format; " in told and told.endswith(" Go.\n")


@pytest.mark.slow
def test_a_full_disk_is_survived(settings, rewarded, tmp_path):
    """On a disk of its own: the run ends in a sentence, its older checkpoint is whole, and with
    room again it goes on as if nothing had been."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        settings, out = dataclasses.replace(settings, checkpoint_every=1), disk / "run"
        whole, rows = run(settings, tmp_path / "whole"), []
        with pytest.raises(OSError, match="The disk is full: make room in .*, and the same"):
            for row in train.train(settings, out):
                rows.append(row)
                if row["step"] == 2:
                    free = shutil.disk_usage(disk).free
                    (disk / "filler").write_bytes(bytes(free - 100_000))
        (disk / "filler").unlink()
        rows = train.read_rows(out / "metrics.jsonl")
        again = run(settings, out)
        assert again[0]["step"] in (2, 3)
        assert untimed(rows[: again[0]["step"]] + again) == untimed(whole)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_disk_too_small_is_found_before_the_hours_are_spent(settings, monkeypatch, tmp_path):
    small = SimpleNamespace(free=500_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: small)
    sampled = spied(monkeypatch, sampler, "sample")
    with pytest.raises(OSError, match="GiB of disk, and the checkpoints may take .* choose anothe"):
        run(settings, tmp_path)
    assert not sampled


def test_rows_go_to_a_tracker_too(settings, monkeypatch, tmp_path):
    """A module in the place of the writer's; where the package is missing a sentence says so."""
    put, settings = [], dataclasses.replace(settings, tracker="tensorboard", steps=1)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ValueError, match="needs its package: pip install tensorboard"):
        run(settings, tmp_path / "none")
    writer = lambda folder: SimpleNamespace(add_scalar=lambda *row: put.append((folder, *row)))  # noqa: E731
    monkeypatch.setitem(sys.modules, "tensorboard.summary", SimpleNamespace(Writer=writer))
    monkeypatch.setitem(sys.modules, "tensorboard", SimpleNamespace())
    rows = run(settings, tmp_path)
    folder = str(tmp_path / "tensorboard")
    assert (folder, "reward", rows[1]["reward"], 1) in put
    assert (folder, "heldout_accuracy", rows[0]["heldout_accuracy"], 0) in put


@pytest.mark.slow
def test_the_trained_model(settings, rewarded, tmp_path):
    """That of the newest checkpoint, or of an earlier one; adapters are merged into it on wish."""
    settings = dataclasses.replace(settings, lora=2, eval_every=100, seed=2)
    run(settings, tmp_path)
    assert nnx.state(train.trained(tmp_path)[0], nnx.LoRAParam)
    model, tokenizer, said = train.trained(tmp_path, merged=True)
    assert said == dataclasses.replace(settings, kl=0.0) and tokenizer.vocab_size == 118
    assert not nnx.state(model, nnx.LoRAParam)
    base, *_ = weights.load(settings.model)
    moved = lambda m: (np.asarray(m.layers.q[...]) != np.asarray(base.layers.q[...])).any()  # noqa: E731
    assert moved(model)
    older, *_ = train.trained(tmp_path, step=4, merged=True)
    assert (np.asarray(older.layers.q[...]) != np.asarray(model.layers.q[...])).any()
    with pytest.raises(FileNotFoundError, match="has no checkpoint up to step 1."):
        train.trained(tmp_path, step=1)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["4", "5"]


@pytest.mark.slow
def test_kills_change_nothing(monkeypatch, tmp_path):
    """Twenty kills: before each of the writes of some steps, at random, and during saving."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import kills

    assert kills.kills(20, tmp_path) > 0, "some were during saving"


def test_a_prompt_too_long_is_found_before_anything_is_sampled(settings, monkeypatch, tmp_path):
    """Puzzles of three numbers fit, and the panel has no other; a later step has one of four."""
    settings = dataclasses.replace(settings, puzzles="tinyzero", prompt_len=7, eval_puzzles=1)
    assert len(held_out_panel(Countdown(puzzles="tinyzero"), settings)[0].numbers) == 3
    sampled = spied(monkeypatch, sampler, "sample")
    with pytest.raises(ValueError, match="the longest prompt has 8 tokens: set prompt_len=8"):
        run(settings, tmp_path)
    assert not sampled


@pytest.mark.parametrize("name", PUZZLES)
def test_no_prompt_is_longer_than_the_widest(name):
    for template in ("tiny", "base"):
        task = Countdown(puzzles=name, template=template)
        longest = len(task.prompt(task.longest()))
        drawn = training_puzzles(task, Settings(prompts=60), 1)
        assert all(len(task.prompt(puzzle)) <= longest for puzzle in drawn)


# Folders of before


@pytest.fixture
def old_run(monkeypatch, tmp_path):
    """A run of two steps by the flat package of before, the keys of then included."""
    shutil.copytree(Path(__file__).parents[1] / "data" / "old_run", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def test_a_run_of_before_is_opened(old_run):
    model, tokenizer, settings = train.trained(old_run)
    assert settings.task == "countdown" and settings.steps == 2
    assert model.config.width == 16 and tokenizer.vocab_size == TOKENIZER.vocab_size
    base = weights.load("model")[0]
    assert (model.embed[...] != base.embed[...]).any(), "two steps have moved it"


@pytest.mark.slow
def test_a_run_of_before_goes_on(old_run):
    """From its checkpoint, its rows as they were; the log says that random keys are others now."""
    before = (old_run / "metrics.jsonl").read_text()
    settings = dataclasses.replace(read_settings(old_run), steps=3)
    rows = list(train.train(settings, old_run))
    assert [row["step"] for row in rows] == [3]
    assert (old_run / "metrics.jsonl").read_text().startswith(before)
    log = (old_run / "log.txt").read_text()
    assert "random keys: those of before 28 November 2026 -> today's" in log
    assert not (old_run / "damaged").exists()


# Evaluation


def test_evaluate_counts(settings, monkeypatch):
    """Texts of known worth: of 4 puzzles, 16 completions each, 0, 1, 8 and 16 are right."""
    settings = dataclasses.replace(settings, eval_puzzles=4, pass_k=16)
    panel = held_out_panel(TASK, settings)
    counts = [0, 1, 8, 16]

    def write(policy, puzzles, key, *, group, temperature):
        right = [f"<answer> {countdown.solve(p, 100)[0]} </answer>" for p in puzzles]
        texts = [
            right[i] if j < counts[i] * group / 16 else "<answer> 1 </answer>"
            for i in range(len(puzzles))
            for j in range(group)
        ]
        mask = np.arange(16) < np.array([len(text.split()) for text in texts])[:, None]
        logprobs = mask.astype(np.float32)
        completions = sampler.Completions(mask.astype(int), logprobs, mask, written=mask)
        each = [p for p in puzzles for _ in range(group)]
        prompts = np.zeros((len(each), 1), int)
        return Rollout(each, prompts, prompts == 0, completions, texts, replies={})

    monkeypatch.setattr(train, "rollout", write)
    policy = Policy(weights.load(settings.model)[0], TOKENIZER, TASK, settings)
    metrics, texts = train.evaluate(policy, None, 0)
    assert metrics["heldout_accuracy"] == 25 / 64
    assert metrics["heldout_greedy"] == 3 / 4  # one completion: right where any of 16 is
    lengths = [len(countdown.solve(p, 100)[0].split()) + 2 for p in panel]
    total = sum(c * n + (16 - c) * 3 for c, n in zip(counts, lengths, strict=True))
    assert metrics["heldout_length"] == pytest.approx(total / 64)
    assert metrics["outcomes"]["right"] == 25 and sum(metrics["outcomes"].values()) == 64
    assert metrics["styles"] == {"jump": 64} and metrics["heldout_backtracks"] == 0
    assert metrics["pass_at"][1] == pytest.approx(25 / 64) and metrics["pass_at"][16] == 3 / 4
    assert len(texts["sampled"]) == 4
    metrics, _ = train.evaluate(policy, None, 10)
    assert "pass_at" not in metrics and sum(metrics["outcomes"].values()) == 4


def test_pass_at_k_is_the_mean_over_all_choices():
    rng = np.random.default_rng(0)
    right = rng.random((6, 7)) < np.array([0, 0.1, 0.3, 0.5, 0.9, 1])[:, None]
    for k in range(1, 8):
        hits = [
            row[list(chosen)].any()
            for row in right
            for chosen in itertools.combinations(range(7), k)
        ]
        assert train.pass_at_k(right, k) == pytest.approx(np.mean(hits))


def test_the_largest_puzzle_fits_the_prompt():
    """BOS, the numbers, =, the target and a colon."""
    settings = Settings()
    longest = 1 + PUZZLES[settings.puzzles].numbers + 3
    assert (
        max(
            len(TOKENIZER.encode(countdown.prompt(p, settings.template)))
            for p in held_out_panel(TASK, settings)
        )
        == longest
        <= settings.prompt_len
    )
