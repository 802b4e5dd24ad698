"""Checkpoint folders: which tensors lie in one, reading them onto the devices, writing safetensors.

Safetensors files (one, or shards with an index) and Orbax checkpoints are told apart, and read
alike. Knows nothing of Gemma: names are strings here, and shapes and dtypes what the files declare.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util
from jax.sharding import Sharding
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

AGAIN = "not a whole Gemma checkpoint; if it was downloaded, delete it and download it again."
POINTER = b"version https://git-lfs"  # how the file begins that Git LFS leaves for a large one
# What safetensors calls the dtypes that parameters may have; all others are quantised.
DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


class CheckpointFiles(NamedTuple):
    """The tensors of a checkpoint, none of them read yet."""

    path: epath.Path
    is_orbax: bool
    tensors: dict[str, jax.ShapeDtypeStruct]  # by name; Orbax's keys are joined by "/"
    read: Callable[[dict[str, Sharding]], dict[str, jax.Array]]  # those named, sharded as told


def open_checkpoint(folder: epath.Path) -> CheckpointFiles:
    """The checkpoint in a folder, or in the one subfolder that has one.

    Raises FileNotFoundError where there is none or a part is missing, ValueError where a file is
    damaged, where a tensor is in two files, and where a `gs://` folder needs a package.
    """
    try:
        is_folder = folder.is_dir()
    except ImportError as error:  # fsspec's, for gs://, s3:// and their like
        raise ValueError(
            f"{folder} cannot be read from here ({error}): install that package, or copy the "
            "folder to this machine and give its path."
        ) from None
    if not is_folder:
        raise FileNotFoundError(f"{folder} is no folder, no preset and no handle of Kaggle.")
    subfolders = sorted(path for path in folder.iterdir() if path.is_dir())
    found = [path for path in (folder, *subfolders) if _holds_checkpoint(path)]
    if len(found) != 1:
        raise FileNotFoundError(
            f"{folder} should hold one checkpoint, *.safetensors or Orbax's "
            f"with its _METADATA, not {len(found)}: {AGAIN}"
        )
    path = found[0]
    return _open_orbax(path) if (path / "_METADATA").exists() else _open_safetensors(path)


def read_json(path: Path | epath.Path) -> dict:
    """The JSON object in a file; ValueError, with its path, where it holds anything else."""
    refuse_pointer(path)
    try:
        content = json.loads(path.read_text())
    except ValueError as error:  # not JSON, or not even text
        raise ValueError(f"{path} is damaged, it is no JSON ({error}): {AGAIN}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not an object: {AGAIN}")
    return content


def refuse_pointer(path: Path | epath.Path) -> None:
    """Raises ValueError where a file is Git LFS's pointer to the file that is meant."""
    with path.open("rb") as file:
        start = file.read(len(POINTER))
    if start == POINTER:
        raise ValueError(
            f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in its folder."
        )


def write_safetensors(
    tensors: dict[str, np.ndarray], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file, whole or not at all, with the mode that the umask gives.

    The library itself makes files of mode 0600, which nobody else can read on a shared disk.
    """
    part = path.with_name(path.name + ".part")
    part.touch()
    mode = part.stat().st_mode
    save_file(tensors, part, metadata)
    part.chmod(mode)
    part.replace(path)


def _holds_checkpoint(path) -> bool:
    return (path / "_METADATA").exists() or any(path.glob("*.safetensors"))


def _open_safetensors(path) -> CheckpointFiles:
    _check_index(path)
    tensors, homes = {}, {}
    for file in sorted(path.glob("*.safetensors")):
        for name, tensor in _list_safetensors(file).items():
            if name in homes:
                raise ValueError(
                    f"{path} has {name} twice, in {homes[name].name} and in {file.name}: these "
                    "are files of two checkpoints, remove those of one."
                )
            tensors[name] = tensor
            homes[name] = file

    def read(shardings):
        arrays = {}
        for name, sharding in shardings.items():
            # A memory map: closing it frees its pages.
            with safe_open(homes[name], "np") as data:
                read_shard = data.get_slice(name).__getitem__
                shape = tensors[name].shape
                arrays[name] = jax.make_array_from_callback(shape, sharding, read_shard)
        return arrays

    return CheckpointFiles(path, False, tensors, read)


def _check_index(path) -> None:
    """Raises where a shard that an index names is missing, or the index is no index."""
    for index in path.glob("*.safetensors.index.json"):
        homes = read_json(index).get("weight_map")
        if not isinstance(homes, dict):
            raise ValueError(f"{index} has no weight_map, which names the shards: {AGAIN}")
        for file in sorted(set(homes.values())):
            if not (path / file).exists():
                raise FileNotFoundError(f"{path} lacks {file}: {AGAIN}")


def _list_safetensors(file) -> dict[str, jax.ShapeDtypeStruct]:
    refuse_pointer(file)
    tensors = {}
    try:
        with safe_open(file, "np") as data:
            for name in data.keys():
                part = data.get_slice(name)
                dtype = DTYPES.get(part.get_dtype(), "int8")
                tensors[name] = jax.ShapeDtypeStruct(part.get_shape(), dtype)
    except SafetensorError:
        raise ValueError(f"{file} is damaged or cut off: {AGAIN}") from None
    return tensors


def _open_orbax(path) -> CheckpointFiles:
    checkpointer = ocp.PyTreeCheckpointer()
    metadata = _or_unreadable(path, lambda: checkpointer.metadata(path).item_metadata.tree)
    flat = traverse_util.flatten_dict(metadata)
    keys = {"/".join(key): key for key in flat}
    tensors = {}
    for name, key in keys.items():
        tensors[name] = jax.ShapeDtypeStruct(flat[key].shape, flat[key].dtype)

    def read(shardings):
        item = {}
        for name, sharding in shardings.items():
            item[keys[name]] = tensors[name].update(sharding=sharding)
        item = traverse_util.unflatten_dict(item)
        how = ocp.checkpoint_utils.construct_restore_args(item)
        args = ocp.args.PyTreeRestore(item=item, restore_args=how, partial_restore=True)
        restored = _or_unreadable(path, lambda: checkpointer.restore(path, args=args))
        return traverse_util.flatten_dict(restored, sep="/")

    return CheckpointFiles(path, True, tensors, read)


def _or_unreadable(path, read: Callable):
    """What `read` gives. Orbax's errors have many types: they become a ValueError with the path.

    A device's memory that is too small is no fault of the files, and stays what it is.
    """
    try:
        return read()
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        lines = str(error).splitlines() or [""]
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}: {lines[0][:200]}): {AGAIN}"
        ) from error
