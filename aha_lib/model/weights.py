"""A Gemma from outside to a sharded model: from Kaggle, Hugging Face or a folder, in two layouts.

Every tensor goes from disk to the devices with its sharding, a layer at a time, into the stacked
parameters: host memory never holds the model twice. Knows nothing of training or of Countdown;
checkpoints of a run (optimizer, step) are read elsewhere, and `export` writes what this reads.
"""

import dataclasses
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from etils import epath
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm.auto import tqdm

from aha_lib import devices
from aha_lib.model import download, files, finite, layouts
from aha_lib.model.gemma import Gemma, abstract
from aha_lib.model.tokenizer import TINY_PATH, WORDS, Tokenizer
from aha_lib.presets import MODELS, ModelConfig

# Preset -> Kaggle handle of its Flax weights ("-it": instruct). DeepMind has the same, such as
# gs://gemma-data/checkpoints/gemma3-1b-pt and gs://gemma-data/tokenizers/tokenizer_gemma3.model.
HANDLES = {
    "gemma-2b": "google/gemma/flax/2b",
    "gemma-7b": "google/gemma/flax/7b",
    "gemma2-2b": "google/gemma-2/flax/gemma2-2b",
    "gemma2-9b": "google/gemma-2/flax/gemma2-9b",
    "gemma3-270m": "google/gemma-3/flax/gemma-3-270m",
    "gemma3-1b": "google/gemma-3/flax/gemma3-1b",
    "gemma3-4b": "google/gemma-3/flax/gemma3-4b",
}
SHIPPED = {name: TINY_PATH.parents[1] / name for name in WORDS}  # with the package
MOST_PADDING = 128  # rows at most that an embedding has and its tokenizer does not: Gemma 1's, 2's

_EMBED = re.compile(r"(.*)(?:embed_tokens\.weight|embedder/input_embedding)")
_LAYER = re.compile(
    r"(?:layers?[._](\d+)|stacked_layers/attention_type_(\d+))[./]"
    r"(.+?)(?:[./](?:weight|w|scale))?"
)


class LayerNames(NamedTuple):
    """The tensors of a layer, or of several of a kind that are stacked in one checkpoint's way."""

    layers: list[int]  # whose parameters these tensors hold, in the order of a leading axis
    names: dict[str, str]  # full names in the checkpoint, by the names within a layer


class Checkpoint(NamedTuple):
    """The tensors in a folder's files that are a Gemma's."""

    files: files.CheckpointFiles
    embed: str
    final_norm: str
    layers: list[LayerNames]

    @property
    def depth(self) -> int:
        return sum(len(layer.layers) for layer in self.layers)


@devices.memory_errors("use a mesh of more devices, or param_dtype=jnp.bfloat16")
def load(
    source: str | Path,
    *,
    mesh: Mesh | None = None,
    dtype=jnp.float32,
    param_dtype=jnp.float32,
    tokenizer: str | Path | None = None,
) -> tuple[Gemma, Tokenizer, ModelConfig]:
    """A model from `source`, its arrays sharded over `mesh` (without one: on the first device).

    `source` is a model's name (those in `SHIPPED` come with the package, the others from Kaggle), a
    Kaggle handle, a model of Hugging Face as "hf:google/gemma-3-1b-pt" or
    "hf:google/gemma-3-1b-pt@main", or a local or `gs://` folder in Kaggle's or Hugging Face's
    layout. `dtype` is that of activations, `param_dtype` that of parameters. `tokenizer` is the
    path of a `tokenizer.model` that lies elsewhere. A shape that is no preset's needs a
    `config.json` in the folder. Raises ValueError or FileNotFoundError if it is no whole Gemma, or
    holds NaN or infinity, and what
    `download.folder_of` raises.
    """
    source = str({**SHIPPED, **HANDLES}.get(str(source), source))
    folder = epath.Path(download.folder_of(source))
    checkpoint = find_gemma(files.open_checkpoint(folder))
    config = recognise(checkpoint, [checkpoint.files.path, folder])
    beside = [place / "tokenizer.model" for place in (folder, checkpoint.files.path, folder.parent)]
    words, config = _load_tokenizer([epath.Path(tokenizer)] if tokenizer else beside, config)
    model = abstract(config, dtype=dtype, param_dtype=param_dtype)
    _fill(model, checkpoint, mesh or devices.make_mesh(jax.devices()[:1]))
    finite.refuse_nonfinite(model, folder)
    return model, words, config


