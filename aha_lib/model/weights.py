"""Checkpoints from outside to a sharded model, and out again: Kaggle's Orbax, Hugging Face's files.

Every tensor goes from disk to the devices with its sharding, a layer at a time, into the stacked
parameters: host memory never holds the model twice. Knows nothing of training or of Countdown;
checkpoints of a run (optimizer, step) are written elsewhere.
"""

import dataclasses
import errno
import json
import re
from collections import namedtuple
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx, traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm.auto import tqdm

from aha_lib import devices
from aha_lib.model import finite, lora
from aha_lib.model.config_json import from_config_json, to_config_json
from aha_lib.model.gemma import Gemma, abstract
from aha_lib.model.tokenizer import TINY_PATH, Tokenizer
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
TINY = TINY_PATH.parent


# Parameter of a layer, its axes (a letter each), what Hugging Face and Flax call it and its axes
# there. Hugging Face joins n and h; a Flax name given twice is one tensor with a leading axis.
_NAMES = {
    "q": ("dnh", "self_attn.q_proj", "nhd", "attn/q_einsum", "ndh"),
    "k": ("dnh", "self_attn.k_proj", "nhd", "attn/kv_einsum", "ndh"),
    "v": ("dnh", "self_attn.v_proj", "nhd", "attn/kv_einsum", "ndh"),
    "o": ("nhd", "self_attn.o_proj", "dnh", "attn/attn_vec_einsum", "nhd"),
    "gate": ("df", "mlp.gate_proj", "fd", "mlp/gating_einsum", "fd"),
    "up": ("df", "mlp.up_proj", "fd", "mlp/gating_einsum", "fd"),
    "down": ("fd", "mlp.down_proj", "df", "mlp/linear", "fd"),
    "q_norm": ("d", "self_attn.q_norm", "d", "attn/_query_norm", "d"),
    "k_norm": ("d", "self_attn.k_norm", "d", "attn/_key_norm", "d"),
    "pre_attn_norm": ("d", "input_layernorm", "d", "pre_attention_norm", "d"),
    "post_attn_norm": ("d", "post_attention_layernorm", "d", "post_attention_norm", "d"),
    "pre_ff_norm": ("d", "pre_feedforward_layernorm", "d", "pre_ffw_norm", "d"),
    "post_ff_norm": ("d", "post_feedforward_layernorm", "d", "post_ffw_norm", "d"),
}
_EMBED = re.compile(r"(.*)(?:embed_tokens\.weight|embedder/input_embedding)")
_LAYER = re.compile(
    r"(?:layers?[._](\d+)|stacked_layers/attention_type_(\d+))[./]"
    r"(.+?)(?:[./](?:weight|w|scale))?"
)

_AGAIN = "not a whole Gemma checkpoint; if it was downloaded, delete it and download it again."
# `tensors`: shapes and dtypes by name; `layers`: indices, and names by leaf; `read`: {name: where}.
_Checkpoint = namedtuple("_Checkpoint", "path tensors read embed final_norm layers")


@devices.memory_errors("use a mesh of more devices, or param_dtype=jnp.bfloat16")
def load(
    source: str | Path,
    *,
    mesh: Mesh | None = None,
    dtype=jnp.float32,
    param_dtype=jnp.float32,
    tokenizer: str | Path | None = None,
    config: ModelConfig | None = None,
) -> tuple[Gemma, Tokenizer, ModelConfig]:
    """A model from `source`, its arrays sharded over `mesh` (without one: on the first device).

    `source` is a preset's name ("tiny" comes with the package, the others from Kaggle), a Kaggle
    handle, or a local or `gs://` folder in Kaggle's or Hugging Face's layout. `dtype` is that of
    activations, `param_dtype` that of parameters. `tokenizer` is the path of a `tokenizer.model`
    that lies elsewhere; `config` is for a checkpoint without a `config.json` that is no preset.
    Raises ValueError or FileNotFoundError if it is no whole Gemma, or holds NaN or infinity, and
    what `download` raises.
    """
    source = {"tiny": str(TINY), **HANDLES}.get(str(source), str(source))
    handle = re.fullmatch(r"[\w.-]+(/[\w.-]+){3,4}", source) and not Path(source).exists()
    folder = epath.Path(download(source) if handle else source)
    checkpoint = _open(folder)
    config = config or _recognise(checkpoint)
    beside = [place / "tokenizer.model" for place in (folder, checkpoint.path, folder.parent)]
    found = [p for p in ([epath.Path(tokenizer)] if tokenizer else beside) if p.exists()]
    if not found:
        raise FileNotFoundError(f"{folder} has no tokenizer.model: pass its path as tokenizer=…")
    words = Tokenizer(found[0].read_bytes())
    config = dataclasses.replace(config, padding=config.vocab - words.vocab_size)
    if not 0 <= config.padding <= 128:
        raise ValueError(
            f"{found[0]} has {words.vocab_size} pieces, the embedding {config.vocab} "
            "rows: this tokenizer belongs to another model."
        )
    model = abstract(config, dtype=dtype, param_dtype=param_dtype)
    _fill(model, checkpoint, mesh or devices.make_mesh(jax.devices()[:1]))
    finite.refuse_nonfinite(model, folder)
    return model, words, config


