"""Headless Chromium, driven over its debugging pipe: what a test of a page needs, and no more."""

import base64
import json
import os
import shutil
import subprocess
import time
from contextlib import contextmanager

FOUND = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page:
    """One page."""

    def __init__(self, send, receive):
        self._send, self._receive = send, receive
        self._number = 0
        self.errors = []
        """What the page threw or refused to run."""
        self._session = None
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def _call(self, method, **parameters):
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            told = json.loads(self._next())
            if told.get("id") == self._number:
                assert "error" not in told, told
                return told["result"]
            if told.get("method") in {"Runtime.exceptionThrown", "Log.entryAdded"}:
                self.errors.append(json.dumps(told["params"]))

    def _next(self):
        data = b""
        while not data.endswith(b"\0"):
            piece = os.read(self._receive, 1)
            assert piece, "Chromium ended"
            data += piece
        return data[:-1]

    def look(self, width, height, scheme):
        """Set the size in pixels and the colour scheme."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def open(self, url):
        """Go there."""
        self._call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def run(self, expression):
        """Return what an expression is in the page."""
        told = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def wait(self, expression, seconds=30):
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(expression):
            assert time.monotonic() < end, expression
            time.sleep(0.05)

    def key(self, name, code=0, text=""):
        """Press a key."""
        keys = {"key": name, "windowsVirtualKeyCode": code, "text": text}
        self._call("Input.dispatchKeyEvent", type="keyDown", **keys)
        self._call("Input.dispatchKeyEvent", type="keyUp", **keys)

    def type(self, text):
        """Type into what has the focus."""
        self._call("Input.insertText", text=text)

    def picture(self, path):
        """Write a PNG of what is seen."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot")["data"]))


@contextmanager
def chromium(profile):
    """Start the browser with a profile of its own, and give a page."""
    to_browser, send = os.pipe()
    receive, from_browser = os.pipe()

    def arrange():  # the browser reads from 3 and writes to 4
        copies = os.dup(to_browser), os.dup(from_browser)
        for copy, number in zip(copies, (3, 4), strict=True):
            os.dup2(copy, number)

    flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={profile}")
    with subprocess.Popen([FOUND, *flags], preexec_fn=arrange, close_fds=False, stderr=subprocess.DEVNULL) as process:  # noqa: PLW1509
        os.close(to_browser)
        os.close(from_browser)
        try:
            yield Page(send, receive)
        finally:
            process.kill()
            os.close(send)
            os.close(receive)
