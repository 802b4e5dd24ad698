"""What transformers' `config.json` calls the shape of a Gemma.

Dictionaries in and out. Knows nothing of files or of weights.
"""

from dataclasses import replace

from aha_lib.presets import ModelConfig

# What a config.json of transformers calls the fields of ModelConfig
_JSON = {
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


def from_config_json(said: dict, base: ModelConfig) -> ModelConfig:
    """The shape that a `config.json` of transformers 4 or 5 describes; `base` where it is silent.

    Of a multimodal model it is the text part. Raises ValueError for another kind of model than
    `base`, another vocabulary, or layers in an order that no Gemma has.
    """
    said = dict(said.get("text_config", said))
    rope = said.get("rope_parameters") or {}  # of transformers 5; 4 has a key for each
    far, near = rope.get("full_attention", rope), rope.get("sliding_attention", rope)
    types = said.get("layer_types") or []
    if "sliding_attention" in types:
        said["sliding_window_pattern"] = [*types, "full_attention"].index("full_attention") + 1
    fields = {
        field: type(getattr(base, field))(said[key])
        for key, field in _JSON.items()
        if said.get(key) is not None
    }
    if far:
        fields["rope_base"], fields["rope_base_local"] = far["rope_theta"], near["rope_theta"]
        fields["rope_scale"] = far.get("factor", 1.0)
    if fields.get("query_scalar") == fields.get("head_dim", base.head_dim):
        fields["query_scalar"] = 0.0
    config = replace(base, **fields)
    for key in ("model_type", "vocab_size", "layer_types"):
        if said.get(key, known := to_config_json(config)[key]) != known:
            raise ValueError(
                f"config.json says {key} is {said[key]}: supported are Gemma 1, 2 and "
                f"3, and here {known}."
            )
    return config


def to_config_json(c: ModelConfig) -> dict:
    """The `config.json` of `c`, in the words of transformers 5."""
    types = ["sliding" if (i + 1) % c.global_every else "full" for i in range(c.layers)]
    far = {"rope_type": "default", "rope_theta": c.rope_base}
    if c.rope_scale != 1:
        far |= {"rope_type": "linear", "factor": c.rope_scale}
    near = {"rope_type": "default", "rope_theta": c.rope_base_local}
    return {key: getattr(c, field) or None for key, field in _JSON.items()} | {
        "architectures": [("Gemma", "Gemma2", "Gemma3")[c.generation - 1] + "ForCausalLM"],
        "model_type": ("gemma", "gemma2", "gemma3_text")[c.generation - 1],
        "layer_types": [f"{t}_attention" for t in types],
        "vocab_size": c.vocab,
        "query_pre_attn_scalar": int(c.query_scalar) or c.head_dim,
        "rope_parameters": {"full_attention": far, "sliding_attention": near} if c.qk_norm else far,
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }
