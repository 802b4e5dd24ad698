"""How many minutes a run takes on a TPU, before any is spent: go, or no go.

    print(forecast("gemma3-1b", "v5e-8"))

Minutes of download, compilation, cold start and run, each with what it is estimated from. Asks
neither a device nor, unless it is handed the compiler's answers, the compiler. Knows nothing of the
task.
"""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.sharding import AbstractMesh

from aha_lib.presets import SETTINGS, ModelConfig, Settings, shape
from aha_lib.run import cold_start
from aha_lib.tasks import rollout
from aha_lib.tpu.chips import CHIPS, Chip, estimate, estimate_supervised

RECORD = Path(__file__).parents[1] / "data" / "compile_times.json"

# Bytes a second of a download. Assumed, and not measured: a slow moment of Kaggle's and Colab's.
DOWNLOAD = 30e6
# What one H100 reached of its roofs in steps of Gemma 3 270M and 1B, sampling and updating
# (README, "What fits"): 10 to 18 %. No TPU was timed.
SHARES = (0.10, 0.18)
SHARE = math.sqrt(math.prod(SHARES))
# Seconds that a step takes at least: the host packs rows and starts programs meanwhile.
LEAST_STEP = 0.2
# Host cores beside a chip: docs.cloud.google.com/tpu/docs, machine types of 2026.
HOST_CORES = {
    "v3-8": 96,
    "v5e-1": 24,
    "v5e-8": 224,
    "v5e-16": 112,
    "v6e-1": 44,
    "v6e-8": 180,
}
# Where such a chip is free, and the hours that a session has there.
SESSIONS = {
    "v3-8": ("Kaggle", 9.0),
    "v5e-8": ("Kaggle", 9.0),
    "v5e-1": ("Colab", 12.0),
    "v6e-1": ("Colab", 12.0),
}


@dataclass(frozen=True)
class Estimate:
    """Minutes of one part of a run, and what they are estimated from."""

    minutes: float
    basis: str


@dataclass(frozen=True)
class Forecast:
    """What will happen to a preset on a chip; prints as a table with a verdict."""

    preset: str
    chip: str
    download: Estimate
    compilation: Estimate
    cold_start: Estimate
    run: Estimate
    too_large: str  # what does not fit, in a sentence; "": all fits, or nobody was asked
    asked: bool  # whether it is known that all fits
    session: float | None  # minutes that a session has; None: no limit is known

    @property
    def parts(self) -> dict[str, Estimate]:
        """The four parts by name, in their order."""
        return {
            "download": self.download,
            "compilation": self.compilation,
            "cold start": self.cold_start,
            "run": self.run,
        }

    @property
    def minutes(self) -> float:
        """All parts together."""
        return sum(part.minutes for part in self.parts.values())

    @property
    def go(self) -> bool:
        """Whether all fits, as far as is known, and ends within the session."""
        in_time = self.session is None or self.minutes <= self.session
        return in_time and not self.too_large

    @property
    def verdict(self) -> str:
        """Go, or no go and why, in a sentence or two."""
        if self.too_large:
            return f"No go: {self.too_large}"
        if not self.go:
            sessions = math.ceil(self.minutes / self.session)
            return (
                f"No go in one session, which has {self.session:.0f} minutes: the run saves, stops "
                f"before the session ends and goes on in the next, {sessions} sessions in all."
            )
        memory = "all fits" if self.asked else "whether all fits was not asked (`aha plan` does)"
        if self.session is None:
            return f"Go: {memory}."
        return f"Go: {memory}, and a session has {self.session:.0f} minutes."

    def __str__(self) -> str:
        lines = [f"{self.preset} on {self.chip}: about {self.minutes:.0f} minutes"]
        for name, part in self.parts.items():
            lines.append(f"  {name:<12}{part.minutes:6.0f} min  {part.basis}")
        return "\n".join([*lines, self.verdict])


def forecast(
    preset: str,
    chip: str,
    /,
    *,
    hours: int | float | None = None,
    seconds: Mapping[str, float] | None = None,
    too_large: str | None = None,
    **changes,
) -> Forecast:
    """Minutes of a run of a preset, with `changes` of its settings, on a chip of `CHIPS`.

    `hours`: what the session has left, by default what Kaggle or Colab grant where such a chip is
    free. `seconds` are the compiler's own, by program, and `too_large` what did not fit, as
    `plan.plan` knows them; else a kept record is read. Raises ValueError for unknown names.
    """
    if preset not in SETTINGS or chip not in CHIPS:
        raise ValueError(
            f"{preset} on {chip} is not in the tables: there are presets {', '.join(SETTINGS)}; "
            f"chips {', '.join(CHIPS)}."
        )
    settings = dataclasses.replace(SETTINGS[preset], **changes)
    config, machine = shape(preset), CHIPS[chip]
    if hours is None and chip in SESSIONS:
        _, hours = SESSIONS[chip]
    if too_large is None and not changes:
        too_large = _too_large(preset, chip)
    return Forecast(
        preset=preset,
        chip=chip,
        download=_download(config),
        compilation=_compilation(settings, chip, seconds),
        cold_start=_cold_start(settings, config, machine),
        run=_run(settings, config, machine),
        too_large=too_large or "",
        asked=too_large is not None,
        session=None if hours is None else 60.0 * hours,
    )


