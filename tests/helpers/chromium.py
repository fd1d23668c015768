"""Headless Chromium, driven over its debugging pipe: what a test of a page needs, and no more."""

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

FOUND = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
KEYS = {
    "Enter": 13,
    "Tab": 9,
    "Escape": 27,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
    "Home": 36,
    "End": 35,
}
CONTROL = 2
QUIET = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
PATIENCE = 60
"""Seconds that the browser may say nothing while it owes an answer: a stalled one fails a test, and names the command.

They are counted, not read off a clock, as in `wait`: a machine that stops all its processes for a while fails no test.
"""
POLL = 0.03
# The browser reads from 3 and writes to 4. Python's own preexec_fn would do it between fork and exec, where a process with
# threads, which this one has, may stop for ever.
LAUNCH = """import os, sys
copies = os.dup(int(sys.argv[1])), os.dup(int(sys.argv[2]))
for copy, number in zip(copies, (3, 4)):
    os.dup2(copy, number)
    os.set_inheritable(number, True)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Page:
    """One page. `errors`: what it threw, logged as an error or was refused; `asked`: every address that it loaded or called."""

    def __init__(self, send, receive):
        self._send, self._receive = send, receive
        self._number, self._rest = 0, b""
        self.errors, self.asked, self.bodies = [], [], []
        self._session = None
        self._target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=self._target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def _call(self, method, **parameters):
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            told = json.loads(self._next(method))
            if told.get("id") == self._number:
                assert "error" not in told, told
                return told["result"]
            if told.get("sessionId") == self._session:
                self._note(told.get("method"), told.get("params", {}))

    def _note(self, method, told):
        if method == "Network.requestWillBeSent":
            self.asked.append(told["request"]["url"])
            if "postData" in told["request"]:
                self.bodies.append((told["request"]["url"], told["request"]["postData"]))
        failed = method == "Log.entryAdded" and told["entry"]["level"] in {"error", "warning"}
        failed = failed or (method == "Runtime.consoleAPICalled" and told["type"] in {"error", "warning", "assert"})
        if failed or method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(told))

    def _next(self, method):
        while b"\0" not in self._rest:
            ready = any(select.select([self._receive], [], [], 1)[0] for _ in range(PATIENCE))
            assert ready, f"Chromium has not answered {method} in {PATIENCE} s"
            piece = os.read(self._receive, 1 << 20)
            assert piece, "Chromium ended"
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        return message

    def close(self):
        """Close the page; the browser goes on."""
        self._session = None
        self._call("Target.closeTarget", targetId=self._target)

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
        for _ in range(round(seconds / POLL)):
            if self.run(f"Boolean({expression})"):
                return
            time.sleep(POLL)
        raise AssertionError(expression)

    def text(self, selector):
        """Return the text of the first element that fits, as it is read on the screen."""
        return self.run(f"document.querySelector({selector!r}).innerText")

    def texts(self, selector):
        """Return the texts of all elements that fit."""
        return self.run(f"[...document.querySelectorAll({selector!r})].map(each => each.textContent)")

    def focus(self, selector):
        """Give an element the focus."""
        self.run(f"document.querySelector({selector!r}).focus()")

    def key(self, name, modifiers=0):
        """Press a key."""
        text = "\r" if name == "Enter" else ""
        keys = {"key": name, "code": name, "windowsVirtualKeyCode": KEYS[name], "text": text, "modifiers": modifiers}
        self._call("Input.dispatchKeyEvent", type="keyDown", **keys)
        self._call("Input.dispatchKeyEvent", type="keyUp", **keys)

    def type(self, text):
        """Type into what has the focus."""
        self._call("Input.insertText", text=text)

    def place(self, selector, across=0.5, down=0.5):
        """Return a point inside an element, after scrolling to it."""
        left, top, width, height = self.run(
            f"(box => [box.left, box.top, box.width, box.height])((node => (node.scrollIntoView({{block: 'center'}}), "
            f"node.getBoundingClientRect()))(document.querySelector({selector!r})))"
        )
        return {"x": left + width * across, "y": top + height * down}

    def click(self, selector, across=0.5, down=0.5):
        """Press and release the mouse inside an element."""
        point = self.place(selector, across, down)
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **point)

    def drop(self, *files, steps=("dragEnter", "dragOver", "drop")):
        """Drag files from the file manager over the page, and drop them."""
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        for step in steps:
            self._call("Input.dispatchDragEvent", type=step, x=200, y=200, data=data)

    def slow_down(self, up):
        """Let uploads have `up` bytes a second; -1 for no limit."""
        self._call("Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1, uploadThroughput=up)

    def picture(self, path):
        """Write a PNG of what is seen."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot")["data"]))


@contextmanager
def chromium(profile):
    """Start the browser with a profile of its own, and give what makes a page: one at a time."""
    to_browser, send = os.pipe()
    receive, from_browser = os.pipe()

    flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--lang=en-GB")
    flags += ("--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update", "--no-first-run")
    flags += ("--disable-sync", "--disable-quic", "--disable-background-timer-throttling", "--disable-renderer-backgrounding")
    flags += ("--remote-debugging-pipe", f"--user-data-dir={profile}")
    ends = (to_browser, from_browser)
    command = [sys.executable, "-S", "-c", LAUNCH, *map(str, ends), FOUND, *flags]
    with subprocess.Popen(command, pass_fds=ends, start_new_session=True, **QUIET) as process:
        os.close(to_browser)
        os.close(from_browser)
        try:
            yield lambda: Page(send, receive)
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # its children too, which would hold what they inherited
            os.close(send)
            os.close(receive)
