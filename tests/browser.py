"""Headless Chromium for tests: a real page with a real mouse and keyboard, driven over the DevTools protocol's pipe."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
KEYS = {"Tab": 9, "Escape": 27, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowRight": 39, "Enter": 13}


class Browser:
    """One browser; `open` gives its page another address, width and colour scheme.

    requests, dialogs, errors: addresses asked for, dialogs opened and uncaught exceptions since the last `open`.
    """

    def __init__(self, profile: Path):
        (read, self._to), (self._from, write) = os.pipe(), os.pipe()
        # Chromium reads from descriptor 3 and writes to 4; out of their way first.
        read, write = (fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (read, write))
        options = (
            "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
            "--disable-component-update --disable-sync --hide-scrollbars --remote-debugging-pipe"
        )
        command = f'exec "$0" {options} "--user-data-dir=$1" about:blank 3<&{read} 4>&{write} 2>/dev/null'
        self._process = subprocess.Popen(["bash", "-c", command, CHROMIUM, str(profile)], pass_fds=(read, write))
        os.close(read)
        os.close(write)
        self._buffer, self._last, self._session = b"", 0, None
        self._forget()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self._session = None
        self.call("Browser.close")
        self._process.wait(20)
        os.close(self._to)
        os.close(self._from)

    def _forget(self) -> None:
        self.requests, self.dialogs, self.errors, self._loaded = [], [], [], False

    def call(self, method: str, **parameters) -> dict:
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._last:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _receive(self, seconds: float = 60) -> dict:
        until = time.monotonic() + seconds
        while b"\0" not in self._buffer:
            if not select.select([self._from], [], [], max(until - time.monotonic(), 0))[0]:
                raise TimeoutError(f"Chromium said nothing for {seconds} s")
            self._buffer += os.read(self._from, 1 << 20)
        raw, _, self._buffer = self._buffer.partition(b"\0")
        event = json.loads(raw)
        match event.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(event["params"]["request"]["url"])
            case "Page.javascriptDialogOpening":
                self.dialogs.append(event["params"]["message"])
            case "Runtime.exceptionThrown":
                self.errors.append(event["params"]["exceptionDetails"]["text"])
            case "Page.loadEventFired":
                self._loaded = True
        return event

    def open(self, path: Path, width: int = 1280, height: int = 900, scheme: str = "light") -> "Browser":
        self._forget()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 640)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not self._loaded:
            self._receive()
        return self

    def run(self, script: str):
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    def point(self, selector: str) -> tuple[float, float]:
        """Where the first such element stands once it is scrolled into view: the mouse is moved there."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{element}.scrollIntoView({{block: 'center'}})")
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        middle = "({x, y, width, height}) => [x + width / 2, y + height / 2]"
        x, y = self.run(f"({middle})({element}.getBoundingClientRect())")
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        return x, y

    def click(self, selector: str) -> None:
        x, y = self.point(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS[key])

    def write(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def screenshot(self, target: Path, whole: bool = False) -> None:
        raw = self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        target.write_bytes(base64.b64decode(raw))
