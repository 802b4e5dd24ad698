"""What fits on which chip, asked of the compiler; and the time and price that its peaks allow.

Compiles the programs of a run for a TPU that need not be there, with XLA's own compiler (libtpu),
and adds up what a core must hold: `aha plan --model gemma2-2b --chip v3-8`. Runs none of them and
loads no weights. Knows nothing of the task but how long its prompts are.
"""

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import re
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from aha_lib import devices, install
from aha_lib.model import weights
from aha_lib.model.tokenizer import Tokenizer
from aha_lib.presets import MODELS, SETTINGS, Settings, shape
from aha_lib.rl import sampler
from aha_lib.run import cli
from aha_lib.run.programs import GiB, Program, programs
from aha_lib.tasks import task as tasks
from aha_lib.tpu.chips import CHIPS, Chip, estimate
from aha_lib.tpu.forecast import Forecast, forecast

log = logging.getLogger(__name__)
MODEL_NAMES = tuple({**MODELS, **SETTINGS})

# What to change where a program does not fit, by its phase.
ADVICE = {
    "cold start": "choose a cold start with fewer rows, or a shorter row_len",
    "keep": "train adapters",
    "sample": "lower prompts (or gather=False), or train adapters",
    "update": "lower micro_batch, or train adapters",
}
# GiB of the units in the compiler's messages.
UNITS = {"K": 2**-20, "M": 2**-10, "G": 1, "T": 2**10}


@dataclass(frozen=True)
class Memory:
    """What one core holds while a program runs, in GiB."""

    name: str  # of the program
    arguments: float
    temporaries: float  # and results that take no argument's place; all if the compiler gave up
    resident: float  # arrays that wait for their turn
    seconds: float  # that the compiler took

    @property
    def phase(self) -> str:
        return self.name.split(":")[0]

    @property
    def total(self) -> float:
        return self.arguments + self.temporaries + self.resident


@dataclass(frozen=True)
class Plan:
    """The answer for one model, chip and settings; prints as a table."""

    model: str
    chip: str
    settings: Settings
    programs: list[Memory]
    times: dict[str, float]  # seconds per step, of `estimate`

    @property
    def fits(self) -> bool:
        return not self.too_large

    @property
    def forecast(self) -> Forecast | None:
        """Minutes of the run, by what the compiler took; None of a model without a preset."""
        if self.model not in SETTINGS:
            return None
        s, base = self.settings, SETTINGS[self.model]
        names = [one.name for one in dataclasses.fields(Settings)]
        changes = {
            name: getattr(s, name) for name in names if getattr(s, name) != getattr(base, name)
        }
        seconds = {program.name: program.seconds for program in self.programs}
        advice = " ".join(self._advice())
        return forecast(self.model, self.chip, seconds=seconds, too_large=advice, **changes)

    @property
    def too_large(self) -> list[Memory]:
        """The programs that do not fit."""
        return [program for program in self.programs if program.total > CHIPS[self.chip].hbm]

    def __str__(self) -> str:
        lines = [self._title(), *self._table(), *self._advice(), self._time_and_price()]
        minutes = self.forecast
        if minutes:
            lines.append(str(minutes))
        return "\n".join(lines)

    def _title(self) -> str:
        s = self.settings
        trained = f"adapters of rank {s.lora}" if s.lora else "all weights"
        return (
            f"{self.model} on {self.chip}: {s.prompts} prompts x {s.group} completions, "
            f"{s.prompt_len} + {s.completion_len} tokens, micro_batch {s.micro_batch}, "
            f"kl {s.kl:g}, {trained}; GiB per core"
        )

    def _table(self) -> Iterator[str]:
        yield (
            f"{'program':<18}{'arguments':>10}{'temporary':>10}{'resident':>9}{'total':>7}"
            f"{'free':>7}{'compiled in':>13}"
        )
        for p in self.programs:
            free = CHIPS[self.chip].hbm - p.total
            yield (
                f"{p.name:<18}{p.arguments:10.2f}{p.temporaries:10.2f}{p.resident:9.2f}"
                f"{p.total:7.2f}{free:7.2f}{p.seconds:11.0f} s"
            )

    def _advice(self) -> Iterator[str]:
        hbm = CHIPS[self.chip].hbm
        for p in self.too_large:
            yield f"{p.name} needs {p.total:.1f} GiB of a core's {hbm:g}: {ADVICE[p.phase]}."

    def _time_and_price(self) -> str:
        step = sum(self.times.values())
        phases = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.times.items())
        hours = self.settings.steps * step / 3600
        dollars = hours * CHIPS[self.chip].dollars
        return (
            f"at the chip's peaks a step takes {step:.1f} s ({phases}), {self.settings.steps} "
            f"steps {hours:.1f} h or ${dollars:.0f}"
        )


