"""Settings from a command line: a preset, a folder, and changes by `--set name=value`.

Knows nothing of what the settings mean.
"""

import argparse
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from aha_lib.presets import SETTINGS, Pretraining, Settings


def changes(assignments: Sequence[str], of: type = Settings) -> dict:
    """`name=value` assignments as keywords of Settings, or of `Pretraining`.

    Raises ValueError for an unknown name or a value of another type.
    """
    kinds = {field.name: field.type for field in fields(of)}
    del kinds["preset"]  # says which of SETTINGS these come from
    values, words = {}, {"true": True, "false": False}
    for assignment in assignments:
        name, _, text = assignment.partition("=")
        if name not in kinds:
            raise ValueError(f"No setting is called {name!r}; there are: {', '.join(kinds)}.")
        try:
            values[name] = words[text.lower()] if kinds[name] is bool else kinds[name](text)
        except (ValueError, KeyError):
            raise ValueError(f"{name} takes {kinds[name].__name__}, not {text!r}.") from None
    return values


def parse(
    argv: Sequence[str] | None, table: dict = SETTINGS
) -> tuple[Settings | Pretraining, Path]:
    """A preset of `table` with the changes of a command line (None: this program's), and a folder.

    Bad ones end the program with status 2 and a sentence.
    """
    parser = argparse.ArgumentParser(description="Train in a folder, or go on there.")
    parser.add_argument("--out", type=Path, required=True, help="run folder; resumed if it exists")
    parser.add_argument("--preset", default="tiny", choices=list(table))
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="override a field of the settings; may be repeated",
    )
    args = parser.parse_args(argv)
    try:
        preset = table[args.preset]
        return replace(preset, **changes(args.set, type(preset))), args.out
    except ValueError as error:
        parser.exit(2, f"{error}\n")
