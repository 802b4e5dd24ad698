"""A run whose programs are compiled ahead, watched. For test_ahead.

Called with a file for what is found and the arguments of a run. Finds which programs are compiled
ahead, and which after that.
"""

import collections
import json
import logging
import re
import sys

import jax

from aha_lib.run import ahead, cli, train

names = []


class Compiled(logging.Handler):
    """Keeps the name of each program that JAX says it compiles."""

    def emit(self, record):
        names.extend(re.findall(r"^Compiling (?:jit\()?(\w+)", record.getMessage()))


def counted() -> dict[str, int]:
    found = dict(collections.Counter(names))
    names.clear()
    return found


found = {}
compile_ahead = ahead.compile_ahead


def watched(*args):
    names.clear()
    compile_ahead(*args)
    found["ahead"] = counted()


ahead.compile_ahead = watched
jax.config.update("jax_log_compiles", True)
logging.getLogger("jax").addHandler(Compiled())
for _ in train.train(*cli.parse(sys.argv[2:])):
    pass
found["later"] = counted()
with open(sys.argv[1], "w") as file:
    json.dump(found, file)