def plan(model: str, chip: str, /, **changes) -> Plan:
    """Compile the programs of `train` for a chip of `CHIPS`; `changes` are those of `Settings`.

    The settings are those of the preset `model`, or of gemma2-2b for a model without one. Results
    are kept by content. Raises ValueError for unknown names, and for prompts of the task that are
    too long for `prompt_len` if the tokenizer lies here; RuntimeError without libtpu.
    """
    settings = _settings(model, chip, changes)
    memory = list(_memory_of_programs(model, chip, settings))
    return Plan(model, chip, settings, memory, estimate(shape(model), settings, CHIPS[chip]))


def largest(name: str, model: str, chip: str, /, *, start: int | None = None, **changes) -> int:
    """The largest power of two times the cores that setting `name` may have; 0 if none fits.
    The search begins at `start`, by default one a core."""

    def fits(size: int) -> bool:
        settings = _settings(model, chip, changes | {name: size})
        # From the last: the update is the likeliest not to fit, and saves compiling the others.
        each = _memory_of_programs(model, chip, settings, backwards=True)
        return all(memory.total <= CHIPS[chip].hbm for memory in each)

    least = CHIPS[chip].cores
    best, size = 0, start or least
    while fits(size):
        best = size
        size *= 2
    # Where even the start did not fit: down again.
    while not best and size > least:
        size //= 2
        best = size if fits(size) else 0
    return best


def _settings(model: str, chip: str, changes: dict) -> Settings:
    """The settings that are asked about; ValueError for what is in none of the tables."""
    if model not in MODEL_NAMES or chip not in CHIPS:
        raise ValueError(
            f"{model} on {chip} is not in the tables: there are models {', '.join(MODEL_NAMES)}; "
            f"chips {', '.join(CHIPS)}."
        )
    base = SETTINGS.get(model) or dataclasses.replace(SETTINGS["gemma2-2b"], model=model)
    settings = dataclasses.replace(base, **changes)
    _check_prompts(settings)
    return settings


def _check_prompts(settings: Settings) -> None:
    """ValueError where the task's longest prompt has more than `prompt_len` tokens.

    Needs the tokenizer: one that would have to be downloaded is left to `train`.
    """
    task = tasks.load(settings)
    folder = Path(weights.SHIPPED.get(settings.model, settings.model))
    file = folder / "tokenizer.model"
    if file.exists():
        tokenizer = Tokenizer.load(file)
        longest = tokenizer.encode(task.prompt(task.longest()))
        sampler.pad_left([longest], settings.prompt_len, tokenizer.pad_id)


def _memory_of_programs(
    model: str, chip: str, settings: Settings, *, backwards: bool = False
) -> Iterator[Memory]:
    """Of one program of a run after the other; each is compiled when it is its turn."""
    mesh = _mesh_of_absent_tpu(CHIPS[chip], settings.tp)
    found = programs(shape(model), settings, mesh)
    for program in reversed(found) if backwards else found:
        yield _memory(program, mesh, CHIPS[chip])


def _memory(program: Program, mesh: Mesh, chip: Chip) -> Memory:
    """Memory of a program, from the compiler or from what it answered to the same before."""
    with jax.set_mesh(mesh):
        lowered = program.lower()
    versions = [importlib.metadata.version(package) for package in ("jax", "libtpu")]
    content = " ".join((*versions, chip.topology, lowered.as_text()))
    file = devices.cache("plan") / f"{hashlib.sha256(content.encode()).hexdigest()}.json"
    answer = _remembered(file)
    if answer is None:
        answer = _ask_compiler(lowered)
        _remember(file, answer)
    arguments, temporaries, seconds = answer
    return Memory(program.name, arguments, temporaries, program.resident, seconds)


