"""Which device holds which part of an array, drawn: on this machine, or on simulated devices.

Takes shapes and the names of their axes; makes no array. Knows nothing of models or runs.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from jax.sharding import Mesh, NamedSharding

from aha_lib import devices

ROOT = Path(__file__).resolve().parents[2]  # from where Python imports this package


def draw(shape: Sequence[int], axes: Sequence[str | None], mesh: Mesh) -> None:
    """Print how `devices.RULES` split an array of one or two axes, known by their names."""
    where = NamedSharding(mesh, devices.spec(tuple(shape), axes, mesh))
    jax.debug.visualize_sharding(tuple(shape), where, use_color=False)


def simulated(
    arrays: Mapping[str, tuple[Sequence[int], Sequence[str | None]]],
    *,
    count: int = 8,
    tp: int = 1,
) -> str:
    """What `draw` prints of each array (its shape, and names of its axes) with `count` devices.

    The number of a process's devices is fixed when JAX starts. So another process draws, whose
    devices are simulated ones on this machine's CPU. RuntimeError where that process fails.
    """
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}",
        "COLUMNS": "80",
    }
    # It joins no other processes, writes plain text (a notebook's kernel forces colours), and
    # imports the package that asks.
    for name in ("JAX_COORDINATOR_ADDRESS", "FORCE_COLOR", "CLICOLOR_FORCE"):
        environment.pop(name, None)
    paths = [str(ROOT), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    command = [sys.executable, "-m", "aha_lib.look.placement", json.dumps(arrays), str(tp)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:]
        raise RuntimeError(f"{count} simulated devices could not be had: {''.join(reason)}")
    return done.stdout


def main(argv: Sequence[str]) -> None:
    """Draw the arrays of a JSON text on all devices, `tp` of which share each matrix."""
    arrays, tp = json.loads(argv[0]), int(argv[1])
    mesh = devices.make_mesh(tp=tp)
    for title, (shape, axes) in arrays.items():
        print(f"{title}: {' x '.join(map(str, shape))}", flush=True)
        draw(shape, axes, mesh)


if __name__ == "__main__":
    main(sys.argv[1:])
