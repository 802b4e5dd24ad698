"""Presets: shapes against the models built from them, settings against nonsense."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from aha_lib import presets
from aha_lib.model.gemma import Gemma
from aha_lib.presets import MODELS, ModelConfig, Pretraining, Settings
from aha_lib.rl import grpo


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_those_of_the_model(name):
    model = nnx.eval_shape(lambda: Gemma(MODELS[name], rngs=nnx.Rngs(0)))
    sizes = [np.prod(x.shape) for x in jax.tree.leaves(nnx.state(model, nnx.Param))]
    assert MODELS[name].parameters == sum(sizes)


@pytest.mark.parametrize(
    ("name", "published"),
    [("gemma3-270m", 268_098_176), ("gemma3-1b", 999_885_952), ("gemma2-2b", 2_614_341_888)],
)
def test_parameters_are_those_published(name, published):
    padding = (MODELS[name].vocab - 256_000) * MODELS[name].width if name == "gemma2-2b" else 0
    assert MODELS[name].parameters - padding == published


def test_generations():
    assert [MODELS[n].generation for n in ("gemma-2b", "gemma2-2b", "gemma3-1b", "tiny")] == [
        1,
        2,
        3,
        3,
    ]
    assert 5e5 < MODELS["tiny"].parameters < 1e6


def test_impossible_shapes():
    shape = dict(vocab=8, layers=1, width=8, head_dim=4, ff=8)
    with pytest.raises(ValueError, match="3 heads cannot share 2 KV heads"):
        ModelConfig(heads=3, kv_heads=2, **shape)
    with pytest.raises(ValueError, match="window"):
        ModelConfig(heads=2, kv_heads=1, global_every=2, **shape)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", -1),
        ("group", 1),
        ("prompts", 0),
        ("eval_every", 0),
        ("checkpoint_every", 0),
        ("eval_puzzles", 0),
        ("micro_batch", 0),
        ("completion_len", 0),
        ("temperature", 0.0),
        ("temperature", -1.0),
        ("learning_rate", -1e-3),
        ("learning_rate", float("nan")),
        ("kl", float("inf")),
        ("clip_low", 1.5),
        ("decay", -0.1),
        ("warmup", -1),
        ("updates", 0),
        ("puzzles", "sudoku"),
        ("template", "chat"),
        ("objective", "ppo"),
        ("norm", "batch"),
        ("hours", -1.0),
        ("checkpoint_minutes", float("nan")),
        ("tracker", "paper"),
        ("seed", -1),
        ("seed", 2**32),
        ("overlong", 1000),
    ],
)
def test_nonsense_is_named_in_one_sentence(name, value):
    with pytest.raises(ValueError) as error:
        dataclasses.replace(Settings(), **{name: value})
    told = str(error.value)
    assert told.startswith(f"{name} is ") and told.endswith(".") and "\n" not in told


@pytest.mark.parametrize(
    ("of", "name", "value", "allowed"),
    [
        (Settings, "steps", "5", "a whole number from 0 to 1000000000"),
        (Settings, "steps", 5.0, "a whole number from 0 to 1000000000"),
        (Settings, "steps", True, "a whole number from 0 to 1000000000"),
        (Settings, "remat", "false", "True or False"),
        (Settings, "remat", 0, "True or False"),
        (Settings, "kl", "0", "a number from 0 up"),
        (Settings, "kl", None, "a number from 0 up"),
        pytest.param(Settings, "clip_low", 10**400, "a number from 0 to 1", id="400 digits"),
        (Settings, "model", 3, "a text"),
        (Settings, "puzzles", ["tiny"], "one of " + ", ".join(presets.PUZZLES)),
        (Settings, "lora", 1_000_000_000, "a whole number from 0 to 4096"),
        (Settings, "warmup", 10**20, "a whole number from 0 to 1000000000"),
        (Pretraining, "rows", 10**9, "a whole number from 1 to 65536"),
    ],
)
def test_types_and_sizes_are_checked(of, name, value, allowed):
    with pytest.raises(ValueError) as error:
        of(**{name: value})
    assert str(error.value) == f"{name} is {value!r}: it has to be {allowed}."


def test_numbers_of_numpy_and_whole_ones_are_welcome():
    given = dict(steps=np.int64(3), kl=0, learning_rate=np.float32(0.5), remat=np.bool_(False))
    settings = Settings(**given)
    assert settings == Settings(steps=3, kl=0.0, learning_rate=0.5, remat=False)
    assert json.loads(json.dumps(dataclasses.asdict(settings))) == dataclasses.asdict(settings)
    assert {type(getattr(settings, name)) for name in given} == {int, float, bool}


def test_adapters_need_a_model():
    with pytest.raises(ValueError, match="^lora is 8: adapters need a model to stand on"):
        Pretraining(lora=8)
    assert Pretraining(lora=8, model="gemma3-270m").lora == 8


def test_every_number_and_every_word_says_what_it_may_be():
    """At the field itself, in the text that the command line's help shows too."""
    free = {"model", "adapters", "preset", "task", "cold_start"}  # files, presets and classes
    for one in [*dataclasses.fields(Settings), *dataclasses.fields(Pretraining)]:
        allowed, shown = one.metadata["allowed"], one.metadata["help"]
        assert (allowed is None) == (one.type is bool or one.name in free), one.name
        assert allowed is None or (one.default in allowed and shown.endswith(f"; {allowed}"))
        assert len(shown) > len(one.name) and "\n" not in shown


def test_the_page_of_settings(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent / "benchmarks")
    import settings_page

    text = settings_page.page()
    assert settings_page.PAGE.read_text() == text, "run python tests/benchmarks/settings_page.py"
    for one in [*dataclasses.fields(Settings), *dataclasses.fields(Pretraining)]:
        assert f"| `{one.name}` | " in text
    for name in [*presets.SETTINGS, *presets.PRETRAINING]:
        assert f"| `{name}` | " in text


def test_controls_differ_in_habits_alone():
    tiny = presets.PRETRAINING["tiny"]
    for name in ("tiny-no-search", "tiny-jumps"):
        control = presets.PRETRAINING[name]
        assert sum(control.shares.values()) == pytest.approx(sum(tiny.shares.values()))
        assert control.search == 0 and control.drill == tiny.drill
        same = dataclasses.replace(control, preset="tiny", **tiny.shares)
        assert same == tiny and presets.shape(name) == MODELS["tiny"]


def test_every_preset_makes_one_update_per_batch():
    """So its ratios are 1 and its clip is idle, as notebooks 04 and 05 tell."""
    assert {settings.updates for settings in presets.SETTINGS.values()} == {1}


def test_variants_and_presets_are_valid_settings():
    for changes in presets.VARIANTS.values():
        Settings(**changes)
    for name, settings in {**presets.SETTINGS, **presets.PRETRAINING}.items():
        assert settings.preset == name
    for settings in presets.SETTINGS.values():
        grpo.optimizer(settings).init({"w": np.zeros(2)})