def _download(config: ModelConfig) -> Estimate:
    size = 2 * config.parameters  # bfloat16
    if size < 1e7:
        return Estimate(0.0, "comes with the package")
    return Estimate(size / DOWNLOAD / 60, f"{size / 1e9:.1f} GB, if {DOWNLOAD / 1e6:.0f} MB/s come")


def _compilation(settings: Settings, chip: str, seconds: Mapping[str, float] | None) -> Estimate:
    """Of all programs, side by side on the cores that a chip's host has."""
    kept = _nearest(settings.preset, chip)
    counts = Counter(one["name"] for one in kept["programs"])
    counts["sample: decode"] = _decode_programs(settings, CHIPS[chip])
    asked = {name: took for name, took in (seconds or {}).items() if name in counts}
    each = _seconds_by_name(kept) | asked
    total = sum(counts[name] * took for name, took in each.items())
    longest = max(each.values())
    number = sum(counts.values())
    workers = min(HOST_CORES[chip], number)
    source = (
        "as the compiler took here" if asked else f"as kept of {kept['preset']}, {kept['chip']}"
    )
    basis = (
        f"{number} programs, {total / 60:.0f} min one after the other and the longest "
        f"{longest:.0f} s, side by side on {HOST_CORES[chip]} cores; {source}"
    )
    return Estimate(max(longest, total / workers) / 60, basis)


def _seconds_by_name(record: dict) -> dict[str, float]:
    """The mean of those programs of a name that were timed."""
    timed = {}
    for one in record["programs"]:
        if "seconds" in one:
            timed.setdefault(one["name"], []).append(one["seconds"])
    return {name: sum(each) / len(each) for name, each in timed.items()}


def _decode_programs(settings: Settings, chip: Chip) -> int:
    """How many decode programs a run can meet on a chip's cores."""
    mesh = AbstractMesh((chip.cores // settings.tp, settings.tp), ("fsdp", "tp"))
    with jax.sharding.use_abstract_mesh(mesh):
        return len(rollout.decode_shapes(settings))


def _cold_start(settings: Settings, config: ModelConfig, chip: Chip) -> Estimate:
    """Of the supervised training before, where the preset has it."""
    cold = cold_start.planned(settings)
    if cold is None:
        return Estimate(0.0, "none")
    step = max(estimate_supervised(config, cold, chip) / SHARE, LEAST_STEP)
    basis = f"{cold.steps} steps of {cold.rows} x {cold.row_len} tokens, {step:.1f} s each"
    return Estimate(cold.steps * step / 60, basis)


def _run(settings: Settings, config: ModelConfig, chip: Chip) -> Estimate:
    """Of all steps and evaluations, at the share of the peaks that was measured elsewhere."""
    s, roofs = settings, estimate(config, settings, chip)
    sampling = roofs["prefill"] + roofs["decode"]
    # Of the panel, in units of a step's rows: once drawn and once greedily; at step 0 also pass@k.
    panel = s.eval_puzzles / (s.prompts * s.group)
    evaluations = 1 + -(-s.steps // s.eval_every)
    sampled = s.steps + panel * (2 * evaluations + s.pass_k - 1)
    at_peaks = sampled * sampling + s.steps * roofs["update"]
    step = max(sum(roofs.values()) / SHARE, LEAST_STEP)
    seconds = max(at_peaks / SHARE, s.steps * LEAST_STEP)
    low, high = (at_peaks / share / 60 for share in reversed(SHARES))
    basis = (
        f"{s.steps} steps of {step:.1f} s, and evaluations, if {SHARE:.0%} of the chip's peaks are "
        f"reached; an H100 reached {SHARES[0]:.0%} to {SHARES[1]:.0%}: {low:.0f} to {high:.0f} min"
    )
    return Estimate(seconds / 60, basis)


def _records() -> list[dict]:
    """What was compiled before, by tests/benchmarks/compile_times.py."""
    return json.loads(RECORD.read_text())["runs"]


def _nearest(preset: str, chip: str) -> dict:
    """The record of a preset on a chip, or of the one whose model is nearest in size."""
    size = math.log(shape(preset).parameters)

    def distance(one):
        other = math.log(shape(one["preset"]).parameters)
        return abs(other - size), one["preset"] != preset, one["chip"] != chip

    return min(_records(), key=distance)


def _too_large(preset: str, chip: str) -> str | None:
    """What does not fit, by the record of a preset on a chip; None where there is none."""
    record = _nearest(preset, chip)
    if (record["preset"], record["chip"]) != (preset, chip):
        return None
    hbm, names = CHIPS[chip].hbm, {one["name"] for one in record["programs"]}
    asked = {one["name"]: one["GiB"] for one in record["programs"] if "GiB" in one}
    for name, size in asked.items():
        if size > hbm:
            return f"{name} needs {size:.1f} GiB of a core's {hbm:g}."
    return "" if asked.keys() == names else None
