"""Supervised training: its loss, the shipped base against the code, cold starts of a Gemma."""

import dataclasses
import itertools
import json
import re
from contextlib import closing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from stand_in import gemma_like_tokenizer
from test_corpus import FACT, SIGNS, every_fact

from aha_lib import devices
from aha_lib.model import export, vocabulary, weights
from aha_lib.model.gemma import Gemma
from aha_lib.model.tokenizer import Tokenizer, tiny_model
from aha_lib.presets import MODELS, PRETRAINING, PUZZLES, SETTINGS, Pretraining, shape
from aha_lib.rl import sampler
from aha_lib.run import pretrain, train
from aha_lib.tasks import corpus, countdown

TOKENIZER = Tokenizer(tiny_model())
TINY = PRETRAINING["tiny"]
SHIPPED = Path(corpus.__file__).parents[1] / "data" / "tiny"


@pytest.fixture(scope="module")
def base():
    return weights.load("tiny")[0]


def test_the_loss_is_each_documents_own():
    """Packed rows against every document alone: a document does not see its neighbours."""
    small = dataclasses.replace(MODELS["tiny"], layers=2, width=32, heads=2, head_dim=16, ff=48)
    model = Gemma(small, rngs=nnx.Rngs(0))

    @nnx.jit
    def forward(model, tokens):
        hidden = model.hidden(tokens, jnp.arange(TINY.row_len)[None], jnp.ones_like(tokens))
        return model.logits(hidden)

    batch, _ = corpus.rows(TINY, 0, 2, TOKENIZER)
    total, count = 0.0, 0
    for row in range(2):
        for segment in range(1, batch["segments"][row].max() + 1):
            here = batch["segments"][row] == segment
            tokens, learn = batch["tokens"][row, here], batch["weights"][row, here]
            padded = jnp.array(np.pad(tokens, (0, TINY.row_len - len(tokens)))[None])
            logits = np.asarray(forward(model, padded)[0], np.float64)
            logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            total -= sum(logs[t - 1, tokens[t]] for t in range(1, len(tokens)) if learn[t])
            count += learn.sum()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    update = pretrain.Update(0.0, TINY.weight_decay)
    _, loss, finite = pretrain.train_step(graph, pretrain.begin_state(params), rest, batch, update)
    assert finite
    assert float(loss) == pytest.approx(total / count, rel=1e-5)


@pytest.mark.slow
def test_the_shipped_base_is_this_codes(monkeypatch, tmp_path):
    """Corpus, shape, vocabulary, and the losses of the run's first steps, run again.

    The base was made with the keys of before (see `devices.random_key`).
    """
    monkeypatch.setattr(devices, "random_key", lambda seed, purpose: seed)
    record = json.loads((SHIPPED / "pretraining.json").read_text())
    assert record["corpus"] == corpus.fingerprint(TINY)
    assert Pretraining(**record["settings"]) == TINY
    assert weights.load("tiny")[2] == MODELS["tiny"]
    assert (SHIPPED / "tokenizer.model").read_bytes() == tiny_model()
    with closing(pretrain.pretrain(TINY, tmp_path)) as run:
        losses = [row["loss"] for row in itertools.islice(run, 6)]
    np.testing.assert_allclose(losses, record["first_losses"][:6], rtol=1e-3)
    assert record["last_loss"] < 0.3 < losses[-1]


def test_the_shipped_base_adds(base):
    """Next token after `a op b =`: at least 99.5 % right on all facts, on the held-out ones too."""
    facts = list(every_fact())
    tokens = np.array([TOKENIZER.encode(fact) for fact in facts])
    assert tokens.shape[1] == 6

    @nnx.jit
    def guesses(model, tokens):
        positions = jnp.broadcast_to(jnp.arange(5), tokens.shape)
        hidden = model.hidden(tokens, positions, jnp.ones_like(tokens))
        return model.logits(hidden[:, -1]).argmax(-1)

    right = np.asarray(guesses(base, tokens[:, :-1])) == tokens[:, -1]
    held_out = np.array([corpus.is_held_out_fact(fact) for fact in facts])
    assert right[~held_out].mean() >= 0.995
    assert right[held_out].mean() >= 0.995, np.array(facts)[held_out & ~right]


