"""How others write a Gemma down: names and axes of its tensors, and the words of a `config.json`.

Hugging Face's (transformers 4 and 5) and Flax's, in which Kaggle has it. Strings and dictionaries
in and out. Knows nothing of files, arrays or devices.
"""

from dataclasses import replace
from typing import NamedTuple

from aha_lib.presets import MODELS, ModelConfig


class TensorNames(NamedTuple):
    """A parameter of a layer here and elsewhere. An axis is a letter: d width, n heads (or KV
    heads), h head size, f feed-forward. Hugging Face joins n and h; a Flax name that several
    parameters have is one tensor, with an axis in front that tells them apart."""

    axes: str
    hf: str
    hf_axes: str
    flax: str
    flax_axes: str


class DiskTensor(NamedTuple):
    """A tensor of a layer as a checkpoint has it."""

    parts: tuple[str, ...]  # our parameters in it; several of them lie along an axis in front
    axes: str  # of each part


NAMES = {
    "q": TensorNames("dnh", "self_attn.q_proj", "nhd", "attn/q_einsum", "ndh"),
    "k": TensorNames("dnh", "self_attn.k_proj", "nhd", "attn/kv_einsum", "ndh"),
    "v": TensorNames("dnh", "self_attn.v_proj", "nhd", "attn/kv_einsum", "ndh"),
    "o": TensorNames("nhd", "self_attn.o_proj", "dnh", "attn/attn_vec_einsum", "nhd"),
    "gate": TensorNames("df", "mlp.gate_proj", "fd", "mlp/gating_einsum", "fd"),
    "up": TensorNames("df", "mlp.up_proj", "fd", "mlp/gating_einsum", "fd"),
    "down": TensorNames("fd", "mlp.down_proj", "df", "mlp/linear", "fd"),
    "q_norm": TensorNames("d", "self_attn.q_norm", "d", "attn/_query_norm", "d"),
    "k_norm": TensorNames("d", "self_attn.k_norm", "d", "attn/_key_norm", "d"),
    "pre_attn_norm": TensorNames("d", "input_layernorm", "d", "pre_attention_norm", "d"),
    "post_attn_norm": TensorNames("d", "post_attention_layernorm", "d", "post_attention_norm", "d"),
    "pre_ff_norm": TensorNames("d", "pre_feedforward_layernorm", "d", "pre_ffw_norm", "d"),
    "post_ff_norm": TensorNames("d", "post_feedforward_layernorm", "d", "post_ffw_norm", "d"),
}


def layer_tensors(config: ModelConfig, *, flax: bool) -> dict[str, DiskTensor]:
    """The tensors of one layer by their names within it, in Flax's layout or in Hugging Face's."""
    tensors: dict[str, DiskTensor] = {}
    for name, names in NAMES.items():
        if not _has(config, name):
            continue
        where, axes = (names.flax, names.flax_axes) if flax else (names.hf, names.hf_axes)
        if flax and name in ("q", "k", "v") and config.heads == config.kv_heads:
            where = "attn/qkv_einsum"
        if flax and name in ("gate", "up") and _gates_by_width(config):
            axes = "df"
        if not flax and name == "pre_ff_norm" and config.generation == 1:
            where = "post_attention_layernorm"  # Gemma 2 gave this name to another norm
        before = tensors[where].parts if where in tensors else ()
        tensors[where] = DiskTensor((*before, name), axes)
    return tensors


def _has(config: ModelConfig, name: str) -> bool:
    if name in ("q_norm", "k_norm"):
        return config.qk_norm
    if name in ("post_attn_norm", "post_ff_norm"):
        return config.post_norms
    return True


def _gates_by_width(config: ModelConfig) -> bool:
    """Whether Flax has the gates' axes the other way round: Gemma 1 and Gemma 2 2B."""
    least_width = {1: 3584, 2: 2400, 3: 0}[config.generation]
    return config.width < least_width


