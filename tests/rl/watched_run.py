"""A run on all devices, watched; then what the plan says of it. For test_sharding.

Called with a file for what is found and the arguments of a run. Finds arrays of rows that no mesh
axis splits, how the sampler's rows lie, and which programs are compiled with how large arguments.
"""

import json
import logging
import math
import re
import sys

import jax

from aha_lib import devices, presets
from aha_lib.rl import sampler
from aha_lib.run import cli, programs, train

found = {"whole": [], "stages": [], "compiled": [], "planned": []}
spec, decode = devices.spec, sampler._decode


def watched_spec(shape, names, mesh):
    axes = spec(shape, names, mesh)
    pairs = zip(names, axes, strict=False)
    found["whole"] += [[*shape] for name, a in pairs if name in ("rows", "draws") and not a]
    return axes


def lie(rows):
    """How many rows there are, on each device too, slots of the cache, and GiB of a device."""
    shards = [x.sharding.shard_shape(x.shape)[x.ndim == 5] for x in jax.tree.leaves(rows)]
    size = {"rows": len(rows.done), "slots": rows.cache.k.shape[3], "GiB": programs.held(rows)}
    return size | {"each": sorted(set(shards))}


def watched_decode(graph, params, rows, *args, **kwargs):
    before = lie(rows)
    out = decode(graph, params, rows, *args, **kwargs)
    found["stages"].append([before, lie(out[0])])
    return out


class Compiled(logging.Handler):
    """Keeps the name of each program that JAX says it compiles, and its arguments' numbers."""

    def emit(self, record):
        said = record.getMessage()
        name = re.match(r"Compiling (?:jit\()?(\w+)", said)
        if name and " types " in said:
            arguments = said.split(" types ")[1].split("Argument mapping")[0]
            shapes = re.findall(r"\[([\d,]*)\]", arguments.replace("[ShapedArray", "("))
            sizes = [math.prod(int(n) for n in shape.split(",") if n) for shape in shapes]
            found["compiled"].append([name[1], sum(sizes)])


settings, folder = cli.parse(sys.argv[2:])
devices.spec, sampler._decode = watched_spec, watched_decode
jax.config.update("jax_log_compiles", True)
logging.getLogger("jax").addHandler(Compiled())
mesh = devices.make_mesh(tp=settings.tp)
with jax.set_mesh(mesh):
    for _ in train.train(settings, folder):
        pass
jax.config.update("jax_log_compiles", False)
devices.spec, sampler._decode = spec, decode
for program in programs.programs(presets.MODELS["tiny"], settings, mesh):
    with jax.set_mesh(mesh):
        lowered = program.lower()
    module = re.search(r"@jit_(\w+)", lowered.as_text())[1]
    size = sum(math.prod(x.shape) for x in jax.tree.leaves(lowered.in_avals))
    memory = lowered.compile().memory_analysis().argument_size_in_bytes / programs.GiB
    found["planned"].append([program.name, module, size, memory])
with open(sys.argv[1], "w") as file:
    json.dump(found, file)
