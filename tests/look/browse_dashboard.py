"""Watches a headless run in a browser: `python tests/look/browse_dashboard.py --shots DIR`.

Starts notebook 05's command in the background, opens `dashboard.watch` of its folder in JupyterLab
(see browse.py for what that needs), presses Stop, sees the run end with its step saved, resumes it
and watches it to its last step. Pictures of each go to DIR. Exits with 1 where something is wrong.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import browse
import nbformat
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from aha_lib.run.folder import read_rows

ROOT = Path(__file__).resolve().parents[2]


def start(out: Path, steps: int) -> subprocess.Popen:
    command = [
        sys.executable,
        str(ROOT / "notebooks/05_train.py"),
        "--out",
        str(out),
        "--set",
        f"steps={steps}",
        "--set",
        "eval_every=5",
    ]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def steps_done(out: Path) -> int:
    rows = read_rows(out / "metrics.jsonl")
    return rows[-1]["step"] if rows else -1


def until(what, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            raise TimeoutError("the run does not go on")
        time.sleep(0.5)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shots", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=15)
    args = parser.parse_args()
    args.shots.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, browse.lab(Path(folder)) as address:
        out, page = Path(folder) / "run", browse.browser()
        cell = f"from aha_lib.look import dashboard\ndashboard.watch({str(out)!r}, seconds=2)"
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(notebook, Path(folder) / "watch.ipynb")

        def look(name: str) -> str:
            """Open the dashboard, wait for its figures; a picture, and its words."""
            state = browse.run(page, address, "watch.ipynb", 2)
            assert not state["errors"], state["errors"]
            wait = WebDriverWait(page, 60)
            wait.until(lambda p: p.find_elements(By.CSS_SELECTOR, ".jupyter-widgets img"))
            time.sleep(5)
            page.save_screenshot(str(args.shots / f"dashboard_{name}.png"))
            return page.find_element(By.CSS_SELECTOR, ".jp-OutputArea").text

        run = start(out, args.steps)
        until(lambda: steps_done(out) >= 1)
        print(look("start").splitlines()[:2])
        button = page.find_element(By.CSS_SELECTOR, ".jupyter-widgets button")
        button.click()
        code = run.wait(timeout=120)
        stopped = steps_done(out)
        time.sleep(5)
        page.save_screenshot(str(args.shots / "dashboard_stopped.png"))
        print(
            f"Stop: exit {code} after step {stopped} of {args.steps};",
            "the button is",
            "on" if button.is_enabled() else "off",
        )
        assert code == 0 and stopped < args.steps and not button.is_enabled()
        run = start(out, args.steps)
        until(lambda: steps_done(out) > stopped)
        look("resumed")
        assert run.wait(timeout=400) == 0 and steps_done(out) == args.steps
        print(look("end").splitlines()[:2])
        page.quit()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
