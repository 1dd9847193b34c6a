"""A real Chromium without a window, driven over its debugging pipe: no driver, no package, no port."""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SCREENSHOTS = "DRAFTSTREAM_SCREENSHOTS"  # the folder that pictures of the pages go to, if there is one
_FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-first-run",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--force-device-scale-factor=1",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
# Chromium reads commands on descriptor 3 and answers on 4; first both are moved out of each other's way.
_ON_THREE_AND_FOUR = """
import fcntl, os, sys
reads, writes = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3])
os.dup2(reads, 3)
os.dup2(writes, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
_MOST_S = 60.0


def chromium() -> str | None:
    """The browser's command; None where there is none."""
    return next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )


WITHOUT_BROWSER = pytest.mark.skipif(
    chromium() is None, reason="NO BROWSER: pages were not opened; install Debian's package chromium"
)


@contextmanager
def running_browser() -> Iterator["Browser"]:
    """A browser with a profile of its own, which is gone afterwards."""
    command = chromium()
    assert command is not None
    to_browser, from_here = os.pipe()
    to_here, from_browser = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        flags = [*_FLAGS, *(("--no-sandbox",) if os.geteuid() == 0 else ()), f"--user-data-dir={folder}"]
        process = subprocess.Popen(
            [sys.executable, "-c", _ON_THREE_AND_FOUR, str(to_browser), str(from_browser), command, *flags],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(to_browser, from_browser),
        )
        os.close(to_browser)
        os.close(from_browser)
        try:
            yield Browser(from_here, to_here)
        finally:
            os.close(from_here)
            os.close(to_here)
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Browser:
    """Sends commands of the DevTools protocol, and keeps the events of each tab."""

    def __init__(self, writes: int, reads: int) -> None:
        self._writes, self._reads = writes, reads
        self._pending = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **parameters: object) -> dict[str, Any]:
        """The answer to a command; events that come before it are kept."""
        number = self._send(method, session, parameters)
        ends_s = time.monotonic() + _MOST_S
        while True:
            answer = self._receive(ends_s)
            assert answer is not None, f"{method} was not answered"
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result

    def listen(self, duration_s: float) -> None:
        """Keep what comes in so many seconds."""
        ends_s = time.monotonic() + duration_s
        while self._receive(ends_s) is not None:
            pass

    def open(
        self, url: str, *, width: int = 1280, height: int = 900, is_dark: bool = False, is_phone: bool = False
    ) -> "Tab":
        """A tab of that size; its address is loaded, its scripts may still run."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = Tab(self, target, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            tab.call(f"{domain}.enable")
        tab.resize(width, height, is_phone=is_phone)
        tab.darken(is_dark)
        tab.call("Page.navigate", url=url)
        tab.wait_for("document.readyState === 'complete'")
        return tab

    def _send(self, method: str, session: str | None, parameters: Mapping[str, object]) -> int:
        """The number that the answer will have."""
        self._number += 1
        message: dict[str, object] = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._writes, json.dumps(message).encode() + b"\0")
        return self._number

    def _receive(self, ends_s: float) -> dict[str, Any] | None:
        """The next message; None where none comes in time."""
        while b"\0" not in self._pending:
            left_s = ends_s - time.monotonic()
            if left_s <= 0 or not select.select([self._reads], [], [], left_s)[0]:
                return None
            received = os.read(self._reads, 2**20)
            assert received, "the browser is gone"
            self._pending += received
        message, _, self._pending = self._pending.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        if "method" in found:
            self.events.append(found)
        if found.get("method") == "Page.javascriptDialogOpening":  # which would wait for a person
            self._send("Page.handleJavaScriptDialog", found["sessionId"], {"accept": False})
        return found


class Tab:
    """One page in the browser."""

    def __init__(self, browser: Browser, target: str, session: str) -> None:
        self._browser, self._target, self._session = browser, target, session

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """A command to this page."""
        return self._browser.call(method, self._session, **parameters)

    def evaluate(self, script: str) -> Any:  # noqa: ANN401 - whatever JavaScript gives
        """What an expression gives, awaited where it is a promise."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, condition: str, *, most_s: float = _MOST_S) -> None:
        """Until an expression holds."""
        ends_s = time.monotonic() + most_s
        while not self.evaluate(condition):
            assert time.monotonic() < ends_s, f"not within {most_s:.0f} s: {condition}; {self.errors()}"
            self._browser.listen(0.1)

    def resize(self, width: int, height: int, *, is_phone: bool = False) -> None:
        """Show the page in so many pixels; a phone has touch, and its own idea of a viewport."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=is_phone
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=is_phone)

    def pointer(self, x: float, y: float, *, is_touch: bool = False) -> None:
        """Tap with a finger, or move the mouse there."""
        if is_touch:
            self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
            self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        else:
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def key(self, name: str, *, is_shifted: bool = False) -> None:
        """Press a key, such as Tab or Escape."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39}
        for kind in ("rawKeyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=name,
                code=name,
                windowsVirtualKeyCode=codes[name],
                modifiers=8 if is_shifted else 0,
            )

    def darken(self, is_dark: bool) -> None:
        """What the reader's system asks for."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, name: str, *, is_whole: bool = True) -> None:
        """A picture of the page into the folder that the environment names, if it names one."""
        folder = os.environ.get(SCREENSHOTS)
        if folder is None:
            return
        Path(folder).mkdir(parents=True, exist_ok=True)
        picture = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=is_whole)["data"]
        (Path(folder) / f"{name}.png").write_bytes(base64.b64decode(picture))

    def errors(self) -> list[str]:
        """What the console showed as an error, and what was thrown."""
        return [
            said
            for event in self._own()
            for read in (_READERS.get(event["method"]),)
            if read is not None and (said := read(event["params"])) is not None
        ]

    def requests(self) -> list[str]:
        """Addresses that were asked for, but for what lies in the page itself."""
        asked = [
            event["params"]["request"]["url"] for event in self._own() if event["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in asked if not url.startswith(("data:", "blob:"))]

    def dialogs(self) -> list[str]:
        """What the page asked or told in a window of its own."""
        return [
            event["params"]["message"] for event in self._own() if event["method"] == "Page.javascriptDialogOpening"
        ]

    def close(self) -> None:
        """End the tab."""
        self._browser.call("Target.closeTarget", targetId=self._target)

    def _own(self) -> list[dict[str, Any]]:
        self._browser.listen(0.05)
        return [event for event in self._browser.events if event.get("sessionId") == self._session]


def _logged(parameters: Mapping[str, Any]) -> str | None:
    entry = parameters["entry"]
    return f"{entry['source']}: {entry['text']} {entry.get('url', '')}" if entry["level"] == "error" else None


def _called(parameters: Mapping[str, Any]) -> str | None:
    is_error = parameters["type"] in ("error", "assert")
    said = [str(part.get("value", part.get("description", ""))) for part in parameters["args"]]
    return " ".join(said) if is_error else None


def _thrown(parameters: Mapping[str, Any]) -> str | None:
    details = parameters["exceptionDetails"]
    return str(details.get("exception", {}).get("description", details["text"]))


_READERS: dict[str, Callable[[Mapping[str, Any]], str | None]] = {
    "Log.entryAdded": _logged,
    "Runtime.consoleAPICalled": _called,
    "Runtime.exceptionThrown": _thrown,
}
