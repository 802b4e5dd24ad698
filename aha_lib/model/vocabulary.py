"""A model on a part of its vocabulary, and back.

Nearly half of what a small Gemma computes are the logits of pieces that a narrow task never uses.
Without their rows of the embedding the model is the same function of the others: its logits are
the whole model's, its softmax goes over fewer. Knows nothing of the task; takes token ids.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx

from aha_lib.model.gemma import Gemma, abstract

PERIODS = (2, 4, 5, 8, 10, 20, 25, 40, 50, 80, 100, 200, 400)  # of the waves in numbers


def cut(model: Gemma, ids: Sequence[int]) -> Gemma:
    """The model on the pieces `ids`, renumbered in this order; layers are shared, not copied.

    Its logits are those of `model` at `ids`. Sampling from it is sampling from `model` with all
    other pieces forbidden. Use it with `Tokenizer.subset(ids)`. Raises ValueError for ids that
    repeat or that the embedding lacks.
    """
    if len(set(ids)) < len(ids) or not all(0 <= i < model.config.vocab for i in ids):
        raise ValueError(f"Keep each piece once, by an id from 0 to {model.config.vocab - 1}.")
    return _with_embedding(model, model.embed[...][np.array(ids)], padding=0)


def put_back(model: Gemma, whole: Gemma, ids: Sequence[int]) -> Gemma:
    """A cut `model`, trained perhaps, with all rows of the embedding: those of `ids` are its own,
    the others those of `whole`, the model that it was cut from."""
    rows = model.embed[...].astype(whole.embed.dtype)
    table = whole.embed[...].at[np.array(ids)].set(rows)
    return _with_embedding(model, table, padding=whole.config.padding)


def _with_embedding(model: Gemma, table: jnp.ndarray, padding: int) -> Gemma:
    config = dataclasses.replace(model.config, vocab=len(table), padding=padding)
    other = abstract(config, dtype=model.dtype)
    nnx.update(other, nnx.state(model))
    nnx.update(other, {"embed": table})
    return other


def add_waves(model: Gemma, numbers: Mapping[int, int]) -> None:
    """Give numbers embeddings of which half the squared norm are waves; in place.

    `numbers` maps a number to its id. Its row becomes the cosine and sine of 2 pi n / period for
    each of PERIODS, beside what it was. Trained models have such features (2406.03445); a small
    model that begins with them learns to add from fewer sums.
    """
    values = np.array(list(numbers))
    ids = np.array(list(numbers.values()))
    angles = 2 * np.pi * values[:, None] / np.array(PERIODS)
    waves = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)  # squared norm: periods
    rows = model.embed[...][ids] * 0.5**0.5
    rows = rows.at[:, : waves.shape[1]].set(waves * (0.5 / len(PERIODS)) ** 0.5)
    model.embed[...] = model.embed[...].at[ids].set(rows)