def find_gemma(found: files.CheckpointFiles) -> Checkpoint:
    """Which tensors are a Gemma's embedding, last norm and layers; those of a vision tower are not.

    Raises ValueError where some are missing, unknown or quantised.
    """
    path, tensors = found.path, found.tensors
    matches = filter(None, map(_EMBED.fullmatch, tensors))
    match = next(matches, None)
    layers = _group_layers(tensors, match[1]) if match else []
    if not layers:
        raise ValueError(
            f"{path} has no embedding, or no layers, that are a Gemma's: {files.AGAIN}"
        )
    embed, prefix = match[0], match[1]  # a vision tower has another prefix
    final_norm = prefix + ("final_norm/scale" if found.is_orbax else "norm.weight")
    needed = [embed, final_norm]
    for layer in layers:
        needed += layer.names.values()
    for name in needed:
        if name not in tensors:
            raise ValueError(f"{path} lacks {name}: {files.AGAIN}")
        if not jnp.issubdtype(tensors[name].dtype, jnp.floating):
            raise ValueError(f"{name} in {path} is quantised: take the bfloat16 checkpoint.")
    return Checkpoint(found, embed, final_norm, layers)


def _group_layers(tensors, prefix: str) -> list[LayerNames]:
    groups: dict[tuple, dict[str, str]] = {}
    for name in tensors:
        match = _LAYER.fullmatch(name.removeprefix(prefix)) if name.startswith(prefix) else None
        if match:
            index, kind, leaf = match.groups()
            groups.setdefault((index, kind), {})[leaf] = name
    layers = []
    for (index, kind), names in groups.items():
        if kind is None:
            layers.append(LayerNames([int(index)], names))
        else:  # the layers of a kind are stacked: every len(groups)-th one
            repeats = tensors[next(iter(names.values()))].shape[0]
            layers.append(LayerNames([int(kind) + i * len(groups) for i in range(repeats)], names))
    return layers


def recognise(checkpoint: Checkpoint, places: Sequence[Path | epath.Path]) -> ModelConfig:
    """The shape of a checkpoint: the preset of its generation, depth and width, as the first
    `config.json` in `places` amends it; without a preset what that file says."""
    path = checkpoint.files.path
    vocab, width = checkpoint.files.tensors[checkpoint.embed].shape
    leaves = checkpoint.layers[0].names.keys()
    has_post_norms = bool(leaves & {"post_feedforward_layernorm", "post_ffw_norm"})
    has_qk_norm = bool(leaves & {"self_attn.q_norm", "attn/_query_norm"})
    generation = 1 + has_post_norms + has_qk_norm
    preset = None
    for config in MODELS.values():
        sizes = (config.generation, config.layers, config.width)
        if sizes == (generation, checkpoint.depth, width):
            preset = config
    base = dataclasses.replace(preset or layouts.DEFAULTS[generation], vocab=vocab)
    for place in places:
        file = place / "config.json"
        if file.exists():
            content = files.read_json(file)
            try:
                return layouts.from_config_json(content, base)
            except ValueError as error:
                raise ValueError(f"{file} cannot be used: {error}") from None
    if not preset:
        raise ValueError(
            f"{path} is a Gemma {generation} of {checkpoint.depth} layers and width {width}: "
            f"none of {', '.join(MODELS)}, so put a config.json there, as transformers writes it."
        )
    return base


def _load_tokenizer(places, config: ModelConfig) -> tuple[Tokenizer, ModelConfig]:
    """The tokenizer at the first of some paths, and the shape with the padding that it leaves."""
    found = [place for place in places if place.exists()]
    if not found:
        raise FileNotFoundError(
            f"{places[0].parent} has no {places[0].name}: give the path of one as tokenizer=…"
        )
    files.refuse_pointer(found[0])
    try:
        words = Tokenizer(found[0].read_bytes())
    except ValueError as error:
        raise ValueError(f"{found[0]} cannot be used: {error}") from None
    padding = config.vocab - words.vocab_size
    if not 0 <= padding <= MOST_PADDING:
        raise ValueError(
            f"{found[0]} has {words.vocab_size} pieces, the embedding {config.vocab} "
            "rows: this tokenizer belongs to another model."
        )
    return words, dataclasses.replace(config, padding=padding)


def parameters_by_name(state) -> dict:
    """A model's state, or its shardings, as one dictionary of layers' and other parameters."""
    pure = nnx.to_pure_dict(state)
    return pure.pop("layers") | pure


def _fill(model: Gemma, checkpoint: Checkpoint, mesh: Mesh) -> None:
    """Give the abstract model its arrays, the large embedding first and then layer by layer."""
    like = parameters_by_name(nnx.state(model))
    place = parameters_by_name(devices.shardings(model, mesh))
    path, depth = checkpoint.files.path, model.config.layers
    found = sorted(i for layer in checkpoint.layers for i in layer.layers)
    if found != list(range(depth)):
        raise ValueError(f"{path} lacks some of {depth} layers: {files.AGAIN}")
    ends = {}
    for name, source in (("embed", checkpoint.embed), ("final_norm", checkpoint.final_norm)):
        _check_shape(checkpoint, source, like[name].shape)
        tensor = checkpoint.files.read({source: place[name]})[source]
        ends[name] = tensor.astype(like[name].dtype)
        if name == "embed":
            _check_tied(checkpoint, tensor, place[name])
    stacks = _zeros({name: like[name] for name in like.keys() - ends.keys()}, place)
    for layer in tqdm(checkpoint.layers, "Loading layers", delay=2):
        sources = _plan_layer(checkpoint, layer, model.config, {n: stacks[n].shape for n in stacks})
        wanted = {}
        for source in sources:
            spec = _spec_on_disk(source, place[source.tensor.parts[0]].spec)
            wanted[source.name] = NamedSharding(mesh, spec)
        tensors = checkpoint.files.read(wanted)
        for source in sources:
            _put_parts(stacks, tensors[source.name], source, layer.layers, place)
    nnx.update(model, ends | {"layers": stacks})


