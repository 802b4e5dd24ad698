"""Array annotations are checked under pytest only, and JAX runs on the CPU, on one device.

A test that needs eight devices starts a subprocess. Knows nothing of the tests themselves.
"""

import importlib
import os

import hypothesis
from jaxtyping import install_import_hook

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # also for the notebooks' kernels
importlib.import_module("aha_lib.presets")  # has no arrays, and checks its types for itself
install_import_hook("aha_lib", "beartype.beartype")
hypothesis.settings.register_profile("aha", deadline=None)  # a slow machine is not a bug
hypothesis.settings.load_profile("aha")