# What a config.json of transformers calls the fields of ModelConfig.
JSON_FIELDS = {
    "num_hidden_layers": "layers",
    "hidden_size": "width",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "head_dim": "head_dim",
    "intermediate_size": "ff",
    "sliding_window": "window",
    "_sliding_window_pattern": "global_every",
    "sliding_window_pattern": "global_every",
    "rope_theta": "rope_base",
    "rope_local_base_freq": "rope_base_local",
    "query_pre_attn_scalar": "query_scalar",
    "attn_logit_softcapping": "attn_softcap",
    "final_logit_softcapping": "final_softcap",
    "rms_norm_eps": "norm_eps",
}
# Of these null means none. Null elsewhere is as if the key were not there.
NONE_IS_ZERO = ("sliding_window", "attn_logit_softcapping", "final_logit_softcapping")
# What transformers' Gemma 1 does not have: it passes over such keys.
SINCE_GEMMA_2 = {"window", "global_every", "query_scalar", "attn_softcap", "final_softcap"}
ACTIVATION = "gelu_pytorch_tanh"
# Keys of which one value alone is computed here, and what every other one means.
ONLY = {
    "tie_word_embeddings": (True, "the logits have weights of their own"),
    "use_bidirectional_attention": (False, "tokens attend to later tokens"),
    "attention_bias": (False, "the projections have biases"),
}
# The defaults of transformers' configurations, for what the config.json of a shape that is no
# preset's leaves out: files in which only the differences stand are common.
DEFAULTS = {
    1: replace(MODELS["gemma-7b"], vocab=256_000, padding=0),
    2: replace(MODELS["gemma2-2b"], vocab=256_000, padding=0, query_scalar=256.0),
    3: replace(
        MODELS["gemma3-4b"],
        padding=0,
        layers=26,
        width=2304,
        ff=9216,
        window=4096,
        rope_scale=1.0,
        query_scalar=256.0,
    ),
}


def from_config_json(content: dict, base: ModelConfig) -> ModelConfig:
    """The shape that a `config.json` of transformers 4 or 5 describes; `base` where it is silent.

    Of a multimodal model it is the text part. Raises ValueError for another kind of model than
    `base`, another vocabulary, layers in an order that no Gemma has, and for all that this
    package's Gemma does not compute: RoPE scaling that is not linear, another activation, logits
    from weights of their own, biases, attention to later tokens.
    """
    text = content.get("text_config", content)
    if not isinstance(text, dict):
        raise ValueError(f"text_config is {text!r}, not an object.")
    _refuse_other_models(content | text)
    fields = _plain_fields(text, base) | _rope_fields(text, base)
    config = replace(base, **fields)
    if config.query_scalar == config.head_dim:
        config = replace(config, query_scalar=0.0)
    known = to_config_json(config)
    for key in ("model_type", "vocab_size", "layer_types"):
        if text.get(key) not in (None, known[key]):
            raise ValueError(
                f"{key} is {text[key]}: supported are Gemma 1, 2 and 3, and here {known[key]}."
            )
    return config


def to_config_json(config: ModelConfig) -> dict:
    """The `config.json` of a shape, in the words of transformers 5 and, where they differ, of 4."""
    generation = config.generation
    scaling = None
    far = {"rope_type": "default", "rope_theta": config.rope_base}
    near = {"rope_type": "default", "rope_theta": config.rope_base_local}
    if config.rope_scale != 1:
        scaling = {"rope_type": "linear", "factor": config.rope_scale}
        far |= scaling
    layer_types = []
    for layer in range(1, config.layers + 1):
        is_global = layer % config.global_every == 0
        layer_types.append("full_attention" if is_global else "sliding_attention")
    content = {key: getattr(config, field) or None for key, field in JSON_FIELDS.items()}
    return content | {
        "architectures": [("Gemma", "Gemma2", "Gemma3")[generation - 1] + "ForCausalLM"],
        "model_type": ("gemma", "gemma2", "gemma3_text")[generation - 1],
        "layer_types": layer_types,
        "vocab_size": config.vocab,
        "query_pre_attn_scalar": int(config.query_scalar) or config.head_dim,
        "rope_scaling": scaling,  # as transformers 4 has it
        "rope_parameters": (
            {"full_attention": far, "sliding_attention": near} if generation == 3 else far
        ),
        "hidden_activation": ACTIVATION,
        "hidden_act": ACTIVATION,  # as Gemma 1 has it
        "tie_word_embeddings": True,
    }


