"""Drive a headless Chromium over its debugging pipe: no port, no library.

Chromium reads commands from descriptor 3 and writes answers and events to 4, each a JSON text that
a zero byte ends (`--remote-debugging-pipe`).
"""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
KEYS = {"Enter": 13, "Escape": 27, "Tab": 9, "ArrowDown": 40, "ArrowUp": 38, "Home": 36, "End": 35}


@dataclass
class Tab:
    """One page, what it said on the console, and what it asked the network for."""

    to: int
    back: int
    session: str = ""
    number: int = 0
    unread: bytes = b""
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            found = self._read()
            if found.get("id") == self.number:
                assert "error" not in found, f"{method}: {found['error']}"
                return found["result"]

    def run(self, script: str) -> Any:
        """Evaluate an expression, wait for it if it is a promise, return its value."""
        found = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def open(self, page: Path, seconds: float = 60) -> None:
        self.call("Page.navigate", url=page.as_uri())
        end = time.monotonic() + seconds
        while not self.run("document.documentElement?.dataset.drawn ?? ''"):
            assert time.monotonic() < end, f"not drawn in {seconds} s; console: {self.console}"
            time.sleep(0.05)

    def press(self, key: str) -> None:
        code = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        text = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **code, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **code)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def resize(self, width: int, height: int = 900) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def pdf(self) -> bytes:
        found = self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=True)
        return base64.b64decode(found["data"])

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def _read(self, seconds: float = 60) -> dict[str, Any]:
        while b"\0" not in self.unread:
            ready, _, _ = select.select([self.back], [], [], seconds)
            assert ready, f"Chromium said nothing for {seconds} s"
            part = os.read(self.back, 1 << 16)
            assert part, "Chromium ended"
            self.unread += part
        text, _, self.unread = self.unread.partition(b"\0")
        found: dict[str, Any] = json.loads(text)
        self._note(found.get("method", ""), found.get("params", {}))
        return found

    def _note(self, event: str, params: dict[str, Any]) -> None:
        if event == "Runtime.consoleAPICalled":
            self.console.append(str([part.get("value") for part in params["args"]]))
        elif event == "Runtime.exceptionThrown":
            self.console.append(json.dumps(params["exceptionDetails"])[:500])
        elif event == "Log.entryAdded":
            self.console.append(params["entry"]["text"])
        elif event == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])


@contextmanager
def open_tab(profile: Path) -> Iterator[Tab]:
    assert BROWSER is not None
    to_browser, to = os.pipe()
    back, from_browser = os.pipe()
    flags = [
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--mute-audio"),
        *("--disable-background-networking", "--disable-component-update"),
        *("--remote-debugging-pipe", f"--user-data-dir={profile}"),
    ]
    # Puts the pipes where Chromium looks for them, and becomes Chromium.
    place = "import os, sys; os.dup2(%d, 3); os.dup2(%d, 4); os.execv(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", place % (to_browser, from_browser), BROWSER, *flags],
        pass_fds=(to_browser, from_browser),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_browser)
    os.close(from_browser)
    tab = Tab(to=to, back=back)
    try:
        target = tab.call("Target.createTarget", url="about:blank")["targetId"]
        attached = tab.call("Target.attachToTarget", targetId=target, flatten=True)
        tab.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            tab.call(f"{domain}.enable")
        tab.resize(1280)
        yield tab
    finally:
        process.terminate()
        process.wait(timeout=30)
        os.close(to)
        os.close(back)