@pytest.mark.slow
def test_the_shipped_base_is_a_beginner(base):
    """Sampled on held-out puzzles: now and then right, mostly a jump, its sums true."""
    puzzles = [countdown.generate(0, i, PUZZLES["tiny"], held_out=True) for i in range(256)]
    ids = [TOKENIZER.encode(countdown.prompt(puzzle)) for puzzle in puzzles]
    out = sampler.sample(
        base,
        *sampler.pad_left(ids, 8, TOKENIZER.pad_id),
        jax.random.key(0),
        sampler.Sampling(
            group=1, length=96, stop_ids=TOKENIZER.stop_ids, pad_id=TOKENIZER.pad_id, stages=2
        ),
    )
    texts = [TOKENIZER.decode(t[m]) for t, m in zip(out.tokens, out.mask, strict=True)]
    right = [countdown.reward(t, p).value == 1 for t, p in zip(texts, puzzles, strict=True)]
    assert 0.05 <= np.mean(right) <= 0.25
    assert 0.6 < np.mean([text.startswith("<answer>") for text in texts]) < 0.85
    assert 0.03 < np.mean([text.count(" no ") > 1 for text in texts]) < 0.2
    facts = [re.fullmatch(FACT, m[0]).groups() for t in texts for m in re.finditer(FACT, t)]
    true = [SIGNS[s](int(a), int(b)) == int(c) for a, s, b, c in facts if (s, b) != ("/", "0")]
    assert len(true) > 200 and np.mean(true) > 0.98


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    """A folder with Gemma 3 270M in all but its sizes and weights, which are random; and one
    with its tokenizer alone, made as Gemma's: byte pairs, digits apart, bytes for the rest."""
    documents = (corpus.document(PRETRAINING["gemma3-270m-cpu"], i) for i in range(300))
    text = ["".join(text for text, _ in pieces) for pieces in documents]
    tokenizer = gemma_like_tokenizer(text, 330, turns=False)
    shape = dict(layers=3, width=48, heads=2, head_dim=16, ff=64, window=12)
    config = dataclasses.replace(MODELS["gemma3-270m"], **shape, vocab=tokenizer.vocab_size)
    folder = tmp_path_factory.mktemp("gemma")
    export.save_hf(Gemma(config, rngs=nnx.Rngs(0)), folder, tokenizer)
    return folder


def untimed(rows):
    """Rows without what a clock measured."""
    return [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in rows]


def cold(gemma, **changes):
    return dataclasses.replace(
        PRETRAINING["gemma3-270m-cpu"],
        model=str(gemma),
        steps=4,
        rows=2,
        row_len=128,
        warmup=1,
        checkpoint_every=2,
        lora=4,
        **changes,
    )


def test_a_cut_vocabulary_is_exact(gemma):
    """On text of its pieces: the same tokens, and the logits of the whole model at them."""
    model, tokenizer, _ = weights.load(gemma)
    settings = cold(gemma)
    ids = sorted({*corpus.pieces_used(settings, tokenizer, 300), *tokenizer.special_ids})
    assert len(ids) < tokenizer.vocab_size / 4
    small, words = vocabulary.cut(model, ids), tokenizer.subset(ids)
    assert words.vocab_size == small.config.vocab == len(ids)
    assert [ids[i] for i in sorted(words.stop_ids)] == sorted(tokenizer.stop_ids)
    for index in range(300):
        text = "".join(text for text, _ in corpus.document(settings, index))
        few = words.encode(text)
        assert [ids[i] for i in few] == tokenizer.encode(text)
        assert words.decode(few) == text == tokenizer.decode(tokenizer.encode(text))
    tokens, kept = jnp.array([few]), jnp.array(ids)
    inputs = jnp.arange(len(few))[None], jnp.ones_like(tokens)
    got = small.logits(small.hidden(tokens, *inputs))
    whole = model.logits(model.hidden(kept[tokens], *inputs))
    np.testing.assert_allclose(got, whole[..., kept], rtol=1e-6, atol=1e-6)


