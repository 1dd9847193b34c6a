"""The notebooks in JupyterLab in a real Chromium: listed, opened, run and moved, and nothing goes wrong, or out."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from browser import WITHOUT_BROWSER, Browser, Tab, running_browser

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
FOLDERS = {
    "JUPYTER_CONFIG_DIR": "config",
    "JUPYTER_DATA_DIR": "data",
    "JUPYTER_RUNTIME_DIR": "runtime",
    "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
    "JUPYTERLAB_SETTINGS_DIR": "settings",
    "IPYTHONDIR": "ipython",
}
STARTING_S = 120

pytestmark = [
    pytest.mark.slow,
    WITHOUT_BROWSER,
    pytest.mark.skipif(
        find_spec("jupyterlab") is None, reason="NO BROWSER: JupyterLab is missing; pip install 'draftstream[notebook]'"
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """A running JupyterLab."""

    origin: str
    token: str

    def open(self, browser: Browser, name: str) -> Tab:
        """The notebook in a tab of its own, its kernel running."""
        tab = browser.open(f"{self.origin}/lab/tree/{name}.ipynb?reset&token={self.token}", width=1400, height=1000)
        tab.wait_for("document.querySelector('.jp-MarkdownOutput h1') !== null", most_s=STARTING_S)
        # not what the page shows: it says idle before there is a kernel, and cells run then are lost
        kernel = "jupyterapp.shell.currentWidget.sessionContext.session?.kernel"
        tab.wait_for(f"{kernel}?.connectionStatus === 'connected'", most_s=STARTING_S)
        return tab


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Lab"]:
    """JupyterLab over a copy of the notebooks, with settings of nobody."""
    root = tmp_path_factory.mktemp("lab")
    shutil.copytree(NOTEBOOKS, root / "notebooks")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    token = secrets.token_hex(16)
    options = (
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        f"--port={port}",
        f"--IdentityProvider.token={token}",
        f"--ServerApp.root_dir={root / 'notebooks'}",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        "--LabApp.extension_manager=readonly",
        "--expose-app-in-browser",
    )
    environment = {**os.environ, **{name: str(root / folder) for name, folder in FOLDERS.items()}}
    with (root / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options], env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        _wait_until_it_answers(f"http://127.0.0.1:{port}/api?token={token}", root / "log")
        yield Lab(origin=f"http://127.0.0.1:{port}", token=token)
    finally:
        server.terminate()
        server.wait(timeout=30)


def _wait_until_it_answers(address: str, log: Path) -> None:
    ends_s = time.monotonic() + STARTING_S
    while True:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            assert time.monotonic() < ends_s, log.read_text()
            time.sleep(0.2)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as found:
        yield found


@pytest.fixture(scope="module")
def tab(browser: Browser, lab: Lab) -> Tab:
    return lab.open(browser, "what_if")


def assert_calm(tab: Tab, lab: Lab) -> None:
    """Nothing went wrong, and nobody but the server was asked."""
    assert tab.errors() == []
    assert [url for url in tab.requests() if not url.startswith(f"{lab.origin}/")] == []


def test_notebooks_are_listed_and_what_if_opens(tab: Tab, lab: Lab) -> None:
    listed = tab.evaluate("[...document.querySelectorAll('.jp-DirListing-itemText')].map((item) => item.textContent)")
    assert {path.name for path in NOTEBOOKS.glob("*.ipynb")} <= set(listed)
    assert tab.evaluate("document.querySelector('.jp-MarkdownOutput h1').textContent").startswith("What if?")
    tab.screenshot("lab-opened", is_whole=False)
    assert_calm(tab, lab)


@pytest.mark.timeout(600)
def test_what_if_draws_and_obeys_its_sliders(tab: Tab, lab: Lab) -> None:
    tab.evaluate("document.querySelector('.jp-Notebook .jp-Cell').click()")
    tab.key("Enter", is_shifted=True)
    tab.key("Enter", is_shifted=True)
    plots = "[...document.querySelectorAll('.jp-OutputArea .js-plotly-plot')]"
    tab.wait_for(f"{plots}.length >= 4", most_s=STARTING_S)
    tab.wait_for(f"{plots}.every((plot) => plot.data.length > 0)")
    drawn = f"JSON.stringify({plots}.map((plot) => plot.data))"
    before = tab.evaluate(drawn)
    tab.screenshot("lab-run", is_whole=False)
    tab.evaluate("document.querySelector('.jp-OutputArea .noUi-handle').focus()")
    tab.key("ArrowRight")
    tab.wait_for(f"{drawn} !== {before!r}")
    assert "rror" not in tab.evaluate("document.querySelector('.jp-OutputArea').textContent")
    tab.screenshot("lab-moved", is_whole=False)
    assert_calm(tab, lab)


TYPE = """
((texts) => {
  const place = document.querySelectorAll('.jp-OutputArea .lm-TabBar-tab')[1];
  const { x, y } = place.getBoundingClientRect();
  for (const kind of ['pointerdown', 'pointerup'])
    place.dispatchEvent(new PointerEvent(kind, { bubbles: true, button: 0, clientX: x + 9, clientY: y + 9 }));
  for (const input of document.querySelectorAll('.jp-OutputArea .widget-text input')) {
    const name = input.closest('.widget-text').querySelector('.widget-label').textContent;
    input.value = texts[name];
    for (const kind of ['input', 'change']) input.dispatchEvent(new Event(kind, { bubbles: true }));
  }
  [...document.querySelectorAll('.jp-OutputArea button')].find((each) => each.textContent.includes('load')).click();
})(%s)
"""


@pytest.mark.timeout(600)
def test_what_if_loads_a_users_own_profile(tab: Tab, lab: Lab) -> None:
    texts = {
        "profile": "examples/profile.json",
        "reports": "examples/reports",
        "link": "emulated:300MB/s",
        "memory": "13MiB",
    }
    tab.evaluate(TYPE % json.dumps(texts))
    tab.wait_for(
        "document.querySelector('.jp-OutputArea').textContent.includes('corrected by 7 runs')", most_s=STARTING_S
    )
    tab.screenshot("lab-own", is_whole=False)
    assert_calm(tab, lab)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "num_figures"), [("predicted_vs_measured", 6), ("acceptance", 7)])
def test_other_notebooks_run_from_top_to_bottom(browser: Browser, lab: Lab, name: str, num_figures: int) -> None:
    tab = lab.open(browser, name)
    tab.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
    plots = "[...document.querySelectorAll('.jp-OutputArea .js-plotly-plot')]"
    tab.wait_for(f"{plots}.filter((plot) => plot.data?.length > 0).length >= {num_figures}", most_s=STARTING_S)
    assert tab.evaluate("document.querySelectorAll('.jp-OutputArea [data-mime-type*=stderr]').length") == 0
    tab.screenshot(f"lab-{name}", is_whole=False)
    assert_calm(tab, lab)
    tab.close()
