"""What a token's gradient is weighed with: the published objectives as functions of arrays.

Log-ratios are log π(token) - log π_old(token), in nats, 0 where nothing was sampled; gains are
advantages, [B, 1]. Knows nothing of models, rewards or settings; `grpo.surrogate` chooses by them.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float


def token_weights(mask: Bool[np.ndarray, "B T"], norm: str, group: int = 1):
    """What a token counts, so that the mean over the batch's tokens becomes another mean.

    "token": 1. "sequence": the mean of the completions' means (GRPO, 2402.03300, eq. 3): a token of
    a long one counts less. "group": the mean of the means of groups of `group` rows (DAPO,
    2503.14476, eq. 8). "constant": the sum over B · T, T the longest that is allowed (Dr. GRPO,
    2503.20783). Any other raises ValueError.
    """
    lengths = np.maximum(mask.sum(axis=1, keepdims=True), 1)
    if norm == "token":
        weights = 1.0
    elif norm == "sequence":
        weights = mask.sum() / (len(mask) * lengths)
    elif norm == "group":
        of_group = lengths.reshape(-1, group).sum(axis=1).repeat(group)
        weights = mask.sum() * group / (len(mask) * of_group[:, None])
    elif norm == "constant":
        weights = mask.sum() / mask.size
    else:
        raise ValueError(f'norm is "token", "sequence", "group" or "constant", not {norm!r}.')
    return (weights * mask).astype(np.float32)


def truncated_weights(trainer: Float[np.ndarray, "B T"], sampler, cap: float):
    """min(trainer / sampler probability, cap), from nats: for a trainer and a sampler that compute
    one policy a little differently (Yao et al. 2025, "Your efficient RL framework secretly brings
    you off-policy RL training")."""
    return np.minimum(np.exp(trainer - sampler), cap)


def clipped(log_ratio, gain, low: float, high: float):
    """PPO's min(r A, clip(r, 1 - low, 1 + high) A) of the ratio r to the sampling policy, [B, T]
    (1707.06347, eq. 7), and where the clip holds, so that the gradient is 0. DAPO's clip-higher
    (2503.14476, eq. 8) is high > low."""
    ratio = jnp.exp(log_ratio)
    inside = jnp.clip(ratio, 1 - low, 1 + high)
    return jnp.minimum(ratio * gain, inside * gain), inside * gain < ratio * gain


def sequence_mean(log_ratio, mask):
    """The completion's mean of `log_ratio`, at each of its tokens: log of GSPO's sequence ratio
    (π(y|x) / π_old(y|x)) ** (1 / |y|) (2507.18071, eq. 7), to be clipped like PPO's (eq. 5)."""
    return log_ratio.sum(1, keepdims=True) / jnp.maximum(mask.sum(1, keepdims=True), 1) * mask


def cispo(logprobs, log_ratio, gain, low: float, high: float):
    """CISPO (MiniMax-M1, 2506.13585, eq. 4-5): stop_gradient(clip(r)) A log π, [B, T], and where it
    is clipped. The clip bounds a token's weight and never drops the token."""
    ratio = jnp.exp(log_ratio)
    inside = jax.lax.stop_gradient(jnp.clip(ratio, 1 - low, 1 + high))
    return inside * gain * logprobs, inside != ratio


def mirror_descent(log_ratio, gain, mask, tau: float):
    """Kimi k1.5's objective (2501.12599, eq. 3), spread evenly over the completion's tokens.

    A L - tau/2 L² with L the completion's log-ratio: up to a constant -(A - tau L)² / (2 tau), the
    squared distance to mirror descent's optimum. Nothing is clipped.
    """
    whole = log_ratio.sum(1, keepdims=True)
    value = (gain - tau / 2 * whole) * whole / jnp.maximum(mask.sum(1, keepdims=True), 1)
    return value * mask, jnp.zeros_like(mask)
