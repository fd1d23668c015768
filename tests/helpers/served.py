"""`llamafu serve` as a process of its own, over a real model."""

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager

import httpx

API, ADMIN = "my-api-key", "my-admin-key"


class Served:
    """A running server: `process`, its `url`, and what it wrote: `said`, lines of standard output, and `log`, of the other."""

    def __init__(self, process):
        self.process = process
        self.said, self.log = [], []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = None
        for line in process.stdout:
            self.said.append(line.rstrip())
            if line.startswith("listening on "):
                self.url = line.split()[-1]
                return
        self.read_to_the_end()

    def read_to_the_end(self):
        """Wait until all that the process wrote is read: its pipes are closed next."""
        self._reader.join(10)

    def _read(self):
        self.log.extend(line.rstrip() for line in self.process.stderr)


@contextmanager
def served(model, *flags, keys=True):
    """Run the command on a free port, and end it; `url` is None when it did not get as far as listening."""
    command = [sys.executable, "-m", "llamafu", "serve", "-m", str(model), "--port", "0", "--threads", "1", *map(str, flags)]
    if keys:
        command += ["--api-key", API, "--admin-key", ADMIN]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LLAMAFU_SERVE_")}
    with (
        tempfile.TemporaryDirectory() as data,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            env={"LLAMAFU_DATA": data, **environment},  # nothing is written to the user's own folder
        ) as process,
    ):
        running = None
        try:
            running = Served(process)
            yield running
        finally:
            process.kill()
            if running is not None:
                running.read_to_the_end()


def running(url):
    """How many sequences the engine behind a server runs, by its own metrics."""
    text = httpx.get(f"{url}/metrics", headers={"X-Api-Key": API}).text
    return float(re.search(r"^llamafu_engine_running (\S+)$", text, re.MULTILINE)[1])


def wait_for(condition, seconds=10):
    """Whether a condition comes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False
