"""The command line: `aha train`, `pretrain`, `plan`, `watch`, `export`, `ask` and `record`.

Each command is a function of its words and gives the program's status. The modules that it needs
are loaded when it runs, so that help and mistakes are told at once. Knows nothing of how a command
does its work.
"""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import NoReturn

from aha_lib.presets import SETTINGS, Settings
from aha_lib.run import cli
from aha_lib.tasks.task import Countdown, Task

INTERRUPTED = 130  # status of a run that Ctrl-C ended, as everywhere
# What the reader can put right. OSError: downloads, disks, folders.
FAULTS = (ValueError, OSError, MemoryError, FloatingPointError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first word names; gives its status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help"):
        lines = [f"  {word:<9}{summary(command)}" for word, command in COMMANDS.items()]
        print("usage: aha COMMAND ...\n", *lines, "\n`aha COMMAND --help` tells more.", sep="\n")
        return 0
    if name not in COMMANDS:
        cli.leave(f"There is no command {name!r}: it has to be one of {', '.join(COMMANDS)}.")
    return COMMANDS[name](argv[1:])


def summary(command: Callable) -> str:
    """The first line of its docstring."""
    return command.__doc__.splitlines()[0]


def train(argv: Sequence[str], program: str = "aha train") -> int:
    """Train a model by GRPO in a folder, or go on there.

    A preset with a cold start has that first, in the same folder.
    Status 0: finished; 2: something to put right; 75: stopped early, the same command goes on;
    130: Ctrl-C; 143: SIGTERM.
    """
    settings, out = cli.parse(argv, SETTINGS, program)
    from aha_lib import devices

    devices.start()
    devices.compilation_cache()
    return run_to_the_end(settings, out)


def run_to_the_end(settings: Settings, out: Path) -> int:
    """Run or resume the run in `out` without a reader: a line and a new curve at each evaluation.

    Gives the status that `train` documents; of several hosts ends the program at once where one
    has failed, so that the others end too.
    """
    from aha_lib.run import session
    from aha_lib.run import train as training
    from aha_lib.run.folder import why_stopped

    try:
        with closing(training.train(settings, out)) as run:
            for row in run:
                if "heldout_accuracy" in row:
                    session.show_line(evaluation(row))
                    draw_curve(out)
        draw_curve(out)  # also of a run that was finished before
    except KeyboardInterrupt:
        session.show_line(f"To go on: the same command, with --out {out}")
        return INTERRUPTED
    except FAULTS as error:
        give_up(error)
    if why_stopped(out):  # by the clock, or by the file `stop`
        session.show_line(f"To go on: the same command, with --out {out}")
        return session.UNFINISHED
    names = "metrics.jsonl, rollouts.jsonl, curve.png"
    session.show_line(f"Finished. The run is in {out}: {names}")
    return 0


def give_up(error: Exception) -> NoReturn:
    """End the program with what is wrong; of several hosts at once, so that the others end."""
    import jax

    if jax.process_count() > 1:
        print(error, file=sys.stderr, flush=True)
        os._exit(2)
    cli.leave(str(error))


def evaluation(row: dict) -> str:
    """An evaluation in a line: what is measured of every task, and what of this one."""
    parts = [f"step {row['step']:4}  held-out accuracy {row['heldout_accuracy']:.3f}"]
    parts.append(f"(greedy {row['heldout_greedy']:.3f})")
    for name in row:
        if name.startswith("heldout_") and name not in ("heldout_accuracy", "heldout_greedy"):
            digits = 1 if name == "heldout_length" else 2
            parts.append(f" {name.removeprefix('heldout_')} {row[name]:.{digits}f}")
    return " ".join(parts)


def draw_curve(out: Path) -> None:
    """Write a run's `curve.png`, by way of a second file: never half a picture.

    Of several hosts, which share the folder, the first does.
    """
    import jax

    from aha_lib.look import show
    from aha_lib.run.train import read_rows

    rows = read_rows(out / "metrics.jsonl")
    if rows and jax.process_index() == 0:  # none while the cold start goes on
        fresh = out / "curve.new.png"
        show.curve(rows).savefig(fresh, dpi=150)
        fresh.replace(out / "curve.png")


def pretrain(argv: Sequence[str]) -> int:
    """Train on worked text: the tiny base from nothing, or a cold start of a real Gemma."""
    from aha_lib import devices
    from aha_lib.run import pretrain as pretraining

    devices.keep_memory()
    pretraining.main(argv)
    return 0


def plan(argv: Sequence[str]) -> int:
    """Say what fits on a TPU that need not be there, and how long a step takes at least."""
    from aha_lib.tpu import plan as planning

    return planning.main(argv)


def watch(argv: Sequence[str]) -> int:
    """Say how far a run is; with --stop, ask it to save and stop."""
    from aha_lib.look import dashboard

    dashboard.main(argv)
    return 0


def record(argv: Sequence[str]) -> int:
    """Keep what a run leaves when its checkpoints go: rows, answers, adapters, machine."""
    from aha_lib.look import record as recording

    recording.main(argv)
    return 0


def export(argv: Sequence[str]) -> int:
    """Write a run's model in Hugging Face's layout, or Kaggle's, for other programs.

    Adapters are merged, in float32; with --bfloat16 the merged weights are rounded, and a line says
    how much of what was learnt that loses.
    """
    parser = cli.Parser(prog="aha export", description=export.__doc__)
    parser.add_argument("run", type=Path, help="folder of a run, of GRPO or of pre-training")
    parser.add_argument("folder", type=Path, help="where the model goes")
    parser.add_argument("--kaggle", action="store_true", help="in Kaggle's layout")
    parser.add_argument("--bfloat16", action="store_true", help="round merged adapters' weights")
    args = parser.parse_args(argv)
    try:
        model, tokenizer, _ = opened(args.run)
        from aha_lib.model import lora
        from aha_lib.model.export import save_hf, save_kaggle

        if lora.has_adapters(model):
            dtype = "bfloat16" if args.bfloat16 else "float32"
            print(lora.rounding(model, dtype))
            model = lora.merge(model, dtype)
        save = save_kaggle if args.kaggle else save_hf
        save(model, args.folder, tokenizer)
    except FAULTS as error:
        give_up(error)
    print(f"Written: {', '.join(sorted(path.name for path in args.folder.iterdir()))}")
    return 0


def ask(argv: Sequence[str]) -> int:
    """Print what a run's model writes for a puzzle ("20 16 4 = 40") or another prompt, greedily."""
    parser = cli.Parser(prog="aha ask", description=ask.__doc__)
    parser.add_argument("run", type=Path, help="folder of a run, of pre-training or of a model")
    parser.add_argument("prompt", help='Countdown: numbers and target, "20 16 4 = 40"')
    args = parser.parse_args(argv)
    try:
        print(answer(*opened(args.run), args.prompt))
    except FAULTS as error:
        give_up(error)
    return 0


def opened(run: Path):
    """The model of a run of GRPO, of pre-training or in a folder; its tokenizer; its settings.

    Between its cold start and GRPO a run's model is that of the former.

    Raises what `train.trained` and `weights.load` raise.
    """
    from aha_lib import devices
    from aha_lib.model import weights
    from aha_lib.run import cold_start, folder, pretrain
    from aha_lib.run import train as training

    try:
        devices.available()
    except RuntimeError as error:
        cli.leave(str(error))
    devices.compilation_cache()
    if not (run / "settings.json").exists() and pretrain.is_finished(cold_start.base_of(run)):
        run = cold_start.base_of(run)  # its cold start is over, and GRPO has not begun
    file = run / "settings.json"
    said = folder.read_json(file) if file.exists() else {}
    if "group" in said or cold_start.is_going_on(run):  # GRPO's
        return training.trained(run)
    model, tokenizer, _ = weights.load(str(run))
    settings = SETTINGS["tiny"]
    if "row_len" in said:  # pre-training's
        changes = {"template": said["template"], "completion_len": said["row_len"]}
        settings = dataclasses.replace(settings, **changes)
    return model, tokenizer, settings


def answer(model, tokenizer, settings: Settings, text: str) -> str:
    """What a model writes for a puzzle of Countdown, or for a text that is none, greedily."""
    import jax

    from aha_lib.look.dashboard import read_puzzle
    from aha_lib.tasks.rollout import Policy, rollout

    prompt = text
    if settings.task == Countdown.name:
        with contextlib.suppress(ValueError):  # no puzzle: then it is a prompt
            prompt = Countdown.from_settings(settings).prompt(read_puzzle(text))
    tokens = len(tokenizer.encode(prompt))
    roomy = dataclasses.replace(settings, prompt_len=max(tokens, settings.prompt_len))
    policy = Policy(model, tokenizer, AnyText(), roomy)
    out = rollout(policy, [prompt], jax.random.key(0), group=1, temperature=0.0)
    return out.texts[0]


class AnyText(Task[str]):
    """A task whose puzzles are their own prompts."""

    def prompt(self, puzzle: str) -> str:
        return puzzle


COMMANDS = {
    "train": train,
    "pretrain": pretrain,
    "plan": plan,
    "watch": watch,
    "export": export,
    "ask": ask,
    "record": record,
}
