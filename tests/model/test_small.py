"""The base of TinyZero's task that comes with the package: which sums it gets right."""

import random

import jax.numpy as jnp
import numpy as np
import pytest

from aha_lib.model import weights
from aha_lib.model.tokenizer import WORDS, tiny_model
from aha_lib.presets import MODELS
from aha_lib.tasks import corpus


@pytest.mark.parametrize("held_out", [True, False])
def test_the_small_base_adds(held_out):
    """Sums that the corpus never taught, too: at least 99 of 100."""
    model, tokenizer, config = weights.load("small")
    assert config == MODELS["small"]
    assert (weights.SHIPPED["small"] / "tokenizer.model").read_bytes() == tiny_model(WORDS["small"])
    facts = [fact for of_sign in corpus._facts_by_sign(200) for fact in of_sign]
    of_kind = [fact for fact in facts if corpus.is_held_out_fact(fact) == held_out]
    asked = random.Random(0).sample(of_kind, 400)
    tokens = jnp.array([tokenizer.encode(fact) for fact in asked])
    read = tokens[:, :-1]
    positions = jnp.broadcast_to(jnp.arange(read.shape[1]), read.shape)
    hidden = model.hidden(read, positions, jnp.ones_like(read))
    said = model.logits(hidden[:, -1]).argmax(-1)
    assert np.mean(said == tokens[:, -1]) >= 0.99
