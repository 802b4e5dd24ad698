"""Opens notebooks in JupyterLab, in a headless Chromium, runs all cells, uses their widgets.

`pip install jupyterlab selenium`, Debian's `chromium` and `chromium-driver`; then `python
tests/look/browse.py [--shots DIR] [--minutes 20] NOTEBOOK.ipynb ...`. Works on copies. Exits with 1
where a cell fails, where a widget is not drawn, or where 06's explorer does not follow its menus,
or 08's answer its slider.
Knows nothing of what the notebooks teach.
"""

import argparse
import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

STATE = """
const panel = window.jupyterapp.shell.currentWidget;
if (!panel || !panel.content || !panel.content.widgets) return null;
const cells = panel.content.widgets.map(c => c.model.toJSON()).filter(c => c.cell_type == 'code');
return {status: panel.sessionContext.session?.kernel?.status,
        ran: cells.filter(c => c.execution_count !== null).length, cells: cells.length,
        errors: cells.flatMap(c => c.outputs).filter(o => o.output_type == 'error')
            .map(o => o.ename + ': ' + o.evalue)};
"""


@contextlib.contextmanager
def lab(folder: Path):
    """A JupyterLab server on `folder`; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        "--IdentityProvider.token=",
        "--ServerApp.password=",
        f"--notebook-dir={folder}",
        "--LabApp.expose_app_in_browser=True",
        "--ServerApp.port_retries=0",
    ]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/api")
                break
            time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait()


def browser() -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "window-size=1100,1400"):
        options.add_argument(f"--{flag}")
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome")
    return webdriver.Chrome(options, Service(shutil.which("chromedriver")))


def run(page, address: str, name: str, minutes: float) -> dict:
    """Open the notebook, run all cells, wait for the end; the state of its cells."""
    page.get(f"{address}/lab/tree/{name}?reset")
    wait = WebDriverWait(page, 300, poll_frequency=1)
    wait.until(lambda p: p.execute_script("return !!window.jupyterapp"))
    wait.until(lambda p: (p.execute_script(STATE) or {}).get("status") == "idle")
    page.execute_script("window.jupyterapp.shell.collapseLeft()")
    page.execute_script("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        time.sleep(2)
        state = page.execute_script(STATE)
        if state["errors"] or state["ran"] == state["cells"] and state["status"] == "idle":
            break
    return state


def explorer(page, shots: Path | None) -> list[str]:
    """Use the explorer's menus and button; what is wrong with it. A picture of it to `shots`."""
    wrong = []
    menus = [
        m
        for m in page.find_elements(By.CSS_SELECTOR, ".widget-dropdown select")
        if "sampled" in m.text
    ]
    if not menus:
        return ["there is no explorer"]
    page.execute_script("arguments[0].scrollIntoView()", menus[0])
    box = menus[0].find_element(By.XPATH, "./ancestor::*[contains(@class, 'widget-vbox')][1]")
    _, first, second, chosen, puzzle = box.find_elements(By.TAG_NAME, "select")
    before = box.text
    Select(second).select_by_index(1)
    Select(chosen).select_by_index(1)
    Select(puzzle).select_by_index(1)
    WebDriverWait(page, 60).until(lambda p: box.text != before)
    if box.find_elements(By.TAG_NAME, "table") == []:
        wrong.append("the explorer shows no answers")
    Select(second).select_by_index(len(Select(second).options) - 1)
    if shots:
        time.sleep(5)
        box.screenshot(str(shots / "explorer.png"))
    box.find_element(By.TAG_NAME, "button").click()
    WebDriverWait(page, 60).until(lambda p: "traces.html" in box.text)
    for part in box.find_elements(By.CSS_SELECTOR, "button, .widget-label"):
        if part.text and page.execute_script(
            "return arguments[0].scrollWidth > arguments[0].clientWidth + 1", part
        ):
            wrong.append(f"{part.text!r} is cut off")
    return wrong


def slider(page, shots: Path | None) -> list[str]:
    """Push along notebook 08's direction with the slider, then after another layer."""
    page.execute_script(
        "const notebook = window.jupyterapp.shell.currentWidget.content;"
        "notebook.scrollToItem(notebook.widgets.findIndex(c => "
        "c.model.sharedModel.source.includes('FloatSlider(')), 'start')"
    )
    time.sleep(3)  # cells out of sight are not drawn
    found = page.find_elements(
        By.XPATH, "//label[text()='layer']/ancestor::*[contains(@class, 'widget-vbox')][1]"
    )
    if not found:
        return ["there is no slider"]
    box, wrong = found[0], []
    page.execute_script("arguments[0].scrollIntoView()", box)
    for what, use in {
        "strength": lambda: box.find_element(By.CSS_SELECTOR, ".noUi-handle").send_keys(
            Keys.ARROW_RIGHT
        ),
        "layer": lambda: Select(box.find_element(By.TAG_NAME, "select")).select_by_index(1),
    }.items():
        before = box.text
        use()
        try:
            WebDriverWait(page, 60).until(lambda p: box.text != before)  # noqa: B023
            time.sleep(3)  # sampled anew, a first time with another layer
        except TimeoutException:
            wrong.append(f"the answer does not follow the {what}")
        if shots:
            box.screenshot(str(shots / f"slider_{what}.png"))
    return wrong


def shoot(page, shots: Path, name: str) -> None:
    """Pictures of what is on the screen, light and dark."""
    for theme in ("Dark", "Light"):
        page.execute_script(
            f"window.jupyterapp.commands.execute('apputils:change-theme', "
            f"{{theme: 'JupyterLab {theme}'}})"
        )
        time.sleep(3)
        page.save_screenshot(str(shots / f"{name}_{theme.lower()}.png"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--shots", type=Path)
    parser.add_argument("--minutes", type=float, default=20)
    args = parser.parse_args()
    failed = 0
    if args.shots:
        args.shots.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, lab(Path(folder)) as address:
        page = browser()
        for path in args.notebooks:
            shutil.copy(path, folder)
            state = run(page, address, path.name, args.minutes)
            wrong = state["errors"] or []
            if state["ran"] < state["cells"]:
                wrong.append(f"ran {state['ran']} of {state['cells']} cells")
            if "explorer" in path.read_text() and not wrong:
                wrong += explorer(page, args.shots)
            if "FloatSlider" in path.read_text() and not wrong:
                wrong += slider(page, args.shots)
            if args.shots:
                shoot(page, args.shots, path.stem)
            print(path.name, f"{state['ran']}/{state['cells']} cells", wrong or "well", flush=True)
            failed += bool(wrong)
        page.quit()
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
