"""A model out into a folder that others read: Hugging Face's files, or Kaggle's Orbax checkpoint.

What is written is read back by `weights.load`, bit for bit. Knows nothing of training or of
Countdown; checkpoints of a run (optimizer, step) are written elsewhere.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx

from aha_lib import devices
from aha_lib.model import layouts, lora, tokenizer_json
from aha_lib.model.files import write_safetensors
from aha_lib.model.gemma import Gemma
from aha_lib.model.tokenizer import Tokenizer
from aha_lib.model.weights import MOST_PADDING, parameters_by_name
from aha_lib.presets import ModelConfig


def save_hf(model: Gemma, folder: str | Path, tokenizer: Tokenizer | None = None) -> None:
    """Write what transformers 4 and 5 and `weights.load` read: weights, shape, tokenizer.

    `model.safetensors` and `config.json`; with a tokenizer also `tokenizer.model`,
    `tokenizer.json`, `tokenizer_config.json` (a chat template, if the vocabulary has turns) and
    `generation_config.json` (all stop ids). Parameters keep their dtype; rows of the embedding
    that no token has are left out. The host's memory must have room for the parameters. Raises
    ValueError, before anything is written, for a model with adapters, for a shape that
    transformers' Gemma cannot have, for another model's tokenizer, and where the folder holds a
    checkpoint in several files. Of several hosts all call it, and the first writes.
    """
    folder = Path(folder)
    config = dataclasses.replace(
        model.config, vocab=model.config.vocab - model.config.padding, padding=0
    )
    layouts.check_expressible(config)
    _refuse_shards(folder)
    content = layouts.to_config_json(config)
    content["dtype"] = str(model.embed.dtype)
    content["torch_dtype"] = content["dtype"]  # as transformers before 4.56 calls it
    texts = {}
    if tokenizer:
        _check_tokenizer(tokenizer, config)
        ids = _special_ids(tokenizer)
        content |= ids
        texts = {
            "tokenizer.json": tokenizer_json.tokenizer_json(tokenizer),
            "tokenizer_config.json": tokenizer_json.tokenizer_config(tokenizer),
            "generation_config.json": {**ids, "do_sample": False},
        }
    tensors = dict(_hf_tensors(model, config))
    if jax.process_index():  # of several hosts the first writes; all are asked for their parts
        return
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", content)
    for name, text in texts.items():
        _write_json(folder / name, text)
    if tokenizer:
        tokenizer.save(folder / "tokenizer.model")
    write_safetensors(tensors, folder / "model.safetensors", {"format": "pt"})


def save_kaggle(model: Gemma, folder: str | Path, tokenizer: Tokenizer | None = None) -> None:
    """Write Kaggle's flat Orbax layout, the checkpoint in `folder/weights`, as Gemma is published.

    `config.json` and, with a tokenizer, `tokenizer.model` go beside it. Parameters keep their
    dtype. Raises ValueError for a model with adapters, for another model's tokenizer, and where
    there is a checkpoint already.
    """
    folder = Path(folder)
    if tokenizer:
        _check_tokenizer(tokenizer, model.config)
    tree = _kaggle_tree(model)
    ocp.PyTreeCheckpointer().save(epath.Path(folder).resolve() / "weights", tree)
    _write_json(folder / "config.json", layouts.to_config_json(model.config))
    if tokenizer:
        tokenizer.save(folder / "tokenizer.model")


def _special_ids(tokenizer: Tokenizer) -> dict:
    stops = sorted(tokenizer.stop_ids)
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": stops if len(stops) > 1 else stops[0],
        "pad_token_id": tokenizer.pad_id,
    }


def _write_json(path: Path, content: dict) -> None:
    # Half a million merges, a line for each, would double the largest of the files.
    indent = None if path.name == "tokenizer.json" else 2
    text = json.dumps(content, indent=indent, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def _check_tokenizer(tokenizer: Tokenizer, config: ModelConfig) -> None:
    padding = config.vocab - tokenizer.vocab_size
    if not 0 <= padding <= MOST_PADDING:
        raise ValueError(
            f"The tokenizer has {tokenizer.vocab_size} pieces, the embedding {config.vocab} rows: "
            "give the tokenizer that the model was trained with."
        )


def _refuse_shards(folder: Path) -> None:
    """Raises ValueError where a checkpoint in several files would be left beside the new one."""
    shards = [*folder.glob("*.safetensors.index.json"), *folder.glob("model-*.safetensors")]
    if shards:
        raise ValueError(
            f"{folder} holds a checkpoint in several files ({shards[0].name} is one): the new "
            "model would lie among them. Remove them, or save to another folder."
        )


def _parameters(model: Gemma) -> dict[str, np.ndarray]:
    """The parameters by name, on the host; ValueError where some have no place in a checkpoint."""
    lora.check_plain(model)
    parameters = parameters_by_name(nnx.state(model, nnx.Param))
    return {name: devices.to_host(value) for name, value in parameters.items()}


def _layer_tensors(
    parameters: dict[str, np.ndarray], config: ModelConfig, *, flax: bool
) -> Iterator[tuple[int, str, list[np.ndarray]]]:
    """Of every layer its index and, of each tensor on disk, name and parts with the axes there."""
    for name, tensor in layouts.layer_tensors(config, flax=flax).items():
        ours = layouts.NAMES[tensor.parts[0]].axes
        order = [ours.index(axis) for axis in tensor.axes]
        for layer in range(config.layers):
            yield layer, name, [parameters[part][layer].transpose(order) for part in tensor.parts]


def _hf_tensors(model: Gemma, config: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
    parameters = _parameters(model)
    yield "model.embed_tokens.weight", np.ascontiguousarray(parameters["embed"][: config.vocab])
    yield "model.norm.weight", np.ascontiguousarray(parameters["final_norm"])
    for layer, name, (value,) in _layer_tensors(parameters, config, flax=False):
        if value.ndim == 3:  # heads and their size are one axis there: the inputs' or the outputs'
            is_input = name == "self_attn.o_proj"
            value = value.reshape((len(value), -1) if is_input else (-1, value.shape[2]))
        yield f"model.layers.{layer}.{name}.weight", np.ascontiguousarray(value)


def _kaggle_tree(model: Gemma) -> dict[str, dict[str, np.ndarray]]:
    parameters = _parameters(model)
    tree = {
        "transformer/embedder": {"input_embedding": parameters["embed"]},
        "transformer/final_norm": {"scale": parameters["final_norm"]},
    }
    for layer, name, parts in _layer_tensors(parameters, model.config, flax=True):
        value = np.stack(parts) if len(parts) > 1 else parts[0]
        tree[f"transformer/layer_{layer}/{name}"] = {"scale" if "norm" in name else "w": value}
    return tree
