"""A config.json of transformers in both spellings: read, written, refused where it is not ours."""

import dataclasses

import pytest

from aha_lib.model import layouts
from aha_lib.presets import MODELS

# A shape that is no preset's: the nearest preset, 4B, divides its positions by 8.
GEMMA3 = dataclasses.replace(MODELS["gemma3-4b"], layers=7, width=96)
GEMMA2 = dataclasses.replace(MODELS["gemma2-2b"], layers=4, width=96)
LINEAR = {"rope_type": "linear", "factor": 4.0}
PLAIN = {"rope_type": "default", "rope_theta": 10_000.0}


def linear(**more):
    return {"full_attention": {"rope_theta": 1e6, **LINEAR}, "sliding_attention": PLAIN, **more}


@pytest.mark.parametrize(
    "content, scale",
    [
        ({"rope_scaling": None}, 1.0),
        ({"rope_scaling": LINEAR}, 4.0),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 4.0),
        ({"rope_scaling": {"rope_type": "default"}}, 1.0),
        ({"rope_parameters": linear()}, 4.0),
        ({"rope_parameters": linear(full_attention={"rope_type": "default"})}, 1.0),
        ({"rope_parameters": linear(), "rope_scaling": LINEAR}, 4.0),
        ({}, 8.0),
    ],
)
def test_scaled_positions_in_both_spellings(content, scale):
    config = layouts.from_config_json(content, GEMMA3)
    assert config.rope_scale == scale
    assert (config.rope_base, config.rope_base_local) == (1e6, 1e4), "no theta: as it was"


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_is_read(name):
    """Without its padding; from what is there alone, not from what the preset knows."""
    config = dataclasses.replace(MODELS[name], padding=0)
    other = dataclasses.replace(
        layouts.DEFAULTS[config.generation], vocab=config.vocab, rope_scale=3.0
    )
    content = layouts.to_config_json(config)
    assert layouts.from_config_json(content, other) == config
    if config.rope_scale != 1:
        scaling = {"rope_type": "linear", "factor": config.rope_scale}
        assert content["rope_scaling"] == scaling, "the word of transformers 4"
        assert content["rope_parameters"]["full_attention"] == {"rope_theta": 1e6, **scaling}
    of_4 = {key: value for key, value in content.items() if key != "rope_parameters"}
    assert layouts.from_config_json(of_4, other) == config
    of_5 = {key: value for key, value in content.items() if not key.startswith("rope_")}
    of_5["rope_parameters"] = content["rope_parameters"]
    assert layouts.from_config_json(of_5, other) == config


@pytest.mark.parametrize("kind", ["yarn", "dynamic", "llama3", "longrope"])
@pytest.mark.parametrize("base", [GEMMA2, GEMMA3])
def test_other_scalings_are_refused(kind, base):
    scaling = {"rope_type": kind, "factor": 4.0}
    for content in (
        {"rope_scaling": scaling},
        {"rope_scaling": {"type": kind, "factor": 4.0}},
        {"rope_parameters": {"rope_theta": 1e4, **scaling}},
    ):
        with pytest.raises(ValueError, match=f"RoPE is scaled by '{kind}'"):
            layouts.from_config_json(content, base)


@pytest.mark.parametrize(
    "content, base",
    [
        ({"rope_parameters": linear(sliding_attention=LINEAR)}, GEMMA3),
        ({"rope_scaling": LINEAR}, GEMMA2),  # whose layers have one RoPE
    ],
)
def test_scaled_local_layers_are_refused(content, base):
    with pytest.raises(ValueError, match="RoPE is scaled in local layers"):
        layouts.from_config_json(content, base)


def test_one_base_for_all_layers_of_gemma_2():
    config = layouts.from_config_json({"rope_theta": 20_000.0}, GEMMA2)
    assert config.rope_base == config.rope_base_local == 20_000.0


def test_null_soft_caps_are_none():
    """Not the preset's 50 and 30."""
    content = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    config = layouts.from_config_json(content, GEMMA2)
    assert (config.attn_softcap, config.final_softcap) == (0.0, 0.0)
    silent = layouts.from_config_json({}, GEMMA2)
    assert (silent.attn_softcap, silent.final_softcap) == (50.0, 30.0)


@pytest.mark.parametrize(
    "content, message",
    [
        ({"tie_word_embeddings": False}, "the logits have weights of their own"),
        ({"use_bidirectional_attention": True}, "tokens attend to later tokens"),
        ({"attention_bias": True}, "the projections have biases"),
        ({"hidden_activation": "silu"}, "hidden_activation is silu"),
        ({"hidden_activation": "gelu"}, "hidden_activation is gelu"),
        ({"hidden_act": "relu"}, "hidden_act is relu"),
        ({"text_config": {}, "tie_word_embeddings": False}, "weights of their own"),
        ({"text_config": [1]}, "text_config is"),
        ({"rope_scaling": 4.0}, "rope_scaling is 4.0, not an object"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor is None, not a number"),
        ({"rope_theta": "high"}, "rope_theta is 'high', not a number"),
        ({"num_attention_heads": "eight"}, "num_attention_heads is 'eight', not a whole number"),
        ({"head_dim": 256.5}, "head_dim is 256.5, not a whole number"),
        ({"num_key_value_heads": 0}, "kv_heads is 0"),
        ({"model_type": "gemma3n_text"}, "model_type is gemma3n_text"),
    ],
)
def test_what_is_not_computed_is_refused(content, message):
    with pytest.raises(ValueError, match=message):
        layouts.from_config_json(content, GEMMA3)


def test_gemma_1s_old_name_of_its_activation():
    base = layouts.DEFAULTS[1]
    content = {"model_type": "gemma", "hidden_act": "gelu", "hidden_activation": None}
    assert layouts.from_config_json(content, base) == base


@pytest.mark.parametrize(
    "name, changes",
    [
        ("gemma-2b", dict(final_softcap=30.0)),
        ("gemma-2b", dict(global_every=2, window=8)),
        ("gemma2-2b", dict(rope_scale=2.0)),
        ("gemma2-2b", dict(rope_base=1e6)),
        ("gemma3-1b", dict(query_scalar=24.5)),
    ],
)
def test_shapes_that_transformers_lacks_are_not_written(name, changes):
    layouts.check_expressible(MODELS[name])
    with pytest.raises(ValueError, match="cannot have .*save_kaggle can"):
        layouts.check_expressible(dataclasses.replace(MODELS[name], **changes))
