"""One direction of the residual stream: read where a decision falls, and pushed along.

After a layer's last addition the residual stream x [D] of every token, the prompt's too, becomes
x + strength · direction. Both are parameters beside the stacked layers, and a model without them
computes as if this module did not exist. The direction is an `nnx.LoRAParam`: with
`Settings.lora` above 0 the GRPO update trains it alone, as it does adapters. The idea is that of
activation addition (2308.10248) and of Venhoff et al. (2506.18167).

`WithTokenBias` is the smallest push there is: a single number, added to the logit of one token.
Knows nothing of files or plots.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from aha_lib.model.gemma import Gemma
from aha_lib.model.tokenizer import Tokenizer
from aha_lib.rl import grpo
from aha_lib.tasks import traces
from aha_lib.tasks.rollout import Rollout

ROWS = 64  # whose residual streams are in memory at a time


class WithTokenBias(Gemma):
    """A Gemma with one number more, `bias` [1], which is added to the logit of one token.

    The number is an `nnx.LoRAParam`, so `Settings.lora` above 0 trains it and nothing else. It
    begins at 0, where the model computes what the one did whose arrays it shares.
    """

    def __init__(self, model: Gemma, token: int):
        if not 0 <= token < model.config.vocab:
            raise ValueError(f"There is no token {token}: the model has {model.config.vocab}.")
        self.config = model.config
        self.dtype = model.dtype
        self.token = token
        self.embed = model.embed
        self.layers = model.layers
        self.final_norm = model.final_norm
        self.bias = nnx.LoRAParam(jnp.zeros(1), axes=(None,))

    def logits(self, hidden: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
        """Next-token logits as of `Gemma.logits`, that of the one token shifted by the bias."""
        is_token = jnp.arange(self.config.vocab) == self.token
        return super().logits(hidden) + jnp.where(is_token, self.bias[...], 0.0)


class Decisions(NamedTuple):
    """Where a completion could have answered or made an attempt, and what it did."""

    row: Int[np.ndarray, " N"]  # of the rollout
    token: Int[np.ndarray, " N"]  # of prompt and completion together: the last one before it
    noes: Int[np.ndarray, " N"]  # attempts called wrong so far; 0: at the start
    tries: Bool[np.ndarray, " N"]  # an attempt follows; else the answer


def add(model: Gemma) -> None:
    """Give a model a direction, of zeros, in place; it computes what it did.

    Raises ValueError where it has one, or adapters, already.
    """
    if nnx.state(model, nnx.LoRAParam):
        raise ValueError("The model has adapters, or a direction, already: merge them first.")
    config = model.config
    model.layers.direction = nnx.LoRAParam(jnp.zeros(config.width), axes=(None,))
    model.layers.strength = nnx.Param(jnp.zeros(config.layers), axes=(None,))


def steer(model: Gemma, direction: Float[ArrayLike, " D"], layer: int, strength: float) -> None:
    """Push the stream along `direction` after `layer` (from 0), in place; no other layer does.

    Nothing compiles anew for another direction, layer or strength.
    """
    if not 0 <= layer < model.config.layers:
        raise ValueError(f"There is no layer {layer}: the model has {model.config.layers}.")
    strengths = jnp.zeros(model.config.layers).at[layer].set(strength)
    nnx.update(model, {"layers": {"direction": jnp.asarray(direction), "strength": strengths}})


def decisions(out: Rollout, tokenizer: Tokenizer) -> Decisions:
    """The start of each completion, and every attempt of it that ends in a "no".

    What neither an attempt nor an answer follows is left out.
    """
    last_of_prompt = out.prompts.shape[1] - 1
    found = []
    for row, (text, puzzle) in enumerate(zip(out.texts, out.puzzles, strict=True)):
        trace = traces.parse(text, puzzle)
        for noes, character in enumerate(_crossroads(trace)):
            tokens = _tokens_before(out.completions.tokens[row], character, tokenizer)
            is_attempt = noes < len(trace.attempts)
            found.append((row, last_of_prompt + tokens, noes, is_attempt))
    # The shape is given for the case that nothing was found.
    row, token, noes, tries = np.array(found, int).reshape(-1, 4).T
    return Decisions(row, token, noes, tries.astype(bool))


def _crossroads(trace: traces.Trace) -> list[int]:
    """Where in the text, in characters, the next attempt or the answer begins: at the start, and
    after each attempt called wrong, up to the first that is not."""
    begins = [attempt.claims[0].start for attempt in trace.attempts]
    if trace.answer is not None:
        begins.append(len(trace.text))
    found = []
    for number, character in enumerate(begins):
        if number > 0 and trace.attempts[number - 1].verdict != "no":
            break
        found.append(character)
    return found


def _tokens_before(ids, end: int, tokenizer: Tokenizer) -> int:
    """How many ids spell the text's characters up to `end`, or up to a blank before it."""
    count = 0
    while count < len(ids) and len(tokenizer.decode(ids[: count + 1])) <= end:
        count += 1
    return count


