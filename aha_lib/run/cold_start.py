"""The cold start of a run: supervised training in its folder `base`, and then GRPO begins there.

Says which model a run starts from, and makes it where it is not there yet. Knows nothing of GRPO
but its settings; how a model is trained on worked text is `pretrain`'s.
"""

import dataclasses
import gc
from collections.abc import Generator
from pathlib import Path

from aha_lib.presets import PRETRAINING, Pretraining, Settings
from aha_lib.run import folder, pretrain, stop

PHASE = "cold start"  # of its rows


def base_of(out: Path) -> Path:
    """The folder, in that of a run, where its cold start goes on."""
    return out / "base"


def planned(settings: Settings) -> Pretraining | None:
    """The settings of a run's cold start, from the run's own model; None where it has none.

    A run whose `model` is empty has a random one of the shape that the preset says.
    """
    if not settings.cold_start:
        return None
    cold = PRETRAINING[settings.cold_start]
    steps = settings.cold_start_steps or cold.steps
    return dataclasses.replace(cold, model=settings.model, steps=steps)


def without_a_second(settings: Settings) -> Settings:
    """The settings without a cold start where `model` is what one has left: one is enough."""
    is_folder = settings.cold_start and settings.model
    if is_folder and pretrain.is_finished(Path(settings.model)):
        return dataclasses.replace(settings, cold_start="", cold_start_steps=0)
    return settings


def model_of(settings: Settings, out: Path) -> str:
    """The model that GRPO starts from, as `weights.load` takes it."""
    return str(base_of(out)) if settings.cold_start else settings.model


def read_rows(out: Path) -> list[dict]:
    """The rows of the cold start in a run's folder, with their phase; none if it has had none."""
    rows = folder.read_rows(base_of(out) / "metrics.jsonl")
    return [{"phase": PHASE} | row for row in rows]


def is_going_on(out: Path) -> bool:
    """Whether a run has begun its cold start, and not yet what comes after it."""
    begun = (base_of(out) / "settings.json").exists()
    return begun and not pretrain.is_finished(base_of(out)) and not folder.has_begun(out)


def steps(settings: Settings, out: Path, deadline: float) -> Generator[dict, None, bool]:
    """The steps of a run's cold start that are left, if it has one; the run's folder is held.

    Yields rows with `"phase": "cold start"`. Returns whether GRPO may begin: not where the clock or
    a file `stop` has ended the run, whose folder then has `stopped.txt`. Raises what
    `pretrain.pretrain` raises, and ValueError where the base is another model's, or is gone
    although GRPO has begun on it.
    """
    cold, base = planned(settings), base_of(out)
    if cold is None:
        return True
    if pretrain.is_finished(base):
        _check(base, cold, out)
        return True
    if folder.has_begun(out):
        raise ValueError(
            f"The run in {out} has begun from {base}, and that model is gone: put it back, or "
            "choose another folder."
        )
    folder.make(base)
    watch = stop.Watch((out, base), deadline)
    with folder.hold(base):
        folder.changed_settings(base, cold)
        folder.remove_marks(base)
        folder.log(out, f"Cold start: {cold.steps} supervised steps in {base}, then GRPO.")
        for row in pretrain.learn(cold, base, watch):
            yield {"phase": PHASE} | row
    gc.collect()  # a module is part of cycles: its arrays would lie beside those of GRPO
    if not pretrain.is_finished(base):
        return False
    # Its last step is no reason to stop: whether there is time for what follows is asked now.
    reason = watch.reason(cold.steps, cold.steps + 1)
    watch.tell(reason, f"the cold start, {cold.steps} supervised steps,")
    return reason is stop.Stop.NOT


def _check(base: Path, cold: Pretraining, out: Path) -> None:
    """ValueError where the base in a run's folder was made from another model.

    Other differences are told once: somebody may have made it by settings of his own.
    """
    said = folder.read_json(base / "pretraining.json").get("settings", {})
    if said.get("model", cold.model) != cold.model:
        raise ValueError(
            f"{base} was trained from {said['model']}, and model is {cold.model}: choose another "
            f"folder, or set model={said['model']}."
        )
    others = [f"{name} {said[name]}" for name in ("preset", "steps") if name in said]
    differs = said.get("steps", cold.steps) != cold.steps
    if differs and not folder.has_begun(out):
        folder.log(out, f"{base} is there already ({', '.join(others)}): it is taken as it is.")
