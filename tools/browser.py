"""A page of a headless Chromium or Chrome, driven by the DevTools protocol."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from dbt_nn.command_line import ExpectedError

# `chromium` on Debian; what others call it, for who runs the tests elsewhere.
BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # it refuses to run as root with one; the pages are our own
    "--disable-gpu",
    "--disable-dev-shm-usage",  # a container's /dev/shm is too small
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1340,700",
    "--remote-debugging-pipe",
)

# Errors of every dbt docs site, from its own page and not from what it shows.
KNOWN_ERRORS = (
    # the browser loads the icons' addresses before Angular has filled them in
    re.compile(r"/%7B%7B%20getIcon\(item\.type,%20'o(n|ff)'\)%20%7D%7D"),
    # an address that the build of the site left as it was
    re.compile(r"/\$%7Brequire\('\./assets/favicons/favicon\.ico'\)%7D"),
)


class BrowserError(ExpectedError):
    """The browser is missing, has ended, or does not come to show something."""


@dataclass
class Browser:
    """A page of a headless browser, and what it complained about."""

    requests: int  # file descriptors
    answers: int
    log: Path
    session: str | None = None
    events: list[dict[str, Any]] = field(default_factory=list, repr=False)
    _buffer: bytes = field(default=b"", repr=False)
    _last_id: int = 0

    def attach(self) -> None:
        page = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=page, flatten=True)[
            "sessionId"
        ]
        for domain in ("Log", "Network", "Page", "Runtime"):
            self.call(f"{domain}.enable")

    def _fail(self, message: str) -> NoReturn:
        log = self.log.read_text(encoding="utf-8", errors="replace")
        raise BrowserError(f"{message}\n{log[-3000:]}")

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            wait = deadline - time.monotonic()
            if wait < 0 or not select.select([self.answers], [], [], wait)[0]:
                self._fail("the browser does not answer")
            received = os.read(self.answers, 1 << 20)
            if not received:
                self._fail("the browser has ended")
            self._buffer += received
        message, self._buffer = self._buffer.split(b"\0", maxsplit=1)
        return json.loads(message)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._last_id += 1
        message = {"id": self._last_id, "method": method, "params": parameters}
        if self.session is not None:
            message["sessionId"] = self.session
        try:
            os.write(self.requests, json.dumps(message).encode() + b"\0")
        except BrokenPipeError:
            self._fail("the browser has ended")
        deadline = time.monotonic() + 60
        while True:
            answer = self._receive(deadline)
            if answer.get("id") == self._last_id:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)

    def evaluate(self, expression: str) -> Any:
        """Return the value of JavaScript."""
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in done, (expression, done)
        return done["result"].get("value")

    def wait_for(self, condition: str, seconds: float = 40) -> None:
        """Wait until JavaScript is true."""
        deadline = time.monotonic() + seconds
        while not self.evaluate(f"Boolean({condition})"):
            if time.monotonic() > deadline:
                errors = "\n".join(self.errors())
                raise BrowserError(f"not after {seconds} s: {condition}\n{errors}")
            time.sleep(0.1)

    def open(self, address: str) -> None:
        self.call("Page.navigate", url="about:blank")
        self.wait_for("location.href === 'about:blank'")
        self.events.clear()
        done = self.call("Page.navigate", url=address)
        assert "errorText" not in done, done
        self.wait_for("document.readyState === 'complete'")

    def click(self, selector: str) -> None:
        self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")

    @property
    def text(self) -> str:
        """What the page shows beside its menu."""
        return self.evaluate("document.querySelector('.app-content').innerText")

    def errors(self) -> list[str]:
        """List errors in the console, and addresses outside of the page."""
        found = []
        for event in self.events:
            about = event.get("params", {})
            match event.get("method"):
                case "Runtime.exceptionThrown":
                    details = about["exceptionDetails"]
                    thrown = details.get("exception", {})
                    found.append(thrown.get("description", details["text"]))
                case "Runtime.consoleAPICalled" if about["type"] in ("error", "assert"):
                    found.append(f"console: {about['args']}"[:500])
                case "Log.entryAdded" if about["entry"]["level"] == "error":
                    entry = about["entry"]
                    found.append(f"{entry['text'].strip()} ({entry.get('url')})")
                case "Network.requestWillBeSent":
                    url = about["request"]["url"]
                    if not url.startswith(("file:", "data:")):
                        found.append(f"the page asks for {url}")
        return [
            error
            for error in found
            if not any(known.search(error) for known in KNOWN_ERRORS)
        ]

    def screenshot(self) -> bytes:
        """What the window shows, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot")["data"])


def find_browser() -> str:
    for name in BROWSERS:
        if found := shutil.which(name):
            return found
    raise BrowserError(
        "no chromium or Chrome is installed (Debian: apt-get install chromium)"
    )


@contextlib.contextmanager
def open_browser(folder: Path) -> Iterator[Browser]:
    """Start one that keeps its files in a folder; end it with all its processes."""
    program = find_browser()
    folder.mkdir()
    requests, answers, log = folder / "requests", folder / "answers", folder / "log"
    os.mkfifo(requests)
    os.mkfifo(answers)
    with log.open("wb") as output:
        process = subprocess.Popen(
            # it reads file descriptor 3 and writes to 4
            ["sh", "-c", 'exec "$@" 3<requests 4>answers', "sh", program, *OPTIONS]
            + [f"--user-data-dir={folder / 'profile'}"],
            cwd=folder,
            env={**os.environ, "HOME": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        with requests.open("wb", buffering=0) as out, answers.open("rb") as into:
            opened = Browser(out.fileno(), into.fileno(), log)
            opened.attach()
            yield opened
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
