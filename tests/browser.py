"""A headless Chromium, spoken to through a pair of pipes by the protocol of its own developer tools."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-extensions --remote-debugging-pipe"
).split()


class Browser:
    """A page of a browser of its own, with what it asked the network for and what went wrong in it."""

    def __init__(self, profile: Path, patience: float = 60.0):
        self.patience, self.number, self.rest = patience, 0, b""
        self.events: list[dict[str, Any]] = []
        there, self.write = os.pipe()
        self.read, back = os.pipe()
        # the browser reads from its descriptor 3 and writes to 4
        call = 'exec "$@" 3<&"$THERE" 4>&"$BACK"'
        self.process = subprocess.Popen(
            ["bash", "-c", call, "-", str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(there, back),
            env=os.environ | {"THERE": str(there), "BACK": str(back)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(there)
        os.close(back)
        target = next(it for it in self.ask("Target.getTargets", at="")["targetInfos"] if it["type"] == "page")
        told = self.ask("Target.attachToTarget", at="", targetId=target["targetId"], flatten=True)
        self.session = told["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")
        self.ask("Emulation.setFocusEmulationEnabled", enabled=True)  # the clipboard is for the page in front

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.write)
        os.close(self.read)

    def ask(self, method: str, at: str | None = None, **values: Any) -> dict[str, Any]:
        """What the browser answers to a command."""
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": values}
        session = self.session if at is None else at
        os.write(self.write, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        end = time.monotonic() + self.patience
        while time.monotonic() < end:
            for found in self._messages(end):
                if found.get("id") == self.number:
                    assert "error" not in found, found
                    return found["result"]
                self.events.append(found)
        raise TimeoutError(method)

    def _messages(self, end: float) -> list[dict[str, Any]]:
        ready, _, _ = select.select([self.read], [], [], max(0.0, end - time.monotonic()))
        if ready:
            data = os.read(self.read, 2**20)
            assert data, "the browser has ended"
            *whole, self.rest = (self.rest + data).split(b"\0")
            return [json.loads(it) for it in whole]
        return []

    def open(self, path: Path, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Open a file in a window of a size, in light or dark colours, and wait until it is loaded."""
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.ask("Page.navigate", url=path.resolve().as_uri())
        self.run("new Promise(done => document.readyState === 'complete' ? done() : addEventListener('load', done))")

    def run(self, code: str) -> Any:
        """The value of an expression in the page, awaited; as if the reader had touched the page."""
        told = self.ask("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True, userGesture=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def press(self, key: str) -> None:
        """Press a key, such as "ArrowRight"."""
        for kind in ("rawKeyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def hover(self, x: float, y: float) -> None:
        """Move the mouse to a place of the window."""
        self.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def screenshot(self, path: Path, whole: bool = True) -> None:
        """Write a picture of the page."""
        told = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(told["data"]))

    def requested(self) -> list[str]:
        """The addresses that were asked for since the browser began."""
        asked = [it["params"] for it in self.events if it["method"] == "Network.requestWillBeSent"]
        return [it["request"]["url"] for it in asked]

    def complaints(self) -> list[str]:
        """What the console of the page says, and what was thrown."""
        told = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [json.dumps(it["params"]) for it in self.events if it["method"] in told]
