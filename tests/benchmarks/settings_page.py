"""Writes docs/settings.md, the reference of settings: `python tests/benchmarks/settings_page.py`.

All of it comes from the dataclasses: names, defaults, meanings and ranges from the fields, the
presets from their tables. Knows nothing of the command line, which reads the same fields.
"""

from dataclasses import fields
from pathlib import Path

from aha_lib.presets import PRETRAINING, SETTINGS, Pretraining, Settings, in_words

PAGE = Path(__file__).resolve().parents[2] / "docs" / "settings.md"
HEAD = """\
# Settings

Each is a flag of the command line, `aha train --learning_rate 3e-4`, and a keyword in a notebook,
`Settings(learning_rate=3e-4)`. A preset sets some of them; what is given besides wins. A run keeps
its settings in `settings.json`, and goes on only with the same ones. Settings marked ✓ may be
others when it goes on: they say how a run is computed, measured and kept, not what it learns.
(`steps` may too, unless `decay` or `refills` make each step depend on their number.)

This page is written by `python tests/benchmarks/settings_page.py` from `aha_lib/presets.py`.
"""


def page() -> str:
    """The text that docs/settings.md should have."""
    parts = [
        HEAD,
        "## A run of GRPO: `aha train`\n",
        *table(Settings),
        "\n## Its presets\n",
        *preset_table(SETTINGS),
        "\n## Pre-training and cold start: `aha pretrain`\n",
        *table(Pretraining),
        "\n## Its presets\n",
        *preset_table(PRETRAINING),
    ]
    return "\n".join(parts) + "\n"


def table(kind: type) -> list[str]:
    """A row for each field of a dataclass."""
    rows = ["| setting | default | what it is | what it may be | ✓ |", "|---|---|---|---|---|"]
    for one in fields(kind):
        change = "✓" if one.metadata["changeable"] else ""
        cells = [f"`{one.name}`", code(one.default), one.metadata["meaning"], in_words(one), change]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def preset_table(presets: dict) -> list[str]:
    """A row for each preset, with the settings in which it differs from the defaults."""
    rows = ["| preset | what it sets |", "|---|---|"]
    for name, settings in presets.items():
        changed = [
            f"`{one.name}={getattr(settings, one.name)}`"
            for one in fields(settings)
            if one.name != "preset" and getattr(settings, one.name) != one.default
        ]
        rows.append(f"| `{name}` | {', '.join(changed) or 'the defaults'} |")
    return rows


def code(value) -> str:
    return f"`{value}`" if value != "" else "empty"


if __name__ == "__main__":
    PAGE.write_text(page())
