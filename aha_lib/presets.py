"""Model shapes, run settings and the named presets that join them.

Frozen dataclasses and tables. Knows nothing of JAX, files or devices.
"""

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a Gemma: all that distinguishes generations 1, 2 and 3, and their sizes.

    Layer i attends globally when (i + 1) is a multiple of `global_every`, else to a sliding
    window. Sources: the Gemma (2403.08295), Gemma 2 (2408.00118) and Gemma 3 (2503.19786)
    reports, and the configurations published with the weights.
    """

    vocab: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ff: int
    global_every: int = 1
    window: int = 0  # tokens a local layer sees, itself included; 0: no layer is local
    rope_base: float = 10_000.0  # of global layers
    rope_base_local: float = 10_000.0
    rope_scale: float = 1.0  # positions of global layers are divided by it
    query_scalar: float = 0.0  # queries are scaled by query_scalar ** -0.5; 0: the head size
    attn_softcap: float = 0.0  # 0: none
    final_softcap: float = 0.0
    qk_norm: bool = False
    post_norms: bool = False
    norm_eps: float = 1e-6
    padding: int = 0  # last rows of the embedding, which no token has: they are never sampled

    def __post_init__(self):
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.kv_heads} KV heads evenly.")
        if self.global_every > 1 and self.window < 1:
            raise ValueError("Local layers need a window of at least one token.")

    @property
    def generation(self) -> int:
        """1, 2 or 3: Gemma 2 brought the norms after each block, Gemma 3 those of q and k."""
        return 3 if self.qk_norm else 2 if self.post_norms else 1

    @property
    def global_layers(self) -> int:
        return self.layers // self.global_every

    def slots(self, tokens: float) -> float:
        """Slots, over all layers, of a row's cache of so many tokens: local ones keep a window."""
        local = self.layers - self.global_layers
        return self.global_layers * tokens + local * min(tokens, self.window)

    @property
    def parameters(self) -> int:
        """Number of parameters, the (tied) embedding counted once."""
        attention = self.width * self.head_dim * 2 * (self.heads + self.kv_heads)
        norms = self.width * (4 if self.post_norms else 2) + 2 * self.head_dim * self.qk_norm
        layer = attention + 3 * self.width * self.ff + norms
        return self.vocab * self.width + self.layers * layer + self.width


def _gemma1(**shape) -> ModelConfig:
    return ModelConfig(vocab=256_128, padding=128, head_dim=256, **shape)


def _gemma2(**shape) -> ModelConfig:
    return ModelConfig(
        vocab=256_128,
        padding=128,
        global_every=2,
        window=4096,
        attn_softcap=50.0,
        final_softcap=30.0,
        post_norms=True,
        **shape,
    )


def _gemma3(*, vocab=262_144, global_every=6, **shape) -> ModelConfig:
    return ModelConfig(
        vocab=vocab,
        global_every=global_every,
        rope_base=1_000_000.0,
        qk_norm=True,
        post_norms=True,
        **shape,
    )


MODELS: dict[str, ModelConfig] = {
    "tiny": _gemma3(
        vocab=118,
        layers=4,
        width=128,
        heads=4,
        kv_heads=1,
        head_dim=32,
        ff=256,
        global_every=2,
        window=128,
    ),
    "gemma-2b": _gemma1(layers=18, width=2048, heads=8, kv_heads=1, ff=16_384),
    "gemma-7b": _gemma1(layers=28, width=3072, heads=16, kv_heads=16, ff=24_576),
    "gemma2-2b": _gemma2(layers=26, width=2304, heads=8, kv_heads=4, head_dim=256, ff=9216),
    "gemma2-9b": _gemma2(layers=42, width=3584, heads=16, kv_heads=8, head_dim=256, ff=14_336),
    "gemma3-270m": _gemma3(
        layers=18, width=640, heads=4, kv_heads=1, head_dim=256, ff=2048, window=512
    ),
    "gemma3-1b": _gemma3(
        layers=26, width=1152, heads=4, kv_heads=1, head_dim=256, ff=6912, window=512
    ),
    "gemma3-4b": _gemma3(
        layers=34,
        width=2560,
        heads=8,
        kv_heads=4,
        head_dim=256,
        ff=10_240,
        window=1024,
        rope_scale=8.0,
        vocab=262_208,
        padding=64,
    ),
}