class _Source(NamedTuple):
    """A tensor of a layer on disk, compared with what the model needs."""

    name: str
    tensor: layouts.DiskTensor
    leading: int  # axes in front of those of a parameter: layers of a stack, parts of a tensor
    joined: bool  # whether Hugging Face's axis n is n and h together


def _zeros(like: dict, place: dict) -> dict:
    make = partial(jax.tree.map, lambda x: jnp.zeros(x.shape, x.dtype), like)
    return jax.jit(make, out_shardings={name: place[name] for name in like})()


def _plan_layer(checkpoint, layer: LayerNames, config: ModelConfig, shapes) -> list[_Source]:
    """The tensors of a layer; ValueError where they are not those of the configuration."""
    path, is_orbax = checkpoint.files.path, checkpoint.files.is_orbax
    table = layouts.layer_tensors(config, flax=is_orbax)
    odd = table.keys() ^ layer.names.keys()
    if odd:
        raise ValueError(f"{path} is at odds with {config} in {sorted(odd)}.")
    sources = []
    for leaf, tensor in table.items():
        name = layer.names[leaf]
        shape = checkpoint.files.tensors[name].shape
        part = tensor.parts[0]
        sizes = dict(zip(layouts.NAMES[part].axes, shapes[part][1:], strict=True))
        if leaf == "mlp/gating_einsum":  # both orders of the axes are in use
            axes = "fd" if shape[-1] == sizes["d"] else "df"
            tensor = layouts.DiskTensor(tensor.parts, axes)
        joined = not is_orbax and "nh" in tensor.axes
        axes = tensor.axes
        if joined:
            axes = axes.replace("nh", "n")
            sizes["n"] *= sizes["h"]
        leading = len(shape) - len(axes)
        expected = shape[:leading] + tuple(sizes[axis] for axis in axes)
        _check_shape(checkpoint, name, expected)
        sources.append(_Source(name, tensor, leading, joined))
    return sources


def _spec_on_disk(source: _Source, spec: PartitionSpec) -> PartitionSpec:
    """How a tensor on disk is split, of whose parameter, stacked over layers, `spec` tells it."""
    ours = layouts.NAMES[source.tensor.parts[0]].axes
    split = dict.fromkeys(ours) | dict(zip(ours, spec[1:], strict=False))
    axes = source.tensor.axes
    if source.joined:
        axes = axes.replace("nh", "n")
    return PartitionSpec(*[None] * source.leading, *[split[axis] for axis in axes])


def _put_parts(stacks: dict, tensor, source: _Source, layers: list[int], place: dict) -> None:
    """Put what one tensor has, for each of its layers each of its parts, where it belongs."""
    number = 0
    for layer in layers:
        for name in source.tensor.parts:
            axes = (source.tensor.axes, layouts.NAMES[name].axes)
            value = _part(tensor, number, axes, stacks[name].shape[1:])
            stacks[name] = _put(stacks[name], value, layer, place[name])
            number += 1


@partial(jax.jit, static_argnames=("axes", "shape"))
def _part(tensor, number, axes: tuple[str, str], shape: tuple[int, ...]):
    """A layer's parameter of this shape, the n-th of a tensor on disk; `axes`: there, and here."""
    theirs, ours = axes
    sizes = dict(zip(ours, shape, strict=True))
    value = tensor.reshape(-1, *[sizes[axis] for axis in theirs])[number]
    return value.transpose([theirs.index(axis) for axis in ours])


@partial(jax.jit, static_argnames="place", donate_argnums=0)
def _put(stack, value, layer, place: NamedSharding):
    """`stack` with one layer's parameter in it, in place."""
    value = value.astype(stack.dtype)
    stack = jax.lax.dynamic_update_index_in_dim(stack, value, layer, 0)
    return jax.lax.with_sharding_constraint(stack, place)


def _check_shape(checkpoint: Checkpoint, name: str, expected: tuple[int, ...]) -> None:
    shape = checkpoint.files.tensors[name].shape
    if shape != expected:
        raise ValueError(
            f"{name} in {checkpoint.files.path} is {shape}, not {expected} as configured."
        )


def _check_tied(checkpoint: Checkpoint, embed, place) -> None:
    """Raises ValueError where the logits' weights are in the files and are not the embedding."""
    for name in checkpoint.files.tensors:
        if name.endswith("lm_head.weight"):
            own = checkpoint.files.read({name: place})[name]
            if own.shape != embed.shape or not jnp.array_equal(own, embed):
                raise ValueError(
                    f"{name} in {checkpoint.files.path} is not the embedding: this package's "
                    "Gemma has one table for both."
                )
