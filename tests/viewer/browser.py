"""Chromium without a window, driven over its DevTools pipe: nothing between the tests and it."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

KEYS = {"ArrowDown": 40, "ArrowUp": 38, "Enter": 13, "Escape": 27, "End": 35, "Home": 36,
        "PageDown": 34}  # fmt: skip
OPENED = "document.body.dataset.opened"


def chromium() -> str | None:
    """Debian's package, or another build."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


class Browser:
    """One page: the URLs that it asked for, the dialogs that it showed, its errors."""

    def __init__(self, profile: Path, width: int = 1300, height: int = 850) -> None:
        self.requests: list[str] = []
        self.dialogs: list[str] = []
        self.errors: list[str] = []
        self._count, self._buffer = 0, b""
        read, self._write = os.pipe()
        self._read, write = os.pipe()
        # A sandbox of its own needs what containers do not grant, and root may not have one.
        arguments = [
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--no-first-run", "--disable-extensions", "--disable-background-networking",
            "--hide-scrollbars", "--force-prefers-reduced-motion", "--remote-debugging-pipe",
            f"--window-size={width},{height}", f"--user-data-dir={profile}",
        ]  # fmt: skip
        shell = f'exec "$@" 3<&{read} 4>&{write}'
        found = chromium()
        assert found is not None
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "bash", found, *arguments],
            pass_fds=(read, write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read)
        os.close(write)
        self._session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self._session = ""
        try:
            self.call("Browser.close")
        except (OSError, EOFError, TimeoutError):
            self._process.kill()
        self._process.wait(20)
        os.close(self._read)
        os.close(self._write)

    def call(self, method: str, **params: object) -> dict:
        """One command of the protocol and its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next(60)
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self, seconds: float) -> dict:
        end = time.monotonic() + seconds
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0, end - time.monotonic()))
            if not ready:
                raise TimeoutError("Chromium does not answer")
            part = os.read(self._read, 1 << 20)
            if not part:
                raise EOFError("Chromium has ended")
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(line)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, event: str | None, params: dict) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif event == "Page.javascriptDialogOpening":
            self.dialogs.append(params["message"])
        elif event == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"]))
        elif event == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])

    def open(self, url: str) -> None:
        """Go to a page of the viewer, and wait until it shows its first row."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)
        self.wait("document.body && document.body.dataset.ready && document.body.dataset.opened")

    def reload(self) -> None:
        """The page anew, in the same process: what it has stored is there."""
        self.js("document.body.dataset.ready = ''")
        self.call("Page.reload")
        self.wait("document.body && document.body.dataset.ready && document.body.dataset.opened")

    def js(self, expression: str) -> object:
        """The value of an expression in the page."""
        done = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until an expression is true."""
        end = time.monotonic() + 60
        while not self.js(f"!!({condition})"):
            assert time.monotonic() < end, f"never true: {condition}"
            time.sleep(0.03)

    def press(self, *keys: str) -> None:
        for key in keys:
            text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
            code = KEYS.get(key, ord(key.upper()) if key.isalpha() and len(key) == 1 else 0)
            self.call("Input.dispatchKeyEvent", type="keyDown", key=key,
                      windowsVirtualKeyCode=code, **text)  # fmt: skip
            self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def dark(self, on: bool) -> None:
        """What the system prefers."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if on else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


def count(browser: Browser) -> int:
    """Rows that fit the search and the filters."""
    said = browser.js("document.getElementById('count').textContent")
    return int(str(said).split()[0].replace(",", ""))


def text(browser: Browser, selector: str) -> str:
    """What an element says."""
    return str(browser.js(f"document.querySelector({json.dumps(selector)}).textContent"))


def choose(browser: Browser, name: str, label: str) -> None:
    """Pick a filter's choice by what it says."""
    browser.js(
        f"(() => {{ const s = document.getElementById('f-{name}');"
        f"s.value = [...s.options].find((o) => o.text.startsWith({json.dumps(label)})).value;"
        "s.dispatchEvent(new Event('change')); })()"
    )