# Keywords of countdown.generate.
PUZZLES: dict[str, dict] = {
    "tiny": dict(numbers=3, low=1, high=20, target_low=10, target_high=99, bound=100),
    "tinyzero": dict(numbers=(3, 4), low=1, high=99, target_low=10, target_high=100),
}

# What a run's settings may be: the least and the most that make sense, or one of some words.
_LEAST = dict.fromkeys(
    """clip_low decay kl entropy_bonus length_reward clip_high importance_cap
learning_rate weight_decay seed steps refills overlong warmup lora form_reward
checkpoint_minutes hours""".split(),
    0,
)
_LEAST |= dict.fromkeys(
    """prompts prompt_len completion_len updates micro_batch eval_every
eval_puzzles pass_k checkpoint_every tp""".split(),
    1,
)
_LEAST |= {"group": 2, "temperature": 0.01, "tau": 1e-6, "max_grad_norm": 1e-6}
_LEAST |= dict.fromkeys(("drill", "jump", "check", "search"), 0)
_LEAST |= {"rows": 1, "row_len": 16}
# JAX's keys take 32 bits of a seed.
_MOST = {"clip_low": 1, "decay": 1, "form_reward": 0.9, "seed": 2**32 - 1}
# Fields that say how a run is computed, measured and kept, not what it learns.
_COMPUTED_AND_KEPT = """preset micro_batch remat tp gather eval_every checkpoint_every
checkpoint_minutes hours preflight tracker""".split()
_CHOICES = {
    "puzzles": tuple(PUZZLES),
    "template": ("tiny", "short", "base"),
    "dtype": ("auto", "float32", "bfloat16"),
    "objective": ("clip", "sequence_clip", "cispo", "reinforce", "kimi"),
    "norm": ("token", "sequence", "group", "constant"),
    "tracker": ("none", "tensorboard", "wandb"),
}


def _check(settings) -> None:
    """Raises ValueError where a field is not what the tables above allow."""
    for name, value in vars(settings).items():
        least, most = _LEAST.get(name, -math.inf), _MOST.get(name, math.inf)
        if name in _LEAST and not (least <= value <= most and math.isfinite(value)):
            upper = f"to {most}" if name in _MOST else "up"
            raise ValueError(f"{name} is {value}: it has to be a number from {least} {upper}.")
        if value not in (choices := _CHOICES.get(name, (value,))):
            raise ValueError(f"{name} is {value!r}: it has to be one of {', '.join(choices)}.")


