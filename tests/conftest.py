"""Array annotations are checked under pytest only, and JAX runs on the CPU, on one device.

A test that needs eight devices starts a subprocess. Compiling takes most of the tests' time, so a
program is compiled once for all of them. Knows nothing of the tests themselves.
"""

import importlib
import os
import sys
from pathlib import Path

import hypothesis
import pytest
from jaxtyping import install_import_hook

# The environment is for subprocesses and the notebooks' kernels too. The cache is the checkout's
# own, whatever else the machine keeps; a hit is the same machine code.
ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
importlib.import_module("aha_lib.presets")  # has no arrays, and checks its types for itself
install_import_hook("aha_lib", "beartype.beartype")
hypothesis.settings.register_profile("aha", deadline=None)  # a slow machine is not a bug
hypothesis.settings.load_profile("aha")

# LLVM without its optimisations: the programs compute the same, and are compiled in half the time.
LEAST_EFFORT = "--xla_backend_optimization_level=0"


def pytest_configure(config):
    """Of quick tests small programs run once or twice; slow ones run as users run them."""
    flags = os.environ.get("XLA_FLAGS", "")
    if config.option.markexpr == "not slow" and LEAST_EFFORT not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {LEAST_EFFORT}".strip()


def pytest_xdist_auto_num_workers(config):
    """Processes for the whole suite: a core each, four at most. Named tests run in this process."""
    named = config.args_source is config.ArgsSource.ARGS
    return 0 if named else min(4, os.cpu_count() or 1)


@pytest.fixture(autouse=True, scope="module")
def programs_of_other_modules_are_let_go_of():
    """Else a process grows by gigabytes; what another module needs again is in the cache."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