def download(handle: str) -> Path:
    """The local folder of a Kaggle model, downloaded with a progress bar unless it is there.

    Credentials are kagglehub's: a Kaggle session's own, the environment, `~/.kaggle`, or Colab's
    secret KAGGLE_API_TOKEN (without that one it finds no KAGGLE_USERNAME and KAGGLE_KEY there).
    Raises OSError with one sentence that says what to do.
    """
    import kagglehub

    page = "https://www.kaggle.com/models/" + "/".join(handle.split("/")[:2])
    try:
        return Path(kagglehub.model_download(handle))
    except Exception as error:
        kind, full = type(error).__name__, getattr(error, "errno", None) == errno.ENOSPC
        status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 403 and kagglehub.config.get_kaggle_credentials():
        advice = f"Accept Gemma's licence at {page} with the account of your Kaggle token."
    elif status in (401, 403) or kind in ("CredentialError", "UnauthenticatedError"):
        advice = (
            "Kaggle needs your token: create one on kaggle.com (Settings, API) and store it "
            "as the environment variable, or Colab secret, KAGGLE_API_TOKEN."
        )
    elif status == 404:
        advice = f"Kaggle has no model {handle}: see {page} for the names."
    elif "Connect" in kind or "Timeout" in kind:
        advice = "kaggle.com does not answer: switch the session's internet on, or give a folder."
    elif full:
        advice = f"The disk is full: make room for {handle}, or point KAGGLEHUB_CACHE elsewhere."
    else:
        advice = f"The download of {handle} broke off ({kind}): call again to go on with it."
    raise OSError(advice)  # outside of "except": a request's traceback may show the token


def save_hf(model: Gemma, folder: str | Path, tokenizer: Tokenizer | None = None) -> None:
    """Write `config.json`, `model.safetensors` and `tokenizer.model` for transformers and `load`.

    Parameters keep their dtype. The host's memory must have room for them. Raises ValueError
    for a model with adapters.
    """
    folder, tensors = Path(folder), {}
    for i, leaf, (value,) in _disk_layout(model, flax=False):
        if value.ndim == 3:
            value = value.reshape((len(value), -1) if "o_proj" in leaf else (-1, value.shape[2]))
        where = leaf if i is None else f"layers.{i}.{leaf}"
        tensors[f"model.{where}.weight"] = np.ascontiguousarray(value)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(to_config_json(model.config), indent=2) + "\n")
    if tokenizer:
        tokenizer.save(folder / "tokenizer.model")


def save_kaggle(model: Gemma, folder: str | Path, tokenizer: Tokenizer | None = None) -> None:
    """Write Kaggle's flat Orbax layout, the checkpoint in `folder/weights`; else as `save_hf`.

    Raises ValueError also where there is a checkpoint already.
    """
    tree = {}
    for i, leaf, parts in _disk_layout(model, flax=True):
        where, end = (f"layer_{i}/{leaf}", "w") if i is not None else leaf.split("/")
        value = np.stack(parts) if len(parts) > 1 else parts[0]
        tree[f"transformer/{where}"] = {"scale" if "norm" in where else end: value}
    ocp.PyTreeCheckpointer().save(epath.Path(folder).resolve() / "weights", tree)
    if tokenizer:
        tokenizer.save(Path(folder) / "tokenizer.model")


def _by_name(state) -> dict:
    pure = nnx.to_pure_dict(state)
    return pure.pop("layers") | pure


def _layout(c: ModelConfig, flax: bool) -> dict[str, tuple[list[str], str]]:
    """A layer's tensors on disk by their leaf: our parameters in each, and its axes."""
    table = {}
    for name, (_, *hf, leaf, axes) in _NAMES.items():
        leaf, axes = (leaf, axes) if flax else hf
        if name == "pre_ff_norm" and c.generation == 1 and not flax:
            leaf = "post_attention_layernorm"  # Gemma 2 gave this name to another norm
        if c.heads == c.kv_heads and axes == "ndh":
            leaf = "attn/qkv_einsum"
        if leaf == "mlp/gating_einsum" and c.width < (3584, 2400, 0)[c.generation - 1]:
            axes = "df"  # Gemma 1 and Gemma 2 2B
        if c.qk_norm or name[1:] != "_norm" and (c.post_norms or name[:4] != "post"):
            table.setdefault(leaf, ([], axes))[0].append(name)
    return table