@dataclass(frozen=True)
class Settings:
    """All that determines a run: the same settings give the same run on the same machine."""

    preset: str = "tiny"  # a name in SETTINGS
    model: str = "tiny"  # "tiny", a Kaggle handle or a folder, as weights.load takes it
    task: str = "countdown"  # or FILE.py:NAME, MODULE:NAME, as tasks.task.load takes it
    puzzles: str = "tiny"  # Countdown's: a name in PUZZLES
    template: str = "tiny"  # prompt template of countdown.prompt
    dtype: str = "auto"  # of activations: "float32", "bfloat16" or what devices.dtypes says
    seed: int = 0
    steps: int = 60
    # Rollout
    prompts: int = 16  # puzzles a step
    group: int = 16  # completions of each puzzle
    prompt_len: int = 8  # tokens, BOS included
    completion_len: int = 144  # tokens, EOS included
    temperature: float = 1.0
    refills: int = 0  # draws at most that replace groups all of whose answers are right, or wrong
    # Reward and advantage
    form_reward: float = 0.1  # of a wrong answer that is a well-formed expression
    overlong: int = 0  # last tokens of completion_len over which a penalty grows to -1; 0: none
    length_reward: float = 0.0  # weight of the reward for shorter answers within a group
    scale_by_std: bool = True  # divide advantages by the group's standard deviation
    leave_one_out: bool = False  # the baseline is the mean of the others, not of the group
    # Loss
    objective: str = "clip"  # "clip", "sequence_clip", "cispo", "reinforce" or "kimi"
    norm: str = "token"  # mean over all tokens; of each "sequence", "group"; or by a "constant"
    clip_low: float = 0.2
    clip_high: float = 0.28
    tau: float = 0.1  # weight of the squared log-ratio, for "kimi" alone
    kl: float = 0.0  # weight of the KL divergence from the base model
    entropy_bonus: float = 0.0  # weight of the entropy
    # Update
    updates: int = 1  # optimizer steps on each batch
    importance_cap: float = 0.0  # cap of the weights trainer / sampler probability; 0: no weights
    micro_batch: int = 32  # packed rows in memory at a time
    remat: bool = True  # compute layers again in the backward pass: less memory, more work
    learning_rate: float = 6e-4
    warmup: int = 5  # steps over which the learning rate rises to its full value, by equal amounts
    decay: float = 1.0  # share of the learning rate that is left after the last step (cosine)
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    lora: int = 0  # rank of the adapters that are trained; 0: all weights are
    tp: int = 1  # devices that share each matrix; the others share the rows
    gather: bool = True  # sample with layers whole on every device; False where they do not fit
    # Measuring
    eval_every: int = 10
    eval_puzzles: int = 256
    pass_k: int = 16  # completions of each held-out puzzle for pass@k, at step 0
    # Keeping: nothing from here on changes what the run learns
    checkpoint_every: int = 10  # steps
    checkpoint_minutes: float = 10.0  # also so long after the last one
    hours: float = 0.0  # after which it saves and stops; 0: when the session ends, if that is known
    preflight: bool = False  # sample a step's completions first, and stop if they teach nothing
    tracker: str = "none"  # "tensorboard" or "wandb": rows go there too

    def __post_init__(self):
        _check(self)
        if self.overlong > self.completion_len:
            raise ValueError(
                f"overlong is {self.overlong}: it has to be within completion_len, which is "
                f"{self.completion_len}."
            )

    @property
    def changeable(self) -> frozenset[str]:
        """Fields that may change when a run is resumed: what it learns stays, but for rounding."""
        steps = ["steps"] * (self.decay == 1 and not self.refills)
        return frozenset({*_COMPUTED_AND_KEPT, *steps})


@dataclass(frozen=True)
class Pretraining:
    """All that determines supervised training on worked text: from nothing, or a cold start."""

    preset: str = "tiny"  # a name in PRETRAINING
    model: str = ""  # what to start from, as weights.load takes it; "": a random tiny model
    template: str = "tiny"  # prompt template of countdown.prompt, and the language of the traces
    cut: bool = False  # keep only those rows of the embedding that the corpus uses
    # Corpus: shares of the documents, of any sum
    drill: float = 0.2  # lists of sums
    jump: float = 0.56  # traces that only answer
    check: float = 0.16  # traces with one attempt
    search: float = 0.08  # traces that try until it fits
    # Training
    seed: int = 0  # of the documents, and of what starts at random
    steps: int = 6_000
    rows: int = 24  # packed rows a step
    row_len: int = 160  # tokens of a row; longer documents are left out
    learning_rate: float = 5e-3
    warmup: int = 100  # steps from 0 to the full learning rate; a cosine to 0 follows
    weight_decay: float = 0.01
    lora: int = 0  # rank of the adapters that are trained; 0: all weights are
    adapters: str = ""  # file of adapters to begin with, of whatever rank; "": new ones
    dtype: str = "auto"  # as in Settings
    remat: bool = True  # as in Settings
    checkpoint_every: int = 500

    def __post_init__(self):
        _check(self)
        if not sum(self.shares.values()) > 0:
            raise ValueError("drill, jump, check and search are all 0: there is nothing to learn.")
        if self.adapters and not self.lora:
            raise ValueError("adapters are trained where lora, their rank, is not 0.")
        if self.cut and not self.model:
            raise ValueError("cut=True needs a model: the tiny vocabulary has nothing to cut.")

    changeable = frozenset({"checkpoint_every"})  # of a run that goes on

    @property
    def shares(self) -> dict[str, float]:
        return {style: getattr(self, style) for style in ("drill", "jump", "check", "search")}