def test_a_cut_model_is_put_back(gemma):
    model, tokenizer, _ = weights.load(gemma)
    ids = [*tokenizer.special_ids, 300, 7, 290]
    small = vocabulary.cut(model, ids)
    nnx.update(small, {"embed": small.embed[...] + 1})  # as if trained
    back = vocabulary.put_back(small, model, ids)
    rest = np.setdiff1d(np.arange(model.config.vocab), ids)
    np.testing.assert_array_equal(back.embed[...][rest], model.embed[...][rest])
    np.testing.assert_array_equal(back.embed[...][np.array(ids)], small.embed[...])
    assert back.config == model.config
    with pytest.raises(ValueError, match="each piece once"):
        vocabulary.cut(model, [1, 1])
    with pytest.raises(ValueError, match="each piece once"):
        vocabulary.cut(model, [model.config.vocab])
    with pytest.raises(ValueError, match="keeps <pad>"):
        tokenizer.subset([5, 6])
    with pytest.raises(ValueError, match="in bytes"):
        tokenizer.subset([*tokenizer.special_ids, tokenizer.piece_id("<0x41>")])


WHOLE = pytest.param({"lora": 0, "cut": False, "dtype": "float32"}, marks=pytest.mark.slow)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, WHOLE])
def test_a_cold_start_resumes_bit_for_bit(gemma, tmp_path, changes):
    settings = dataclasses.replace(cold(gemma), **changes)
    whole = list(pretrain.pretrain(settings, tmp_path / "whole"))
    assert whole[-1]["loss"] < whole[0]["loss"]
    for stop in (1, 3):  # before a checkpoint, and past one
        with closing(pretrain.pretrain(settings, tmp_path / "parts")) as run:
            list(itertools.islice(run, stop))
    parts = list(pretrain.pretrain(settings, tmp_path / "parts"))
    assert untimed(whole)[-len(parts) :] == untimed(parts)
    kept = [train.read_rows(tmp_path / x / "metrics.jsonl") for x in ("whole", "parts")]
    assert untimed(kept[0]) == untimed(kept[1])
    kept = [(tmp_path / x / "model.safetensors").read_bytes() for x in ("whole", "parts")]
    assert kept[0] == kept[1]
    assert list(pretrain.pretrain(settings, tmp_path / "parts")) == [], "it is finished"
    with pytest.raises(ValueError, match="search: 0.16 -> 0.3"):
        next(pretrain.pretrain(dataclasses.replace(settings, search=0.3), tmp_path / "parts"))


@pytest.mark.slow
def test_a_base_is_made_again_from_its_adapters(gemma, tmp_path):
    """The few MB that a cold start leaves are enough: no step, and the same base but for rounding.

    And `remat` changes nothing but memory and time.
    """
    settings = dataclasses.replace(cold(gemma), steps=2, learning_rate=0.1)
    rows = list(pretrain.pretrain(settings, tmp_path / "base"))
    again = dataclasses.replace(
        settings, steps=0, adapters=str(tmp_path / "base" / "adapters.safetensors")
    )
    assert list(pretrain.pretrain(again, tmp_path / "again")) == []
    models = [weights.load(tmp_path / x)[0] for x in ("base", "again")]
    start = pretrain.begin(settings)[0]
    for name in ("q", "down"):
        before, one, other = (np.asarray(getattr(m.layers, name)[...]) for m in (start, *models))
        change = np.abs(one - before).max()
        assert change > 0.01
        np.testing.assert_allclose(other, one, rtol=0, atol=change / 50)
    kept = dataclasses.replace(settings, remat=True)
    assert [row["loss"] for row in pretrain.pretrain(kept, tmp_path / "remat")] == pytest.approx(
        [row["loss"] for row in rows], rel=1e-5
    )


