"""Model shapes, run settings and the named presets that join them.

Frozen dataclasses and tables. Knows nothing of JAX, files or devices.
"""

import math
import numbers
from dataclasses import Field, dataclass, field, fields, replace


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
        for name in ("vocab", "layers", "width", "heads", "kv_heads", "head_dim", "ff"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it has to be at least 1.")
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
    "small": _gemma3(
        vocab=220,
        layers=5,
        width=192,
        heads=4,
        kv_heads=1,
        head_dim=32,
        ff=384,
        global_every=6,  # none: a step of a search depends on the last one through a list alone
        window=192,
    ),
    "look-up": _gemma3(
        vocab=68,
        layers=3,
        width=128,
        heads=4,
        kv_heads=1,
        head_dim=32,
        ff=256,
        global_every=1,
    ),
    "calculator": _gemma3(
        vocab=221,
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


@dataclass(frozen=True)
class PuzzleRange:
    """Which puzzles of Countdown are drawn: numbers from low..high, targets within theirs."""

    numbers: int | tuple[int, ...] = 3  # how many; a tuple such as (3, 4): one of these at random
    low: int = 1
    high: int = 99
    target_low: int = 10
    target_high: int = 100
    # None allows any rational intermediate value; otherwise the puzzle has a solution whose
    # numbers, intermediate values and target are all integers in 0..bound.
    bound: int | None = None
    # How a target is drawn: uniformly among those that some numbers "reach", or from all of
    # target_low..target_high, "uniform", and then numbers until they reach it.
    targets: str = "reached"

    @property
    def counts(self) -> tuple[int, ...]:
        """The possible numbers of numbers."""
        return (self.numbers,) if isinstance(self.numbers, int) else self.numbers


PUZZLES: dict[str, PuzzleRange] = {
    "tiny": PuzzleRange(3, low=1, high=20, target_low=10, target_high=99, bound=100),
    "tinyzero": PuzzleRange((3, 4), low=1, high=99, target_low=10, target_high=100),
    # The same, but solvable in the arithmetic of a small model: integers from 0 to 200.
    "tinyzero-200": PuzzleRange((3, 4), low=1, high=99, target_low=10, target_high=100, bound=200),
    # Three numbers only, for a model that is smaller still.
    "three-200": PuzzleRange(3, low=1, high=99, target_low=10, target_high=100, bound=200),
    # Targets as Stream of Search (2404.03683) draws them.
    "tinyzero-200-uniform": PuzzleRange(
        (3, 4), low=1, high=99, target_low=10, target_high=100, bound=200, targets="uniform"
    ),
}


@dataclass(frozen=True)
class Range:
    """Finite numbers from `least` to `most`."""

    least: int | float
    most: int | float = math.inf

    def __contains__(self, value: int | float) -> bool:
        return self.least <= value <= self.most and abs(value) < math.inf

    def __str__(self) -> str:
        upper = "up" if self.most == math.inf else f"to {self.most}"
        return f"from {self.least} {upper}"


@dataclass(frozen=True)
class OneOf:
    """Some words."""

    words: tuple[str, ...]

    def __contains__(self, value: str) -> bool:
        return value in self.words

    def __str__(self) -> str:
        return f"one of {', '.join(self.words)}"


def setting(default, meaning: str, allowed: Range | OneOf | None = None, changeable: bool = False):
    """A field of settings: its default, what it is, and what it may be (None: all of its type).

    What is `changeable` says how a run is computed, measured and kept, not what it learns: it may
    be another when the run is resumed.
    """
    shown = f"{meaning}; {allowed}" if allowed else meaning  # "help" is what tyro looks for
    about = {"help": shown, "meaning": meaning, "allowed": allowed, "changeable": changeable}
    return field(default=default, metadata=about)


def in_words(one: Field) -> str:
    """What a setting may be: "a whole number from 1 to 64"."""
    allowed = one.metadata["allowed"]
    if isinstance(allowed, OneOf):
        return str(allowed)
    kind = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}
    return f"{kind[one.type]} {allowed or ''}".strip()


def converted(value, kind: type):
    """`value` as a bool, int, float or str where it is of that kind; else TypeError.

    NumPy's scalars and whole numbers for a float are welcome; texts that look like numbers, 5.0
    for a whole number, and 1 for True are not: they are slips more often than not.
    """
    truth = type(value).__name__ in ("bool", "bool_")  # Python's and NumPy's
    if kind is bool:
        fits = truth
    elif kind is str:
        fits = isinstance(value, str)
    else:
        number = numbers.Integral if kind is int else numbers.Real
        fits = isinstance(value, number) and not truth
    if not fits:
        raise TypeError(f"{value!r} is not of type {kind.__name__}")
    return kind(value)


def check(settings) -> None:
    """Bring each field to its type; ValueError with a sentence where it is not what it may be."""
    for one in fields(settings):
        value, allowed = getattr(settings, one.name), one.metadata["allowed"]
        try:
            right = converted(value, one.type)
            fits = allowed is None or right in allowed
        except (TypeError, OverflowError):
            fits = False
        if not fits:
            raise ValueError(f"{one.name} is {value!r}: it has to be {in_words(one)}.")
        object.__setattr__(settings, one.name, right)  # the dataclass is frozen


# Words that settings may be.
SHAPES = OneOf(("tiny", "small", "look-up", "calculator"))
LESSONS = OneOf(("countdown", "look-up", "look-up-text", "calculator"))
TEMPLATES = OneOf(("tiny", "short", "base"))
DTYPES = OneOf(("auto", "float32", "bfloat16"))
OBJECTIVES = OneOf(("clip", "sequence_clip", "cispo", "reinforce", "kimi"))
NORMS = OneOf(("token", "sequence", "group", "constant"))
AHEAD = OneOf(("auto", "always", "never"))
TRACKERS = OneOf(("none", "tensorboard", "wandb"))

# The most that settings may be: beyond what a machine can do, and within what 32 bits can count.
MANY = 10**9  # steps
LONG = 2**20  # tokens
RANK = 4096  # of adapters


@dataclass(frozen=True)
class Settings:
    """All that determines a run: the same settings give the same run on the same machine."""

    preset: str = setting("tiny", "the preset that the others come from", changeable=True)
    model: str = setting(
        "tiny",
        '"tiny", a Kaggle handle, hf:OWNER/NAME or a folder, as weights.load takes it; empty: a '
        "random model, which needs a cold start",
    )
    cold_start: str = setting(
        "",
        "supervised training of the model before its first GRPO step, in the run's folder `base`: "
        "a preset of `aha pretrain`; empty: none",
    )
    cold_start_steps: int = setting(
        0, "steps of the cold start; 0: as many as its preset has", Range(0, MANY)
    )
    task: str = setting(
        "countdown", "what is learnt: countdown, FILE.py:NAME, MODULE:NAME or gym:NAME"
    )
    puzzles: str = setting("tiny", "of countdown: which puzzles", OneOf(tuple(PUZZLES)))
    template: str = setting("tiny", "of countdown: the prompt's template", TEMPLATES)
    dtype: str = setting("auto", "of activations; auto: bfloat16, on a CPU float32", DTYPES)
    seed: int = setting(0, "of puzzles and of what is drawn at random", Range(0, 2**32 - 1))
    steps: int = setting(60, "GRPO steps", Range(0, MANY))

    # Rollout
    prompts: int = setting(16, "puzzles a step", Range(1, 2**20))
    group: int = setting(16, "completions of each puzzle", Range(2, 2**16))
    prompt_len: int = setting(8, "tokens of a prompt, BOS included", Range(1, LONG))
    completion_len: int = setting(144, "tokens of a completion, EOS included", Range(1, LONG))
    temperature: float = setting(1.0, "of sampling", Range(0.01))
    turns: int = setting(4, "replies of the task's tool to a completion at most", Range(0, MANY))
    reply_len: int = setting(32, "tokens of a reply at most; a longer one ends it", Range(1, LONG))
    reply_seconds: float = setting(10.0, "after which a tool has failed", Range(0.001))
    refills: int = setting(
        0,
        "draws at most that replace groups all of whose answers are right, or wrong",
        Range(0, 1000),
    )

    # Reward and advantage
    form_reward: float = setting(
        0.1, "reward of a wrong answer that is a well-formed expression", Range(0, 0.9)
    )
    overlong: int = setting(
        0,
        "last tokens of completion_len over which a penalty grows to -1; 0: none",
        Range(0, LONG),
    )
    length_reward: float = setting(
        0.0, "weight of the reward for shorter answers within a group", Range(0)
    )
    scale_by_std: bool = setting(True, "divide advantages by the group's standard deviation")
    leave_one_out: bool = setting(False, "the baseline is the mean of the others, not of the group")

    # Loss
    objective: str = setting("clip", "what is maximised", OBJECTIVES)
    norm: str = setting(
        "token",
        "the loss is a mean over all tokens, of each sequence or group, or divided by a constant",
        NORMS,
    )
    clip_low: float = setting(0.2, "ratios are clipped at 1 - clip_low", Range(0, 1))
    clip_high: float = setting(0.28, "ratios are clipped at 1 + clip_high", Range(0))
    tau: float = setting(0.1, "weight of the squared log-ratio, for kimi alone", Range(1e-6))
    kl: float = setting(0.0, "weight of the KL divergence from the base model", Range(0))
    entropy_bonus: float = setting(0.0, "weight of the entropy", Range(0))

    # Update
    updates: int = setting(1, "optimizer steps on each batch", Range(1, 1000))
    importance_cap: float = setting(
        0.0, "cap of the weights trainer / sampler probability; 0: no weights", Range(0)
    )
    micro_batch: int = setting(
        32, "packed rows in memory at a time", Range(1, 2**20), changeable=True
    )
    remat: bool = setting(
        True,
        "compute layers again in the backward pass: less memory, more work",
        changeable=True,
    )
    learning_rate: float = setting(6e-4, "of Adam", Range(0))
    warmup: int = setting(
        5,
        "steps over which the learning rate rises to its full value, by equal amounts",
        Range(0, MANY),
    )
    decay: float = setting(
        1.0,
        "share of the learning rate that is left after the last step (cosine)",
        Range(0, 1),
    )
    weight_decay: float = setting(0.0, "of AdamW", Range(0))
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm", Range(1e-6))
    lora: int = setting(
        0, "rank of the adapters that are trained; 0: all weights are", Range(0, RANK)
    )
    tp: int = setting(
        1,
        "devices that share each matrix; the others share the rows",
        Range(1, 2**16),
        changeable=True,
    )
    gather: bool = setting(
        True,
        "sample with layers whole on every device; False where they do not fit",
        changeable=True,
    )

    # Measuring
    eval_every: int = setting(10, "steps between two evaluations", Range(1, MANY), changeable=True)
    eval_puzzles: int = setting(256, "puzzles of the held-out panel", Range(1, 2**20))
    pass_k: int = setting(
        16, "completions of each held-out puzzle for pass@k, at step 0", Range(1, 2**16)
    )

    # Keeping
    checkpoint_every: int = setting(
        10, "steps between two checkpoints", Range(1, MANY), changeable=True
    )
    checkpoint_minutes: float = setting(
        10.0, "a checkpoint also so long after the last one", Range(0), changeable=True
    )
    hours: float = setting(
        0.0,
        "after which it saves and stops; 0: when the session ends, if that is known",
        Range(0),
        changeable=True,
    )
    preflight: bool = setting(
        False,
        "sample a step's completions first, and stop if they teach nothing",
        changeable=True,
    )
    compile_ahead: str = setting(
        "auto",
        "compile all programs before the first step, side by side; auto: but on a CPU",
        AHEAD,
        changeable=True,
    )
    tracker: str = setting("none", "where rows go too", TRACKERS, changeable=True)

    def __post_init__(self):
        check(self)
        if self.cold_start and self.cold_start not in PRETRAINING:
            names = ", ".join(PRETRAINING)
            raise ValueError(
                f"cold_start is {self.cold_start!r}: it has to be one of {names}, or empty."
            )
        if not self.model and not self.cold_start:
            raise ValueError("model is empty: a random model needs a cold_start. Set one of them.")
        shown = PRETRAINING[self.cold_start].template if self.cold_start else self.template
        if shown != self.template:
            raise ValueError(
                f"template is {self.template!r}, and the cold start {self.cold_start} has that of "
                f"{shown!r}: set template to the same."
            )
        if self.overlong > self.completion_len:
            raise ValueError(
                f"overlong is {self.overlong}: it has to be within completion_len, which is "
                f"{self.completion_len}."
            )

    @property
    def changeable(self) -> frozenset[str]:
        """Fields that may change when a run is resumed: what it learns stays, but for rounding."""
        names = {one.name for one in fields(self) if one.metadata["changeable"]}
        if self.decay == 1 and not self.refills:  # else a step depends on how many there will be
            names.add("steps")
        return frozenset(names)


@dataclass(frozen=True)
class Pretraining:
    """All that determines supervised training on worked text: from nothing, or a cold start."""

    preset: str = setting("tiny", "the preset that the others come from")
    model: str = setting(
        "", "what to start from, as weights.load takes it; empty: a random model of its own shape"
    )
    shape: str = setting("tiny", "shape and vocabulary of a model that starts at random", SHAPES)
    waves: bool = setting(
        False, "such a model's number embeddings start as waves: see vocabulary.add_waves"
    )
    puzzles: str = setting("tiny", "which puzzles the traces are of", OneOf(tuple(PUZZLES)))
    template: str = setting(
        "tiny",
        "prompt template of countdown.prompt, and the language of the traces",
        TEMPLATES,
    )
    cut: bool = setting(False, "keep only those rows of the embedding that the corpus uses")

    # Corpus: shares of the documents, of any sum
    lesson: str = setting("countdown", "which task is worked in the text", LESSONS)
    drill: float = setting(0.2, "share of lists of sums", Range(0))
    jump: float = setting(0.56, "share of traces that only answer", Range(0))
    check: float = setting(0.16, "share of traces with one attempt", Range(0))
    search: float = setting(0.08, "share of traces that try until it fits", Range(0))
    drill_weight: float = setting(1.0, "weight in the loss of a result in a drill", Range(0))
    leave: float = setting(
        0.0,
        "of searches: the chance, after each no, to leave the numbers at hand for those before",
        Range(0, 1),
    )

    # Training
    seed: int = setting(0, "of the documents, and of what starts at random", Range(0, 2**32 - 1))
    steps: int = setting(6_000, "AdamW steps", Range(0, MANY))
    rows: int = setting(24, "packed rows a step", Range(1, 2**16))
    row_len: int = setting(160, "tokens of a row; longer documents are left out", Range(64, LONG))
    learning_rate: float = setting(5e-3, "of AdamW", Range(0))
    warmup: int = setting(
        100,
        "steps from 0 to the full learning rate; a cosine to 0 follows",
        Range(0, MANY),
    )
    weight_decay: float = setting(0.01, "of AdamW", Range(0))
    lora: int = setting(
        0, "rank of the adapters that are trained; 0: all weights are", Range(0, RANK)
    )
    adapters: str = setting("", "file of adapters to begin with, of whatever rank; empty: new ones")
    dtype: str = setting("auto", "of activations; auto: bfloat16, on a CPU float32", DTYPES)
    remat: bool = setting(True, "compute layers again in the backward pass: less memory, more work")
    checkpoint_every: int = setting(
        500, "steps between two checkpoints", Range(1, MANY), changeable=True
    )
    hours: float = setting(
        0.0,
        "after which it saves and stops; 0: when the session ends, if that is known",
        Range(0),
        changeable=True,
    )

    def __post_init__(self):
        check(self)
        if not sum(self.shares.values()) > 0:
            raise ValueError("drill, jump, check and search are all 0: there is nothing to learn.")
        if self.lora and not self.model:
            raise ValueError(
                f"lora is {self.lora}: adapters need a model to stand on. Set model, or lora=0."
            )
        if self.adapters and not self.lora:
            raise ValueError("adapters are trained where lora, their rank, is not 0.")
        if self.cut and not self.model:
            raise ValueError("cut=True needs a model: the tiny vocabulary has nothing to cut.")

    @property
    def changeable(self) -> frozenset[str]:
        """Fields that may change when a run is resumed."""
        return frozenset(one.name for one in fields(self) if one.metadata["changeable"])

    @property
    def shares(self) -> dict[str, float]:
        return {style: getattr(self, style) for style in ("drill", "jump", "check", "search")}


# Published losses as overrides of Settings; the functions of grpo name the papers. Where a number
# here is not the paper's, or the paper has none, notebook 09 says why.
VARIANTS: dict[str, dict] = {
    "grpo": dict(norm="sequence", clip_high=0.2, kl=0.04),
    "dr_grpo": dict(norm="constant", clip_high=0.2, scale_by_std=False),
    "dapo": dict(norm="group", refills=8, overlong=24),
    "rloo": dict(objective="reinforce", norm="constant", scale_by_std=False, leave_one_out=True),
    "gspo": dict(objective="sequence_clip", norm="sequence", clip_low=0.09, clip_high=0.12),
    "cispo": dict(objective="cispo", norm="group", clip_low=1.0, clip_high=4.0),
    "kimi": dict(objective="kimi", norm="constant", scale_by_std=False, length_reward=0.1),
}


# The same corpus in two languages. Gemma can add already: a tenth of the tokens suffice.
_COLD = Pretraining(
    preset="gemma3-270m-short",
    model="gemma3-270m",
    template="short",
    cut=True,
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
# TinyZero's own task for Gemma: searches of four numbers have 530 tokens on average.
_COLD_TINYZERO = replace(
    _COLD,
    preset="tinyzero-270m",
    puzzles="tinyzero-200",
    cut=False,
    drill=0.3,
    jump=0.4,
    check=0.15,
    search=0.15,
    steps=600,
    rows=16,
    row_len=768,
)
# Questions for a tool, in a language of their own.
_LOOK_UP = Pretraining(
    preset="look-up",
    shape="look-up",
    lesson="look-up",
    drill=0.0,
    jump=0.6,
    check=0.25,
    search=0.15,
    steps=1_600,
    rows=16,
    row_len=128,
    learning_rate=4e-3,
    warmup=100,
    remat=False,
    checkpoint_every=200,
)
PRETRAINING: dict[str, Pretraining] = {
    "tiny": Pretraining(),
    # Controls: the same but for their habits. What is left out jumps instead.
    "tiny-no-search": Pretraining(preset="tiny-no-search", jump=0.64, search=0.0),
    "tiny-jumps": Pretraining(preset="tiny-jumps", jump=0.8, check=0.0, search=0.0),
    "tinyzero-small": Pretraining(
        preset="tinyzero-small",
        shape="small",
        waves=True,
        puzzles="tinyzero-200",
        drill=0.3,
        drill_weight=3.0,
        jump=0.45,
        check=0.15,
        search=0.1,
        steps=5_000,
        rows=12,
        row_len=384,
        learning_rate=4e-3,
        warmup=200,
        remat=False,
        checkpoint_every=250,
    ),
    "look-up": _LOOK_UP,
    # The control guesses, and has never seen a call.
    "look-up-no-asking": replace(
        _LOOK_UP, preset="look-up-no-asking", jump=1.0, check=0.0, search=0.0
    ),
    # Short of drills and steps, so that the base's own sums are often wrong.
    "calculator": Pretraining(
        preset="calculator",
        shape="calculator",
        waves=True,
        lesson="calculator",
        puzzles="three-200",
        drill=0.3,
        drill_weight=3.0,
        jump=0.3,
        check=0.15,
        search=0.25,
        steps=900,
        rows=24,
        row_len=192,
        learning_rate=4e-3,
        warmup=100,
        remat=False,
        checkpoint_every=150,
    ),
    "gemma3-270m-cpu": replace(_COLD, preset="gemma3-270m-cpu", dtype="float32", remat=False),
    "gemma3-270m-short": _COLD,
    "look-up-270m": replace(
        _COLD,
        preset="look-up-270m",
        lesson="look-up-text",
        drill=0.0,
        jump=0.5,
        check=0.3,
        search=0.2,
        steps=200,
        dtype="float32",
        remat=False,
    ),
    "tinyzero-270m": _COLD_TINYZERO,
    "tinyzero-1b": replace(
        _COLD_TINYZERO, preset="tinyzero-1b", model="gemma3-1b", steps=400, learning_rate=5e-4
    ),
    "tinyzero-2b": replace(
        _COLD_TINYZERO, preset="tinyzero-2b", model="gemma2-2b", steps=400, learning_rate=3e-4
    ),
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


# Countdown as short text, for real Gemma where little can be had: a cold start of the same name,
# then GRPO from what that has trained.
_SHORT = Settings(
    preset="gemma3-270m-short",
    model="gemma3-270m",
    cold_start="gemma3-270m-short",
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
    cold_start="gemma3-270m-cpu",
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

# Adapters: the checkpoints of all weights of 1B would not go into the 20 GB that Kaggle keeps.
_TINYZERO = replace(
    _SHORT,
    preset="tinyzero-270m",
    cold_start="tinyzero-270m",
    puzzles="tinyzero-200",
    prompt_len=32,
    completion_len=1024,
    dtype="auto",
    micro_batch=16,
    pass_k=8,
)

SETTINGS: dict[str, Settings] = {
    "tiny": Settings(micro_batch=8, remat=False),
    "tinyzero-small": Settings(
        preset="tinyzero-small",
        model="small",
        puzzles="tinyzero-200",
        steps=100,
        prompts=24,
        group=16,
        prompt_len=8,
        completion_len=1024,
        learning_rate=4e-4,
        micro_batch=8,
        remat=False,
        eval_every=20,
        eval_puzzles=512,
        pass_k=4,
    ),
    "look-up": Settings(
        preset="look-up",
        model="look-up",
        task="aha_lib.tasks.look_up:LookUp",
        steps=40,
        prompt_len=6,
        completion_len=32,  # three hops, one of them asked twice
        micro_batch=8,
        remat=False,
    ),
    "calculator": Settings(
        preset="calculator",
        model="calculator",
        task="aha_lib.tasks.calculator:Calculator",
        puzzles="three-200",
        steps=40,
        completion_len=128,  # of searches by the rule 1 in 1,000 is longer
        turns=32,  # more than an answer has room for
        reply_len=2,
        learning_rate=3e-4,
        micro_batch=8,
        remat=False,
        pass_k=1,
    ),
    "gemma3-270m-cpu": _SHORT_CPU,
    "gemma3-270m-short": _SHORT,
    "look-up-270m": replace(
        _SHORT_CPU,
        preset="look-up-270m",
        cold_start="look-up-270m",
        task="aha_lib.tasks.look_up_text:LookUpText",
        steps=40,
        prompt_len=32,
        completion_len=160,
        turns=6,  # three hops, each asked in both wordings
    ),
    "tinyzero-270m": _TINYZERO,
    "tinyzero-1b": replace(
        _TINYZERO,
        preset="tinyzero-1b",
        model="gemma3-1b",
        cold_start="tinyzero-1b",
        learning_rate=7e-5,
    ),
    "tinyzero-2b": replace(
        _TINYZERO,
        preset="tinyzero-2b",
        model="gemma2-2b",
        cold_start="tinyzero-2b",
        learning_rate=5e-5,
        micro_batch=8,
    ),
    "gemma3-270m": _gemma("gemma3-270m"),
    "gemma3-1b": _gemma("gemma3-1b", micro_batch=16),
    "gemma2-2b": _gemma("gemma2-2b", micro_batch=8),
}


def shape(name: str) -> ModelConfig:
    """The shape that a preset's model has, or a name in MODELS; KeyError for others."""
    cold = PRETRAINING.get(name)
    return MODELS[name if cold is None else cold.model or cold.shape]
