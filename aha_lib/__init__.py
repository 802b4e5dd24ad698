"""Gemma learns Countdown by GRPO, in small modules that each do one thing.

Axes, as every array annotation names them:

    B  rows (sequences of a batch)      H  attention heads
    P  prompts                          K  key/value heads
    G  group: completions of a prompt   h  size of a head
    T  time: positions in a sequence    F  feed-forward width
    D  width of the model               V  vocabulary
                                        L  layers

This file loads nothing of it: `from aha_lib.tasks import countdown` loads Countdown and no JAX.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 (a clone, or a zip, which pip did not look at)
    sys.exit(f"Python {sys.version.split()[0]} is too old: aha_lib needs 3.11 or newer.")
