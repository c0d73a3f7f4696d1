"""A headless Chromium that is spoken to through a pipe."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prune_lab.report.page.collect import Collection
from prune_lab.report.page.html import page_of
from prune_lab.report.page.run import Layers, ReportRun

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
_PATIENCE = 60.0


class Browser:
    """One page of a browser; see https://chromedevtools.github.io/devtools-protocol.

    Attributes:
        errors: what the page's console has complained about.
        requests: every address that the page asked for.
    """

    def __init__(self, program: str, profile: Path) -> None:
        (child_in, self._out), (self._in, child_out) = os.pipe(), os.pipe()
        ours = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (child_in, child_out)]  # clear of the ends 3 and 4
        os.close(child_in)
        os.close(child_out)
        options = [*_OPTIONS, f"--user-data-dir={profile}", "--remote-debugging-pipe"]
        script = f'exec "$@" 3<&{ours[0]} 4>&{ours[1]}'
        command = ["bash", "-c", script, "bash", program, *options]
        self._process = subprocess.Popen(
            command,
            pass_fds=ours,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(profile)},
        )
        for end in ours:
            os.close(end)
        self._received, self._number, self._session = b"", 0, ""
        self._events: list[dict[str, Any]] = []
        self.errors: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls the browser and returns its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def open(self, page: Path, fragment: str = "", *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Shows a file in a window of that size, and waits until it is loaded."""
        self._load("about:blank")  # another fragment alone would not load the page anew
        self.errors.clear()
        self.requests.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[theme])
        self._load(page.as_uri() + fragment)

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """A key, as if it was typed."""
        code = {"Enter": 13, "Escape": 27, "ArrowRight": 39, "ArrowLeft": 37, "Tab": 9}[key]
        text = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, windowsVirtualKeyCode=code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=code)

    def move(self, x: float, y: float) -> None:
        """Moves the pointer."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """Writes what is shown as PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        """Ends the browser."""
        self._session = ""
        self.call("Browser.close")
        self._process.wait(_PATIENCE)
        os.close(self._in)
        os.close(self._out)

    def _load(self, address: str) -> None:
        self._events.clear()
        self.call("Page.navigate", url=address)
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._receive()

    def _receive(self) -> dict[str, Any]:
        end = time.monotonic() + _PATIENCE
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
            data = os.read(self._in, 1 << 20) if ready else b""
            if not data:
                raise TimeoutError("the browser does not answer")
            self._received += data
        first, _, self._received = self._received.partition(b"\0")
        message: dict[str, Any] = json.loads(first)
        if "method" in message:
            self._events.append(message)
            self._note(message["method"], message["params"])
        return message

    def _note(self, method: str, said: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(said["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning", "assert"):
            self.errors.append(json.dumps(said["args"]))
        elif method == "Log.entryAdded":
            self.errors.append(said["entry"]["text"])


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium; the tests skip where it is not installed."""
    program = next((found for name in _NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium to show the page in (on Debian: apt-get install chromium)")
    opened = Browser(program, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


METHODS, TUNINGS = ("wanda", "magnitude", "sparsegpt"), ("none", "lora")
WEIGHTS = tuple(f"model.layers.{block}.{kind}" for block in range(12) for kind in ("q", "k", "v", "o", "up", "down"))


def layers_of(names, level):
    measures = ("sparsity", "relative_output_error", "block_relative_output_error")
    return Layers(tuple(names), dict.fromkeys(measures, (level,) * len(names)))


def run_of(number, **changes):
    """Run 0 is the best at 50 %, and every one is a little worse."""
    level = 0.5 if number % 2 == 0 else 0.7
    attributes = {
        "model": "toy", "data": "stdlib", "method": METHODS[number % 3], "pattern": "unstructured", "level": level,
        "allocation": "uniform", "finetune": TUNINGS[number // 3 % 2], "settings": None,
        "evaluation": None, "seed": number // 6, "status": "finished", "written": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    metrics = {
        "dense/perplexity": 10.0, "evaluate/perplexity": 20.0 + number * (1 + level), "prune/sparsity": level,
        "dense/smallest_bytes": 1e6, "evaluate/smallest_bytes": 1e6 * (1 - level) + 10 * number,
        "evaluate/prefill_nonzero_flops": 1e9 * (1 - level), "evaluate/prefill_seconds": 0.01 + number % 7 / 1000,
        "prune/seconds": 1.5,
    }  # fmt: skip
    made = {
        "folder": f"sweep/{number}",
        "attributes": attributes,
        "metrics": metrics,
        "command": f"prune-lab method={attributes['method']} seed={number}",
        "protocol": {"model": {"dtype": "float32"}},
        "held_out": ((0.0, 5.0), (10.0, 4.0 + number / 100)),
        "layers": layers_of(WEIGHTS, level),
    }
    return ReportRun(**(made | changes))


@pytest.fixture
def show(browser, tmp_path):
    """``show(runs, ...)`` opens the page of these runs."""

    def shown(runs, fragment="", unreadable=(), at_work=(), watch=0, **window):
        collection = Collection(tmp_path, runs=runs, unreadable=list(unreadable), open=list(at_work))
        path = tmp_path / "report.html"
        path.write_text(page_of(collection, "sweep", watch), encoding="utf-8")
        browser.open(path, fragment, **window)
        return browser

    return shown


@pytest.fixture(autouse=True)
def quiet(browser):
    """No test leaves a complaint in the console, and none makes the page ask for anything."""
    yield
    assert browser.errors == []
    assert [address for address in browser.requests if not address.startswith(("file:", "about:", "data:"))] == []
    assert len({address.partition("#")[0] for address in browser.requests if address.startswith("file:")}) <= 1


def click(page, selector):
    page.run(f"document.querySelector({json.dumps(selector)}).click()")


def column(page, name):
    """The texts of a column, from above."""
    script = "[...document.querySelectorAll('#table tbody td[data-label=\"NAME\"]')].map((cell) => cell.textContent)"
    return page.run(script.replace("NAME", name))


def choose(page, selector, label):
    """Picks an option by its text."""
    script = """(([selector, label]) => {
      const select = document.querySelector(selector);
      select.value = [...select.options].find((option) => option.textContent === label).value;
      select.dispatchEvent(new Event("change"));
    })"""
    page.run(f"{script}({json.dumps([selector, label])})")


def dots(page):
    """How many points the first plot has."""
    script = """[...document.querySelector("#scatters svg").querySelectorAll(".dots")]
      .map((path) => path.getAttribute("d").split("M").length - 1)"""
    return sum(page.run(script))


def evaluated(number, windows, **metrics):
    """A run whose perplexity is of so many windows."""
    text = {"source": "stdlib", "windows": windows, "seqlen": 512}
    protocol = {"data": {"evaluation": text}, "evaluate": {"perplexity": {"text": text}}}
    attributes = run_of(number).attributes | {"evaluation": f"stdlib, {windows} x 512"}
    found = {f"{name.replace('__', '/')}": value for name, value in metrics.items()}
    return run_of(number, protocol=protocol, attributes=attributes, metrics=run_of(number).metrics | found)