@pytest.mark.slow
def test_a_cold_start_then_grpo(gemma, tmp_path):
    """Two steps of each, as the presets do them, on the small Gemma."""
    settings = dataclasses.replace(cold(gemma), steps=2)
    list(pretrain.pretrain(settings, tmp_path / "base"))
    model, tokenizer, config = weights.load(tmp_path / "base")
    assert config.vocab == tokenizer.vocab_size < 100
    run = dataclasses.replace(
        SETTINGS["gemma3-270m-cpu"],
        model=str(tmp_path / "base"),
        steps=2,
        prompts=2,
        group=4,
        completion_len=24,
        eval_puzzles=4,
        eval_every=2,
        micro_batch=4,
        lora=2,
        prompt_len=24,
    )
    rows = list(train.train(run, tmp_path / "run"))
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert "heldout_accuracy" in rows[0] and np.isfinite(rows[2]["grad_norm"])


@pytest.mark.slow
def test_training_that_diverges_ends_and_keeps_what_is_finite(gemma, tmp_path, capsys):
    """As GRPO does: a step without finite gradients is left out, the third in a row the last."""
    # The first step warms up at rate 0, the second throws the parameters far away.
    changes = ["steps=9", "checkpoint_every=1", "learning_rate=1e30", "warmup=1", "lora=4"]
    changes += [f"model={gemma}", "rows=2", "row_len=128"]
    flags = [flag for change in changes for flag in ("--set", change)]
    with pytest.raises(SystemExit) as ended:
        pretrain.main(["--preset", "gemma3-270m-cpu", *flags, "--out", str(tmp_path)])
    assert ended.value.code == 2
    assert re.search("Step 5: .* lower learning_rate", capsys.readouterr().err)
    rows = train.read_rows(tmp_path / "metrics.jsonl")
    assert [row.get("skipped_updates", 0) for row in rows] == [0, 0, 1, 1, 1]
    assert not (tmp_path / "model.safetensors").exists()
    kept = [folder.name for folder in (tmp_path / "checkpoints").glob("[0-9]*")]
    assert kept and "5" not in kept


def test_a_model_with_nan_is_refused(gemma, tmp_path):
    """By its tensor's name, before anything is trained from it."""
    model, tokenizer, _ = weights.load(gemma)
    damaged = model.layers.down[...].at[1, 2, 3].set(jnp.nan)
    nnx.update(model, {"layers": {"down": damaged}})
    export.save_hf(model, tmp_path, tokenizer)
    with pytest.raises(ValueError, match="layers/down holds NaN or infinity"):
        weights.load(tmp_path)


def test_bad_settings_are_a_sentence(tmp_path, capsys):
    for bad, said in {
        "stps=3": "Unrecognized options: --stps=3; perhaps you meant --steps",
        "cut=True": "cut=True needs a model",
        "rows=0": "rows is 0",
        "adapters=x": "adapters are trained where lora",
        "template=long": "template is 'long'",
        "model=nowhere": "nowhere is no folder",
    }.items():
        with pytest.raises(SystemExit) as ended:
            pretrain.main(["--out", str(tmp_path / "x"), "--set", bad])
        assert ended.value.code == 2
        error = capsys.readouterr().err
        assert said in error and "Traceback" not in error


def test_a_model_of_its_own_shape_begins(tmp_path):
    """The small one: its own language, and numbers that start as waves; written and read again."""
    small = PRETRAINING["tinyzero-small"]
    model, tokenizer = pretrain.begin(small)
    assert model.config == MODELS["small"] and tokenizer.vocab_size == MODELS["small"].vocab
    assert shape("tinyzero-small") == MODELS["small"]
    plain, _ = pretrain.begin(dataclasses.replace(small, waves=False))
    differs = np.asarray(model.embed[...] != plain.embed[...]).any(axis=1)
    assert sorted(np.flatnonzero(differs)) == sorted(tokenizer.numbers().values())
    export.save_hf(model, tmp_path / "small", tokenizer)
    again, words, config = weights.load(tmp_path / "small")
    assert config == MODELS["small"] and words.numbers() == tokenizer.numbers()
    np.testing.assert_array_equal(again.embed[...], model.embed[...])
    tiny, words = pretrain.begin(TINY)
    assert tiny.config == MODELS["tiny"] and words.vocab_size == TOKENIZER.vocab_size