def _ask_compiler(lowered: jax.stages.Lowered) -> list[float]:
    """GiB of arguments and of temporaries, and the seconds that the compiler took."""
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            # JAX cannot read kept programs of chips that are absent, and compiles them again.
            warnings.filterwarnings("ignore", ".*persistent compilation cache entry")
            m = lowered.compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        needed = _needed(str(error))
        if needed is None:
            raise
        return [0.0, needed, time.perf_counter() - start]
    # Results that are written over arguments take no memory of their own.
    results = m.output_size_in_bytes - m.alias_size_in_bytes
    temporaries = (m.temp_size_in_bytes + results) / GiB
    return [m.argument_size_in_bytes / GiB, temporaries, time.perf_counter() - start]


def _needed(message: str) -> float | None:
    """GiB that a program needs, as the compiler's refusal tells; None if it tells none."""
    number = r"([\d.]+)([KMGT])"
    found = re.search(rf"\({number}\) exceeds|Used {number} of", message)
    if not found:
        return None
    size, unit = (part for part in found.groups() if part)
    return float(size) * UNITS[unit]


def _remembered(file: Path) -> list[float] | None:
    """What was kept in a file; None if nothing was, or nothing that is whole."""
    try:
        arguments, temporaries, seconds = map(float, json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return [arguments, temporaries, seconds]


def _remember(file: Path, answer: list[float]) -> None:
    """Keep an answer; a cache that cannot be written costs time, and ends nothing."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Under another name first: a reader sees the whole file or none.
        part = file.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(answer))
        part.replace(file)
    except OSError as error:
        log.warning(
            "The compiler's answers are not kept, and it will be asked again next time: "
            "%s cannot be written (%s).",
            file.parent,
            error.strerror,
        )


def _mesh_of_absent_tpu(chip: Chip, tp: int) -> Mesh:
    """A mesh of a TPU that need not be there; RuntimeError without a compiler that fits."""
    _check_compiler()
    environment = {
        "TPU_SKIP_MDS_QUERY": "1",  # no TPU's metadata server is asked
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_MIN_LOG_LEVEL": "3",
    }
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    one_chip = {"chips_per_host_bounds": (1, 1, 1)} if chip.cores == 1 else {}
    topology = topologies.get_topology_desc(chip.topology, "tpu", **one_chip)
    return devices.make_mesh(topology.devices, tp=tp)


def _check_compiler() -> None:
    """RuntimeError where libtpu is missing, or so old that it would crash."""
    if not importlib.util.find_spec("libtpu"):
        raise RuntimeError('The TPU compiler is missing: run pip install "aha_lib[tpu]".')
    wanted = re.search(r"libtpu==(\d+\.\d+\.\d+)", str(importlib.metadata.requires("jax")))
    have = importlib.metadata.version("libtpu")
    if wanted and install.numbers(have)[:3] < install.numbers(wanted[1]):
        raise RuntimeError(
            f"The TPU compiler here, libtpu {have}, is older than the {wanted[1]} that goes with "
            f'JAX {jax.__version__}: plan on another machine, after pip install "jax[tpu]".'
        )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0 if the plan fits, 1 if not, 2 for bad input or without libtpu."""
    more = "Any setting of a run can be given too, as to `aha train`: --prompts 64, for example."
    parser = cli.Parser(prog="aha plan", description=plan.__doc__, epilog=more, allow_abbrev=False)
    parser.add_argument("--model", required=True, choices=MODEL_NAMES)
    parser.add_argument("--chip", required=True, choices=list(CHIPS))
    parser.add_argument("--largest", choices=["micro_batch", "prompts"])
    args, others = parser.parse_known_args(argv)
    wanted = cli.changes(others, Settings(), "aha plan")
    jax.config.update("jax_platforms", "cpu")  # leaves a TPU that is here alone
    try:
        answer = plan(args.model, args.chip, **wanted)
        print(answer)
        if args.largest:
            size = largest(args.largest, args.model, args.chip, **wanted)
            print(f"largest {args.largest} that fits: {size}")
    except (ValueError, RuntimeError) as error:
        parser.exit(2, f"{error}\n")
    return 0 if answer.fits else 1


if __name__ == "__main__":
    raise SystemExit(main())