def _disk_layout(model, flax):
    """The model's tensors as on disk: layer, leaf, arrays of its parts (n and h not yet joined)."""
    params, table = _by_name(nnx.state(model, nnx.Param)), _layout(model.config, flax)
    lora.check_plain(model)
    ends = ("embedder/input_embedding", "final_norm/scale") if flax else ("embed_tokens", "norm")
    for name, leaf in zip(("embed", "final_norm"), ends, strict=True):
        yield None, leaf, [devices.to_host(params[name])]
    for leaf, (names, axes) in table.items():
        order = [_NAMES[names[0]][0].index(a) for a in axes]
        stacks = [devices.to_host(params[name]) for name in names]
        for i in range(model.config.layers):
            yield i, leaf, [stack[i].transpose(order) for stack in stacks]


def _open(folder) -> _Checkpoint:
    """The checkpoint in a folder, or in the one subfolder that has one."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder, no preset and no handle of Kaggle.")
    places = [folder, *sorted(p for p in folder.iterdir() if p.is_dir())]
    found = [p for p in places if (p / "_METADATA").exists() or any(p.glob("*.safetensors"))]
    if len(found) != 1:
        raise FileNotFoundError(
            f"{folder} should hold one checkpoint, *.safetensors or Orbax's "
            f"with its _METADATA, not {len(found)}: {_AGAIN}"
        )
    path, flax = found[0], (found[0] / "_METADATA").exists()
    tensors, read = (_open_orbax if flax else _open_safetensors)(path)
    match = next(filter(None, map(_EMBED.fullmatch, tensors)), None)
    prefix, groups = match and match[1], {}  # a vision tower has another prefix
    for name in tensors:
        if match and name.startswith(prefix) and (m := _LAYER.fullmatch(name[len(prefix) :])):
            groups.setdefault(m.groups()[:2], {})[m[3]] = name
    if not groups:
        raise ValueError(f"{path} has no embedding, or no layers, that are a Gemma's: {_AGAIN}")
    layers = []
    for (plain, stacked), names in groups.items():
        repeats = tensors[next(iter(names.values()))].shape[0] if stacked else 1
        layers.append(([int(plain or stacked) + i * len(groups) for i in range(repeats)], names))
    final_norm = prefix + ("final_norm/scale" if flax else "norm.weight")
    for name in (match[0], final_norm, *(n for _, names in layers for n in names.values())):
        if name not in tensors:
            raise ValueError(f"{path} lacks {name}: {_AGAIN}")
        if not jnp.issubdtype(tensors[name].dtype, jnp.floating):
            raise ValueError(f"{name} in {path} is quantised: take the bfloat16 checkpoint.")
    return _Checkpoint(path, tensors, read, match[0], final_norm, layers)


def _open_safetensors(path):
    for index in path.glob("*.safetensors.index.json"):
        for file in set(json.loads(index.read_text())["weight_map"].values()):
            if not (path / file).exists():
                raise FileNotFoundError(f"{path} lacks {file}: {_AGAIN}")
    tensors, home = {}, {}
    kinds = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
    for file in path.glob("*.safetensors"):
        try:
            with safe_open(file, "np") as data:
                for name in data.keys():
                    part, home[name] = data.get_slice(name), file
                    kind = kinds.get(part.get_dtype(), "int8")
                    tensors[name] = jax.ShapeDtypeStruct(part.get_shape(), kind)
        except SafetensorError:
            raise ValueError(f"{file} is damaged or cut off: {_AGAIN}") from None

    def read(wanted):
        arrays = {}
        for name, sharding in wanted.items():
            with safe_open(home[name], "np") as data:  # a memory map: closing it frees its pages
                shard = data.get_slice(name).__getitem__
                arrays[name] = jax.make_array_from_callback(tensors[name].shape, sharding, shard)
        return arrays

    return tensors, read


def _open_orbax(path):
    checkpointer = ocp.PyTreeCheckpointer()
    flat = traverse_util.flatten_dict(checkpointer.metadata(path).item_metadata.tree)
    keys = {"/".join(key): key for key in flat}
    tensors = {n: jax.ShapeDtypeStruct(flat[k].shape, flat[k].dtype) for n, k in keys.items()}

    def read(wanted):
        item = {keys[n]: tensors[n].update(sharding=sharding) for n, sharding in wanted.items()}
        item = traverse_util.unflatten_dict(item)
        how = ocp.checkpoint_utils.construct_restore_args(item)
        args = ocp.args.PyTreeRestore(item=item, restore_args=how, partial_restore=True)
        return traverse_util.flatten_dict(checkpointer.restore(path, args=args), sep="/")

    return tensors, read


def _recognise(checkpoint) -> ModelConfig:
    """The preset of the same generation, depth and width, as a `config.json` amends it."""
    path, (vocab, width) = checkpoint.path, checkpoint.tensors[checkpoint.embed].shape
    depth, leaves = sum(len(i) for i, _ in checkpoint.layers), " ".join(checkpoint.layers[0][1])
    generation = 1 + ("post_f" in leaves) + ("q_norm" in leaves or "_query_norm" in leaves)
    kin = [c for c in reversed(MODELS.values()) if c.generation == generation]
    same = [c for c in kin if (c.layers, c.width) == (depth, width)]
    base = dataclasses.replace([*same, *kin][0], vocab=vocab)
    if (path / "config.json").exists():
        return from_config_json(json.loads((path / "config.json").read_text()), base)
    if not same:
        raise ValueError(
            f"{path} is a Gemma {generation} of {depth} layers and width {width}: "
            f"none of {', '.join(MODELS)}, so pass config=…"
        )
    return base


def _fill(model, checkpoint, mesh):
    """Give the abstract model its arrays, the large embedding first and then layer by layer."""
    like, place = _by_name(nnx.state(model)), _by_name(devices.shardings(model, mesh))
    arrays = {}
    for name in ("embed", "final_norm"):
        source = getattr(checkpoint, name)
        _compare(checkpoint, source, like[name].shape)
        arrays[name] = checkpoint.read({source: place[name]})[source].astype(like[name].dtype)
    stacks = {name: like[name] for name in like.keys() - arrays.keys()}
    zeros = partial(jax.tree.map, lambda x: jnp.zeros(x.shape, x.dtype), stacks)
    arrays |= jax.jit(zeros, out_shardings={name: place[name] for name in stacks})()
    found = sorted(i for indices, _ in checkpoint.layers for i in indices)
    if found != [*range(model.config.layers)]:
        raise ValueError(f"{checkpoint.path} lacks some of {model.config.layers} layers: {_AGAIN}")
    for indices, names in tqdm(checkpoint.layers, "Loading layers", delay=2):
        table, wanted = _layout(model.config, flax := "/" in checkpoint.embed), {}
        if odd := table.keys() ^ names.keys():
            raise ValueError(f"{checkpoint.path} is at odds with {model.config} in {sorted(odd)}.")
        for leaf, (parts, axes) in table.items():
            ours, shape = _NAMES[parts[0]][0], checkpoint.tensors[names[leaf]].shape
            sizes = dict(zip(ours, like[parts[0]].shape[1:], strict=True))
            spec = dict.fromkeys(ours) | dict(zip(ours, place[parts[0]].spec[1:], strict=False))
            if leaf == "mlp/gating_einsum":
                axes = "fd" if shape[-1] == sizes["d"] else "df"
            table[leaf] = parts, axes
            if not flax and "nh" in axes:
                axes, sizes["n"] = axes.replace("nh", "n"), sizes["n"] * sizes["h"]
            lead = shape[: len(shape) - len(axes)]  # layers of a stack, parts of a tensor
            _compare(checkpoint, names[leaf], lead + tuple(sizes[a] for a in axes))
            spec = PartitionSpec(*[None] * len(lead), *[spec[a] for a in axes])
            wanted[names[leaf]] = NamedSharding(mesh, spec)
        tensors = checkpoint.read(wanted)
        for leaf, (parts, axes) in table.items():
            for n, (i, name) in enumerate((i, name) for i in indices for name in parts):
                how = _NAMES[name][0], axes, place[name]
                arrays[name] = _put(arrays[name], tensors[names[leaf]], n, i, *how)
    ends = {name: arrays.pop(name) for name in ("embed", "final_norm")}
    nnx.update(model, ends | {"layers": arrays})


def _compare(checkpoint, name, expected):
    if (shape := checkpoint.tensors[name].shape) != expected:
        raise ValueError(f"{name} in {checkpoint.path} is {shape}, not {expected} as configured.")


@partial(jax.jit, static_argnames=("ours", "axes", "place"), donate_argnums=0)
def _put(stack, tensor, n, layer, ours, axes, place):
    """`stack` with one layer's parameter in it, the n-th of a tensor on disk; in place."""
    sizes = dict(zip(ours, stack.shape[1:], strict=True))
    value = tensor.reshape(-1, *[sizes[a] for a in axes])[n]
    value = value.transpose([axes.index(a) for a in ours]).astype(stack.dtype)
    stack = jax.lax.dynamic_update_index_in_dim(stack, value, layer, 0)
    return jax.lax.with_sharding_constraint(stack, place)
