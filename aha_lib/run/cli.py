"""Settings from a command line, by tyro: a flag for every field, a line for every mistake.

Knows nothing of what the settings mean: names, types, defaults and help are the dataclasses'.
"""

import argparse
import contextlib
import io
import itertools
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, make_dataclass
from pathlib import Path
from typing import NoReturn

import tyro

from aha_lib.presets import SETTINGS, Pretraining, Settings, in_words, setting

COLOUR = re.compile(r"\x1b\[[\d;]*m")  # which tyro's messages have in a terminal
KNOWN = {one.name: one for kind in (Settings, Pretraining) for one in fields(kind)}
OUT = setting(tyro.MISSING, "the run's folder: one that is there goes on")


def parse(
    argv: Sequence[str] | None = None,
    presets: Mapping[str, Settings | Pretraining] = SETTINGS,
    program: str | None = None,
) -> tuple[Settings | Pretraining, Path]:
    """A preset with the changes of a command line (None: this program's), and its folder `--out`.

    A mistake ends the program with a sentence and status 2.
    """
    argv = plain_flags(sys.argv[1:] if argv is None else argv)
    name = value_of(argv, "preset") or "tiny"
    names = ", ".join(presets)
    if name not in presets:
        leave(f"preset is {name!r}: it has to be one of {names}.")
    preset = presets[name]
    kind = type(preset)
    command = make_dataclass(
        "Command", [("settings", tyro.conf.OmitArgPrefixes[kind]), ("out", Path, OUT)]
    )
    command.__doc__ = f"Train in a folder, or go on there. Presets: {names}."
    parsed = _parse(command, argv, default=command(preset, tyro.MISSING), program=program)
    return parsed.settings, parsed.out


def changes(argv: Sequence[str], preset: Settings, program: str | None = None) -> dict:
    """The fields of a preset that a command line names, with their values."""
    argv = plain_flags(argv)
    parsed = _parse(type(preset), argv, default=preset, program=program)
    return {
        one.name: getattr(parsed, one.name)
        for one in fields(preset)
        if any(flag_name(word) == one.name for word in argv)
    }


def plain_flags(argv: Sequence[str]) -> list[str]:
    """`--set name=value`, as commands were written before there were flags, as `--name=value`."""
    plain = []
    for word in argv:
        if plain and plain[-1] == "--set":
            plain[-1] = f"--{word}"
        else:
            plain.append(re.sub("^--set=", "--", word))
    return plain


def flag_name(word: str) -> str | None:
    """ "learning_rate" of "--learning-rate=1e-4"; None of a word that is no flag."""
    if not word.startswith("--"):
        return None
    return word.removeprefix("--").partition("=")[0].replace("-", "_")


def value_of(argv: Sequence[str], name: str) -> str | None:
    """The last value that a command line gives a field; None if there is none."""
    value = None
    for word, following in itertools.zip_longest(argv, argv[1:]):
        if flag_name(word) == name:
            value = word.partition("=")[2] if "=" in word else following
    return value


class Parser(argparse.ArgumentParser):
    """Argparse's, with a line for a mistake in place of the usage."""

    def error(self, message: str) -> NoReturn:
        leave(f"{message}.")


def leave(sentence: str, status: int = 2) -> NoReturn:
    """End the program with a sentence."""
    print(sentence, file=sys.stderr, flush=True)
    raise SystemExit(status)


def _parse(kind: type, argv: Sequence[str], *, default, program: str | None):
    """`tyro.cli`, whose boxes of several lines become a sentence."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(
                kind,
                args=argv,
                default=default,
                prog=program,
                use_underscores=True,
                config=(tyro.conf.FlagConversionOff,),  # `--remat False`, as all others
            )
    except ValueError as error:  # of the settings' own check, by tyro before 1.0.10
        leave(str(error))
    except SystemExit as stopped:
        if not stopped.code:  # --help
            raise
        leave(_sentence(box.getvalue(), argv))


def _sentence(box: str, argv: Sequence[str]) -> str:
    """What is wrong, from tyro's message about it."""
    parts = [[]]  # the lines of each part of the box; between them are rules
    _title, *lines = COLOUR.sub("", box).splitlines()
    for line in lines:
        inner = line.strip("│|╰╯ ")
        if re.fullmatch("[─-]+", inner):
            parts.append([])
        elif inner:
            parts[-1].append(inner)
    parts = [part for part in parts if part]
    message = " ".join(parts[0])
    own = re.match(r"Error parsing \w+: (.*)", message)
    if own:  # the settings' own check
        return own[1]
    flags = re.findall(r"--(\w+)", message)
    if message.startswith("Missing") and flags[0] not in KNOWN:
        return f"--{flags[0]} is missing, or has no value."
    if flags and flags[0] in KNOWN and not message.startswith("Unrecognized"):
        value = value_of(argv, flags[0])
        given = "has no value" if value is None else f"is {value!r}"
        return f"{flags[0]} {given}: it has to be {in_words(KNOWN[flags[0]])}."
    meant = [line for part in parts[1:2] for line in part if line.startswith("--")]
    return message + (f"; perhaps you meant {meant[0]}" if meant else "") + "."