# Published losses as overrides of Settings; the functions of grpo name the papers. Where a number
# here is not the paper's, or the paper has none, notebook 04 says why.
VARIANTS: dict[str, dict] = {
    "grpo": dict(norm="sequence", clip_high=0.2, kl=0.04),
    "dr_grpo": dict(norm="constant", clip_high=0.2, scale_by_std=False),
    "dapo": dict(norm="group", refills=8, overlong=24),
    "rloo": dict(objective="reinforce", norm="constant", scale_by_std=False, leave_one_out=True),
    "gspo": dict(objective="sequence_clip", norm="sequence", clip_low=0.09, clip_high=0.12),
    "cispo": dict(objective="cispo", norm="group", clip_low=1.0, clip_high=4.0),
    "kimi": dict(objective="kimi", norm="constant", scale_by_std=False, length_reward=0.1),
}


def _gemma(name: str, **changes) -> Settings:
    """TinyZero's task and sizes, eight completions a puzzle, for a base Gemma on eight cores."""
    return Settings(
        preset=name,
        model=name,
        puzzles="tinyzero",
        template="base",
        steps=400,
        prompts=32,
        group=8,
        prompt_len=256,
        completion_len=1024,
        kl=0.001,
        learning_rate=1e-6,
        eval_every=25,
        pass_k=8,
        checkpoint_every=25,
        preflight=True,
        **changes,
    )


# Countdown as short text, for real Gemma where little can be had: a cold start by
# `aha_lib.run.pretrain` of the same preset, then GRPO from the folder that it writes.
_SHORT = Settings(
    preset="gemma3-270m-short",
    model="runs/gemma3-270m-short/base",
    template="short",
    steps=110,
    prompts=32,
    group=16,
    prompt_len=20,
    completion_len=400,
    learning_rate=1e-4,
    decay=0.1,
    lora=32,
    dtype="float32",
    eval_puzzles=512,
    pass_k=1,
    checkpoint_every=20,
)
_SHORT_CPU = replace(
    _SHORT,
    preset="gemma3-270m-cpu",
    model="runs/gemma3-270m-cpu/base",
    remat=False,
    prompts=8,
    group=8,
    completion_len=200,
    steps=60,
    learning_rate=2e-4,
    decay=1.0,
    lora=16,
    micro_batch=8,
    eval_puzzles=128,
    checkpoint_every=5,
)

SETTINGS: dict[str, Settings] = {
    "tiny": Settings(micro_batch=8, remat=False),
    "gemma3-270m-cpu": _SHORT_CPU,
    "gemma3-270m-short": _SHORT,
    "gemma3-270m": _gemma("gemma3-270m"),
    "gemma3-1b": _gemma("gemma3-1b", micro_batch=16),
    "gemma2-2b": _gemma("gemma2-2b", micro_batch=8),
}

# The same corpus in two languages. Gemma can add already: a tenth of the tokens suffice.
_COLD = Pretraining(
    preset="gemma3-270m-short",
    model="gemma3-270m",
    template="short",
    drill=0.2,
    jump=0.4,
    check=0.24,
    search=0.16,
    steps=400,
    rows=3,
    row_len=320,
    learning_rate=1e-3,
    warmup=20,
    weight_decay=0.0,
    lora=32,
    checkpoint_every=50,
)
PRETRAINING: dict[str, Pretraining] = {
    "tiny": Pretraining(),
    # Controls: the same but for their habits. What is left out jumps instead.
    "tiny-no-search": Pretraining(preset="tiny-no-search", jump=0.64, search=0.0),
    "tiny-jumps": Pretraining(preset="tiny-jumps", jump=0.8, check=0.0, search=0.0),
    "gemma3-270m-cpu": replace(
        _COLD, preset="gemma3-270m-cpu", cut=True, dtype="float32", remat=False
    ),
    "gemma3-270m-short": _COLD,
}


def shape(name: str) -> ModelConfig:
    """The shape that a preset's model has, or a name in MODELS; KeyError for others."""
    cold = PRETRAINING.get(name)
    return MODELS[name if cold is None else cold.model or "tiny"]
