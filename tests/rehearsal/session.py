"""Runs one notebook in the place where this is called, and writes down how it went.

`python session.py request.json answer.json`: a program of its own, since it runs inside of the
simulated machine. Imports nothing of aha_lib: the notebook has to find that itself.
"""

import json
import os
import re
import sys
import threading
import time
from datetime import datetime
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

# Run by IPython before the first cell, in the kernel: what the devices hold, and where aha_lib is.
# CPU devices have no memory_stats: sampled are the arrays that are alive, by their shares on each
# device, and the scratch memory that XLA planned for each compiled program.
WATCH = """\
def _rehearsal_watch(file, period=0.2):
    import atexit, collections, json, math, os, sys, threading

    most, found, stop = collections.Counter(), {"scratch": 0, "missed": {}}, threading.Event()

    def look(jax):
        held = collections.Counter()
        for array in jax.live_arrays():
            if not array.is_deleted():
                shape = array.sharding.shard_shape(array.shape)
                for device in array.sharding.device_set:
                    held[device.id] += math.prod(shape) * array.dtype.itemsize
        for device, size in held.items():
            most[device] = max(most[device], size)

    def look_at_programs(jax):
        for program in jax.devices()[0].client.live_executables():
            size = program.get_compiled_memory_stats().temp_size_in_bytes
            found["scratch"] = max(found["scratch"], size)

    def write():
        package = getattr(sys.modules.get("aha_lib"), "__file__", "")
        with open(file + ".new", "w") as out:
            json.dump(found | {"arrays": dict(most), "package": package}, out)
        os.replace(file + ".new", file)

    def watch():
        rounds = 0
        while not stop.wait(period):
            rounds += 1
            jax, bridge = sys.modules.get("jax"), sys.modules.get("jax._src.xla_bridge")
            try:
                if bridge is not None and bridge.backends_are_initialized():
                    look(jax)
                    if rounds % 10 == 0:
                        look_at_programs(jax)
                        write()
            except Exception as error:  # an array was deleted meanwhile, and the like
                kind = type(error).__name__
                found["missed"][kind] = found["missed"].get(kind, 0) + 1

    def end():
        stop.set()
        thread.join(5)
        write()

    thread = threading.Thread(target=watch, daemon=True)
    atexit.register(end)
    thread.start()


_rehearsal_watch({file!r})
"""


def main(request: Path, answer: Path) -> None:
    asked = json.loads(request.read_text())
    notebook = nbformat.reads(json.dumps(asked["notebook"]), as_version=4)
    watched = Path(asked["watched"])
    watched.unlink(missing_ok=True)
    now = Path(asked["now"])
    startup = Path(asked["ipython"]) / "profile_default/startup/watch.py"
    startup.parent.mkdir(parents=True, exist_ok=True)
    startup.write_text(WATCH.replace("{file!r}", repr(str(watched))))
    client = NotebookClient(
        notebook,
        timeout=asked["timeout"],
        kernel_name="python3",
        resources={"metadata": {"path": asked["working"]}},
        on_cell_start=lambda cell, cell_index: now.write_text(cell.source),
    )
    went = {"runs": True}
    began = time.monotonic()
    kernel = Kernel(client)
    try:
        client.execute()
    except CellExecutionError as error:
        went = failure(notebook, f"{error.ename}: {error.evalue}")
    except Exception as error:  # a dead kernel, a cell that takes too long
        went = failure(notebook, f"{type(error).__name__}: {error}")
    went["minutes"] = (time.monotonic() - began) / 60
    kernel.stop()
    went["host"] = kernel.most
    went["processor_minutes"] = kernel.seconds / 60
    went["said"] = warnings(notebook)
    went["seconds"] = seconds(notebook)
    if watched.exists():
        went["devices"] = json.loads(watched.read_text())
    answer.write_text(json.dumps(went))
    Path(asked["executed"]).write_text(nbformat.writes(notebook))


class Kernel:
    """What the kernel's process has taken, as Linux keeps it: resident bytes at most, and time."""

    def __init__(self, client):
        self.client, self.most, self.seconds = client, 0, 0.0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def watch(self):
        while not self.ended.wait(0.5):
            process = getattr(getattr(self.client.km, "provisioner", None), "process", None)
            try:
                self.look(Path(f"/proc/{process.pid}"))
            except (AttributeError, OSError, TypeError):  # not there yet, or not any more
                continue

    def look(self, process: Path):
        peak = re.search(r"VmHWM:\s+(\d+) kB", (process / "status").read_text())
        self.most = max(self.most, 1024 * int(peak[1]))
        after_name = (process / "stat").read_text().rpartition(")")[2].split()
        ticks = int(after_name[11]) + int(after_name[12])  # in programs, and in the kernel for them
        self.seconds = ticks / os.sysconf("SC_CLK_TCK")

    def stop(self):
        self.ended.set()
        self.thread.join()


def failure(notebook, error: str) -> dict:
    """Which cell ended the run: the last one that was begun."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    begun = [i for i, cell in enumerate(code) if cell.get("execution_count")]
    number = begun[-1] if begun else 0
    plain = re.sub(r"\x1b\[[0-9;]*m", "", error)
    return {"runs": False, "cell": number + 1, "of": len(code), "error": plain[:2000]} | {
        "source": code[number].source[:1000]
    }


def seconds(notebook) -> list[float]:
    """Of each code cell that was begun and ended."""
    found = []
    for cell in notebook.cells:
        times = cell.metadata.get("execution", {})
        if {"iopub.execute_input", "shell.execute_reply"} <= times.keys():
            began, ended = times["iopub.execute_input"], times["shell.execute_reply"]
            took = datetime.fromisoformat(ended) - datetime.fromisoformat(began)
            found.append(round(took.total_seconds(), 1))
    return found


def warnings(notebook) -> list[str]:
    """Lines of the outputs that a reader would take for something wrong."""
    lines = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                lines += re.findall(r".*(?:Warning|Error|WARNING|ERROR).*", output.text)
    return lines[:20]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
