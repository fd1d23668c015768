"""`llamafu serve` as a process of its own, over a real model."""

import os
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager

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
        try:
            yield Served(process)
        finally:
            process.kill()
