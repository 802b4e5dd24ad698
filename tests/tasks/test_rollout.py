"""Which calls of the sampler a run makes, and the shapes of their programs."""

import dataclasses

from aha_lib.presets import Settings
from aha_lib.tasks import rollout

SETTINGS = Settings(
    prompts=2, group=8, prompt_len=8, completion_len=16, eval_puzzles=37, pass_k=2, steps=2
)


def test_calls_of_the_sampler():
    """16 rows at a time: 2 prompts of 8, of the panel 16, at pass@2 8; the last calls filled up."""
    assert rollout.sampler_calls(SETTINGS) == [(2, 8), (8, 2), (16, 1)]
    few = dataclasses.replace(SETTINGS, eval_puzzles=5)
    assert rollout.sampler_calls(few) == [(2, 8), (5, 1), (5, 2)], "one call is all there is"


def test_shapes_of_decode_programs():
    shapes = rollout.decode_shapes(SETTINGS)
    assert {shape.slots for shape in shapes} == {12, 16, 20, 24}
    assert {shape.length for shape in shapes} == {4}
    first = {shape.rows for shape in shapes if shape.slots == 12}
    later = {shape.rows for shape in shapes if shape.slots == 24}
    assert first == {16}, "no row is dropped before the first stage"
    assert later == {16, 8, 4, 2}, "halves, down to an eighth"
