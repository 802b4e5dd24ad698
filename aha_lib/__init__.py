"""Gemma learns Countdown by GRPO, in small modules that each do one thing.

Axes, as every array annotation names them:

    B  rows (sequences of a batch)      H  attention heads
    P  prompts                          K  key/value heads
    G  group: completions of a prompt   h  size of a head
    T  time: positions in a sequence    F  feed-forward width
    D  width of the model               V  vocabulary
                                        L  layers

This file imports nothing: `from aha_lib import countdown` loads Countdown and no JAX.
"""
