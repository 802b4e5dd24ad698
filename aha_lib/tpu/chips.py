"""What TPUs can do at best, and the time that a training step takes at that.

Tables and arithmetic. Knows nothing of what is installed here; asks no device.
"""

import math
from dataclasses import dataclass

from aha_lib.presets import ModelConfig, Pretraining, Settings


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


def estimate(config: ModelConfig, settings: Settings, chip: Chip) -> dict[str, float]:
    """Seconds per step of the three phases if the machine reached its peaks.

    Each phase takes the longest of its operations, its bytes of HBM and its bytes between cores
    (scaling book, "roofline").
    """
    step = _Step(config, settings, chip)
    return {"prefill": step.prefill, "decode": step.decode, "update": step.update}


def estimate_supervised(config: ModelConfig, settings: Pretraining, chip: Chip) -> float:
    """Seconds per step of supervised training if the machine reached its peaks.

    Every token has its logits; rows are filled up to what the cores divide.
    """
    s = settings
    tokens = -(-s.rows // chip.cores) * chip.cores * s.row_len
    passes = 3 + s.remat  # as in `_Step.update`
    compute = passes * _forward(config, chip, tokens, s.row_len, logits=tokens)
    return max(compute, 3 * _layer_bytes(config) / chip.ici)


@dataclass(frozen=True)
class _Step:
    """A training step of a model on a machine, whose work is spread evenly over the cores."""

    config: ModelConfig
    settings: Settings
    chip: Chip

    @property
    def prefill(self) -> float:
        """Seconds to read all prompts, each once."""
        s = self.settings
        # Without logits: those after the prompt are the first of decoding.
        compute = self._forward(s.prompts * s.prompt_len, s.prompt_len, logits=0)
        return max(compute, self._layer_bytes / self.chip.ici)

    @property
    def decode(self) -> float:
        """Seconds to write all completions to their full length.

        A token of all rows reads the weights and each row's KV cache once (scaling book,
        "inference").
        """
        s, c = self.settings, self.config
        # The cache grows in four stages; this is the mean of its four lengths.
        context = s.prompt_len + 5 / 8 * s.completion_len
        cache_of_row = c.slots(context) * 4 * c.kv_heads * c.head_dim
        # Of layers that are gathered beforehand each core reads a whole copy and none is sent.
        layers_read = self._layer_bytes if s.gather else self._layer_bytes / self.chip.cores
        layers_sent = 0 if s.gather else self._layer_bytes
        head_read = 2 * _head_parameters(self.config) / self.chip.cores
        read = layers_read + head_read + self._rows / self.chip.cores * cache_of_row
        token = max(
            self._forward(self._rows, context, logits=self._rows),
            read / self.chip.bandwidth,
            layers_sent / self.chip.ici,
        )
        return s.completion_len * token

    @property
    def update(self) -> float:
        """Seconds for all optimizer steps on the batch."""
        s = self.settings
        length = s.prompt_len + s.completion_len
        has_reference = s.kl > 0
        # Forward, and backward twice its work; again forward where layers are recomputed.
        passes = 3 + s.remat + has_reference
        written = self._rows * s.completion_len  # no token of a prompt is a target
        compute = passes * self._forward(self._rows * length, length, logits=written)
        # Each micro-batch gathers the layers forward and backward, and scatters the gradient.
        transfers = (3 + has_reference) * math.ceil(self._rows / s.micro_batch)
        return max(compute, transfers * self._layer_bytes / self.chip.ici) * s.updates

    @property
    def _rows(self) -> int:
        return self.settings.prompts * self.settings.group

    @property
    def _layer_bytes(self) -> int:
        return _layer_bytes(self.config)

    def _forward(self, tokens: int, context: int | float, *, logits: int) -> float:
        return _forward(self.config, self.chip, tokens, context, logits=logits)


def _head_parameters(config: ModelConfig) -> int:
    return config.vocab * config.width


def _layer_bytes(config: ModelConfig) -> int:
    """Of all layers' parameters in bfloat16."""
    return 2 * (config.parameters - _head_parameters(config))


def _forward(
    config: ModelConfig, chip: Chip, tokens: int, context: int | float, *, logits: int
) -> float:
    """Seconds of arithmetic of a forward pass over tokens that each attend to `context`.

    2 N + 4 L H h S operations a token (scaling book, "transformers"); of the N parameters those of
    the vocabulary are for tokens alone whose `logits` are computed.
    """
    c = config
    layers = 2 * (c.parameters - _head_parameters(c))
    attention = 4 * c.layers * c.heads * c.head_dim * context
    operations = tokens * (layers + attention) + logits * 2 * _head_parameters(c)
    return operations / chip.cores / chip.flops
