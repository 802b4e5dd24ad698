"""What TPUs can do at best, and the time that a training step takes at that.

Tables and arithmetic. Knows nothing of what is installed here; asks no device.
"""

import math
from dataclasses import dataclass

from aha_lib.presets import Settings


@dataclass(frozen=True)
class Chip:
    """A machine: its cores as JAX counts them, and what each of them can do at best.

    Peaks: docs.cloud.google.com/tpu/docs/v3 (v5e, v6e). Links: two per chip, one way, of the JAX
    scaling book (jax-ml.github.io/scaling-book/tpus). Memory: what the compiler grants.
    """

    topology: str
    cores: int
    hbm: float  # GiB
    flops: float  # bfloat16, per second
    bandwidth: float  # of HBM, bytes per second
    ici: float  # from the other cores, bytes per second; infinite where there are none
    dollars: float  # per hour of the machine, on demand in the USA


# Prices a chip and hour, $2.20 (v3, two cores), $1.20 (v5e) and $2.70 (v6e): cloud.google.com/tpu/
# pricing as quoted in 2026; ask there for today's. Sessions on Kaggle and Colab can be free.
CHIPS = {
    "v3-8": Chip("v3:2x2", 8, 15.48, 61.5e12, 450e9, 100e9, 8.80),
    "v5e-1": Chip("v5e:1x1", 1, 15.75, 197e12, 819e9, math.inf, 1.20),  # Colab's
    "v5e-8": Chip("v5e:2x4", 8, 15.75, 197e12, 819e9, 90e9, 9.60),
    "v5e-16": Chip("v5e:4x4", 16, 15.75, 197e12, 819e9, 90e9, 19.20),
    "v6e-1": Chip("v6e:1x1", 1, 31.25, 918e12, 1638e9, math.inf, 2.70),  # Colab's
    "v6e-8": Chip("v6e:2x4", 8, 31.25, 918e12, 1638e9, 180e9, 21.60),
}


def estimate(config, settings: Settings, chip: Chip) -> dict[str, float]:
    """Seconds per step of the three phases if the machine reached its peaks.

    Each phase takes the longest of its operations, its bytes of HBM and its bytes between cores
    (scaling book, "roofline"). Forward: 2 N + 4 L H h S operations for a token that attends to S
    ("transformers"); an update is three of them (forward, and backward twice), one more if layers
    are recomputed, and one for the reference. A decoded token reads the weights and its rows' KV
    cache ("inference").
    """
    s, c, cores = settings, config, chip.cores
    head = c.vocab * c.width
    layers = 2 * (c.parameters - head)  # bytes in bfloat16
    rows, length = s.prompts * s.group, s.prompt_len + s.completion_len

    def forward(tokens, context):
        operations = 2 * c.parameters + 4 * c.layers * c.heads * c.head_dim * context
        return tokens * operations / cores / chip.flops

    context = s.prompt_len + 5 / 8 * s.completion_len  # mean length of the cache in four stages
    cache = rows / cores * c.slots(context) * 4 * c.kv_heads * c.head_dim
    read = (layers if s.gather else layers / cores) + 2 * head / cores + cache
    moved = 0 if s.gather else layers
    update = (3 + s.remat + (s.kl > 0)) * forward(rows * length, length)
    gathers = (3 + (s.kl > 0)) * layers * math.ceil(rows / s.micro_batch)  # 2, and the gradient's
    return {
        "prefill": max(forward(s.prompts * s.prompt_len, s.prompt_len), layers / chip.ici),
        "decode": s.completion_len
        * max(forward(rows, context), read / chip.bandwidth, moved / chip.ici),
        "update": max(update, gathers / chip.ici) * s.updates,
    }
