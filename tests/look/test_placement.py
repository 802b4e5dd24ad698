"""Drawings of which device holds which part of an array."""

import jax
import pytest

from aha_lib import devices
from aha_lib.look import placement


def test_devices_that_are_not_here_are_drawn(monkeypatch):
    """The embedding by its vocabulary, heads by `tp`; what divides by nothing, on all of them."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # as a notebook's kernel does
    arrays = {
        "embed": ((512, 128), ("vocab", "embed")),
        "q": ((128, 8), ("embed", "heads")),
        "rows": ((7,), ("rows",)),
    }
    drawn = placement.simulated(arrays, count=4, tp=2)
    titles = ["embed: 512 x 128", "q: 128 x 8", "rows: 7"]
    assert "\x1b" not in drawn
    assert [line for line in drawn.splitlines() if line.split(":")[0] in arrays] == titles
    cells = []
    for line in drawn.splitlines():
        if "CPU" in line:
            cells.append([cell.strip() for cell in line.strip("│").split("│")])
    assert cells[:4] == [["CPU 0"], ["CPU 1"], ["CPU 2"], ["CPU 3"]]
    assert cells[4:6] == [["CPU 0", "CPU 1"], ["CPU 2", "CPU 3"]]
    assert cells[6:] == [["CPU 0,1,2,3"]]


def test_another_process_that_fails_says_so_in_a_sentence():
    with pytest.raises(RuntimeError, match=r"^3 simulated devices could not be had: .*fsdp=1"):
        placement.simulated({"rows": ((8,), ("rows",))}, count=3, tp=2)


def test_devices_that_are_here_are_drawn(capsys):
    placement.draw((8, 8), ("embed", None), devices.make_mesh(jax.devices()[:1]))
    assert "CPU 0" in capsys.readouterr().out
