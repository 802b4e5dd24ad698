"""What a run learns: a task gives puzzles, turns them into prompts, and rewards the answers.

`Task` is the protocol and `Countdown` its first case; `load` finds a task by its name, in the
package or in a file of your own. Knows nothing of JAX, tokens or models: text in, numbers out.
"""

import hashlib
import importlib
import importlib.util
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from aha_lib.presets import PUZZLES, Settings
from aha_lib.tasks import countdown, traces

P = TypeVar("P")  # what a puzzle is: any value that the task itself understands


class Task(Generic[P]):
    """A generator, a prompt and a reward. `aha_lib/tasks/last_first.py` is one in forty lines."""

    # How `load` finds it again, as `--task` takes it; "" until `load` or `name_of` says it.
    name = ""

    @classmethod
    def from_settings(cls, settings: Settings) -> "Task":
        """The task of a run with these settings. Most tasks need nothing from them."""
        return cls()

    def puzzle(self, seed: int, index: int, *, held_out: bool) -> P:
        """Puzzle number `index` of a seed: always the same one.

        The held-out puzzles measure what was learnt: none of them may be among the others.
        """
        raise NotImplementedError

    def prompt(self, puzzle: P) -> str:
        """The text that the model goes on from."""
        raise NotImplementedError

    def reward(self, text: str, puzzle: P) -> float:
        """What a completion earns; 1.0 means right. Called on whatever a model writes."""
        raise NotImplementedError

    # The piece of the vocabulary after which the model waits for a reply; "": there is no tool.
    turn_end = ""

    def reply(self, text: str, puzzle: P) -> str | None:
        """What a tool answers to a completion that has come to a `turn_end`: all its text so far.

        "" lets the model go on without a word; None ends the completion. The same text has to get
        the same reply. The reply is part of the text that is rewarded, and is never trained on.
        """
        return None

    def longest(self) -> P:
        """A puzzle whose prompt has the most tokens: so shapes are known before anything runs."""
        raise NotImplementedError

    def measures(
        self, texts: Sequence[str], puzzles: Sequence[P], ended: Sequence[bool]
    ) -> dict[str, float | dict[str, int]]:
        """What else is drawn beside the accuracy: means by name, and counts of kinds by name.

        `ended` says which completions came to their end within the limit.
        """
        return {}


@dataclass(frozen=True)
class Countdown(Task[countdown.Puzzle]):
    """Reach a target from a few numbers, with each number used exactly once."""

    puzzles: str = "tiny"  # a name in presets.PUZZLES
    template: str = "tiny"  # of countdown.prompt
    form_reward: float = 0.1  # of a wrong answer that is a well-formed expression

    name = "countdown"

    @classmethod
    def from_settings(cls, settings: Settings) -> "Countdown":
        return cls(settings.puzzles, settings.template, settings.form_reward)

    def puzzle(self, seed: int, index: int, *, held_out: bool) -> countdown.Puzzle:
        return countdown.generate(seed, index, PUZZLES[self.puzzles], held_out=held_out)

    def prompt(self, puzzle: countdown.Puzzle) -> str:
        return countdown.prompt(puzzle, self.template)

    def reward(self, text: str, puzzle: countdown.Puzzle) -> float:
        return countdown.reward(text, puzzle, form=self.form_reward).value

    def longest(self) -> countdown.Puzzle:
        ranges = PUZZLES[self.puzzles]
        return countdown.Puzzle((ranges.high,) * max(ranges.counts), ranges.target_high)

    def measures(
        self,
        texts: Sequence[str],
        puzzles: Sequence[countdown.Puzzle],
        ended: Sequence[bool],
    ) -> dict[str, float | dict[str, int]]:
        """How often an answer goes on after a "no", how it ends, and its style.

        Of puzzles with several counts of numbers, the accuracy for each count too, and how often
        an answer returns to a partial result.
        """
        parsed = [traces.parse(*pair) for pair in zip(texts, puzzles, strict=True)]
        found = {
            "backtracks": sum(trace.backtracks for trace in parsed) / len(parsed),
            "outcomes": dict(Counter(map(traces.outcome, parsed, ended))),
            "styles": dict(Counter(map(traces.style, parsed))),
        }
        if len(PUZZLES[self.puzzles].counts) > 1:
            found |= _by_count(parsed)
            found["returns"] = sum(trace.returns for trace in parsed) / len(parsed)
        return found


def who_wrote(task: Task[P], text: str, puzzle: P) -> list[tuple[str, bool]]:
    """A completion's text in parts, and of each whether it is a reply of the task's tool.

    The tool is asked once more: a text does not tell who wrote it.
    """
    parts = []
    start = 0  # of what is in no part yet
    at = 0  # where the next call is looked for
    while task.turn_end and (at := text.find(task.turn_end, at)) >= 0:
        at += len(task.turn_end)
        reply = (task.reply(text[:at], puzzle) or "").strip()
        first = at + len(text[at:]) - len(text[at:].lstrip())
        if reply and text.startswith(reply, first):
            parts += [(text[start:first], False), (reply, True)]
            start = at = first + len(reply)
    return [*parts, (text[start:], False)]


def _by_count(parsed: Sequence[traces.Trace]) -> dict[str, float]:
    """The accuracy for each count of numbers, by a name that says the count."""
    right: dict[int, list[bool]] = {}
    for trace in parsed:
        right.setdefault(len(trace.puzzle.numbers), []).append(trace.right)
    return {f"accuracy_{count}": sum(each) / len(each) for count, each in sorted(right.items())}


def is_held_out(text: str) -> bool:
    """Whether a puzzle belongs to the held-out tenth, by a text that tells it from all others."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % 10 == 0


def load(settings: Settings) -> Task:
    """The task that `settings.task` names.

    "countdown"; `FILE.py:NAME`, a class in a file of your own; `MODULE:NAME`, a class in an
    installed module, such as `aha_lib.tasks.last_first:LastFirst`; `gym:NAME`, a data set of
    reasoning-gym. Raises ValueError with a sentence where there is no such task.
    """
    name = settings.task
    if name == Countdown.name:
        return Countdown.from_settings(settings)
    where, _, attribute = name.rpartition(":")
    if not where or not attribute:
        raise ValueError(
            f"task is {name!r}: it has to be countdown, FILE.py:NAME, MODULE:NAME or gym:NAME."
        )
    if where == "gym":
        return importlib.import_module("aha_lib.tasks.gym").Gym(attribute)
    found = getattr(_module(where), attribute, None)
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise ValueError(f"{where} has no class {attribute} that is a Task (aha_lib.tasks.task).")
    task = found.from_settings(settings)
    # A frozen dataclass refuses plain assignment; the name belongs to the object, not its value.
    object.__setattr__(task, "name", name)
    return task


def name_of(task: Task) -> str:
    """The name by which `load` finds a task again, as far as a name can tell."""
    kind = type(task)
    return task.name or f"{kind.__module__}:{kind.__qualname__}"


def _module(where: str):
    """The module in a file, or the installed one of that name."""
    if where == "__main__":
        raise ValueError(
            "This run's task was defined in a notebook or script: pass it as task=…, or put it "
            "into a file and name that."
        )
    if not where.endswith(".py"):
        try:
            return importlib.import_module(where)
        except ImportError as error:
            raise ValueError(f"There is no module {where} ({error}).") from None
    path = Path(where).resolve()
    if not path.exists():
        raise ValueError(f"There is no file {path}.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