@functools.partial(jax.jit, static_argnames="graph")
def _residuals(graph, params, *rows):
    return nnx.merge(graph, params).residuals(*grpo.join_rows(*rows))


def activations(model: Gemma, out: Rollout, at: Decisions) -> Float[np.ndarray, "L N D"]:
    """The residual stream after every layer at the tokens of some decisions."""
    graph, params = nnx.split(model)
    read = (out.prompts, out.valid, out.completions.tokens, out.completions.written)
    count = len(out.prompts)
    found = np.zeros((model.config.layers, len(at.row), model.config.width), np.float32)
    for start in range(0, count, ROWS):
        rows = np.arange(start, start + ROWS) % count  # the last go round: one shape
        stream = _residuals(graph, params, *(array[rows] for array in read))
        here = np.flatnonzero((at.row >= start) & (at.row < start + ROWS))
        found[:, here] = stream[:, at.row[here] - start, at.token[here]]
    return found


def difference(
    activations: Float[np.ndarray, "L N D"], tries: Bool[np.ndarray, " N"]
) -> Float[np.ndarray, "L D"]:
    """Of each layer the mean activation before an attempt, less that before an answer.

    Raises ValueError where one of the two is missing.
    """
    attempt, answer = _means(activations, tries)
    return attempt - answer


def _means(
    activations: Float[np.ndarray, "L N D"], tries: Bool[np.ndarray, " N"]
) -> tuple[Float[np.ndarray, "L D"], Float[np.ndarray, "L D"]]:
    """The mean activation before an attempt and before an answer."""
    if tries.all() or not tries.any():
        raise ValueError(
            f"Of {len(tries)} decisions {tries.sum()} are attempts: a direction needs some "
            "attempts and some answers. Draw more completions."
        )
    return activations[:, tries].mean(1), activations[:, ~tries].mean(1)


def principal(
    activations: Float[np.ndarray, "L N D"],
) -> tuple[Float[np.ndarray, "L D"], Float[np.ndarray, " L"]]:
    """Of each layer the first principal component, of length 1 and either sign, and the share of
    the variance that lies along it. It needs no labels: a control for a direction that does.

    Raises ValueError where there are not two activations to differ.
    """
    if activations.shape[1] < 2:
        raise ValueError("Variance needs two decisions at least: draw more completions.")
    components, shares = [], []
    for cloud in activations:
        centred = cloud - cloud.mean(0)
        _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
        components.append(directions[0])
        shares.append(sizes[0] ** 2 / np.sum(sizes**2))
    return np.stack(components), np.array(shares, np.float32)


def probe(
    activations: Float[np.ndarray, "L N D"], tries: Bool[np.ndarray, " N"], ridge: float = 0.1
) -> Float[np.ndarray, "L D"]:
    """Of each layer the direction that tells the two apart best: Fisher's linear discriminant.

    `ridge` times the mean variance is added to every variance.
    """
    attempt, answer = _means(activations, tries)
    own_mean = np.where(tries[:, None], attempt[:, None], answer[:, None])
    within = activations - own_mean
    covariance = np.einsum("lnd,lne->lde", within, within) / len(tries)
    width = covariance.shape[1]
    mean_variance = np.trace(covariance, axis1=1, axis2=2) / width
    covariance += ridge * mean_variance[:, None, None] * np.eye(width)
    apart = attempt - answer
    return np.linalg.solve(covariance, apart[..., None])[..., 0]


def separation(scores: Float[np.ndarray, " N"], tries: Bool[np.ndarray, " N"]) -> float:
    """The share of pairs (an attempt, an answer) whose scores have that order: the area under the
    ROC curve; 0.5 is chance."""
    high, low = scores[tries][:, None], scores[~tries]
    return float(np.mean((high > low) + 0.5 * (high == low)))


def separation_in_other_half(
    activations: Float[np.ndarray, "L N D"],
    tries: Bool[np.ndarray, " N"],
    first: Bool[np.ndarray, " N"],
    find: Callable,
) -> list[float]:
    """Of each layer how a direction that `find` sees in the first half separates the other."""
    directions = find(activations[:, first], tries[first])
    others = activations[:, ~first]
    found = []
    for layer, direction in zip(others, directions, strict=True):
        found.append(separation(layer @ direction, tries[~first]))
    return found