def check_expressible(config: ModelConfig) -> None:
    """Raises ValueError for a shape that transformers' Gemma of that generation cannot have."""
    lacks = []
    if config.generation == 1:
        plain = DEFAULTS[1]
        lacks += [name for name in SINCE_GEMMA_2 if getattr(config, name) != getattr(plain, name)]
    if config.generation < 3 and config.global_every > 1:  # one RoPE for all layers
        lacks += ["rope_scale"] * (config.rope_scale != 1)
        lacks += ["rope_base_local"] * (config.rope_base_local != config.rope_base)
    if config.query_scalar != int(config.query_scalar):
        lacks.append("query_scalar")
    if lacks:
        values = ", ".join(f"{name}={getattr(config, name)}" for name in sorted(lacks))
        raise ValueError(
            f"transformers' Gemma {config.generation} cannot have {values}: save_kaggle can."
        )


def _refuse_other_models(content: dict) -> None:
    for key, (value, meaning) in ONLY.items():
        if content.get(key) not in (None, value):
            raise ValueError(
                f"{key} is {content[key]}, so {meaning}: this package's Gemma has {value}."
            )
    # Gemma 1 was published as "gelu"; its authors meant, and put in later, tanh's approximation.
    known = [None, ACTIVATION]
    if content.get("model_type") == "gemma":
        known.append("gelu")
    for key in ("hidden_activation", "hidden_act"):
        if content.get(key) not in known:
            raise ValueError(f"{key} is {content[key]}: this package's Gemma has {ACTIVATION}.")


def _plain_fields(text: dict, base: ModelConfig) -> dict:
    """The fields that have a key of their own, and the pattern of layers if each is listed."""
    fields = {}
    for key, field in JSON_FIELDS.items():
        value = text.get(key)
        if value is None and key in NONE_IS_ZERO and key in text:
            value = 0
        if value is not None:
            fields[field] = _number(key, value, type(getattr(base, field)))
    types = text.get("layer_types")
    if types:
        fields["global_every"] = [*types, "full_attention"].index("full_attention") + 1
    if base.generation == 1:
        fields = {name: fields[name] for name in fields.keys() - SINCE_GEMMA_2}
    return fields


def _rope_fields(text: dict, base: ModelConfig) -> dict:
    """What is said of RoPE.

    By transformers 5 in `rope_parameters`, for Gemma 3 an object for each kind of layer, by
    transformers 4 in `rope_theta`, `rope_local_base_freq` and `rope_scaling`.
    """
    parameters = _object(text, "rope_parameters")
    far = _object(parameters, "full_attention")
    near = _object(parameters, "sliding_attention")
    if not far and not near:
        far = parameters
    if "rope_type" not in far:
        far = _object(text, "rope_scaling") | far
    fields = {}
    if "rope_parameters" in text or "rope_scaling" in text:
        fields["rope_scale"] = _linear_factor(far)
    far_base = far.get("rope_theta", text.get("rope_theta"))
    near_base = near.get("rope_theta", text.get("rope_local_base_freq"))
    one_for_all = base.generation < 3
    scale_near = fields.get("rope_scale", 1.0) if one_for_all else _linear_factor(near)
    if scale_near != 1 and base.global_every > 1:
        raise ValueError("RoPE is scaled in local layers, which this package's Gemma cannot do.")
    if one_for_all:
        near_base = far_base
    if far_base is not None:
        fields["rope_base"] = _number("rope_theta", far_base, float)
    if near_base is not None:
        fields["rope_base_local"] = _number("rope_theta of local layers", near_base, float)
    return fields


def _linear_factor(rope: dict) -> float:
    """By how much positions are divided; ValueError for any other way of scaling them."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return 1.0
    if kind != "linear":
        raise ValueError(f"RoPE is scaled by {kind!r}: supported is 'linear', and 'default', none.")
    return _number("RoPE's factor", rope.get("factor"), float)


def _object(content: dict, key: str) -> dict:
    value = content.get(key)
    if not isinstance(value, dict | None):
        raise ValueError(f"{key} is {value!r}, not an object.")
    return value or {}


def _number(key: str, value, kind: type) -> int | float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or kind(value) != value:
        raise ValueError(f"{key} is {value!r}, not a {'whole ' * (kind is int)}number.")
    return kind(value)
