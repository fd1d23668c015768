"""A server process for benchmarks: started, asked what it uses, stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from _http import KEY

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_STOP = 60.0


@dataclass
class Server:
    """A running `llamafu serve`; what it uses is read from /proc (Linux)."""

    process: subprocess.Popen[str]
    port: int
    notes: Path

    @property
    def cpu(self) -> dict[str, float]:
        """Seconds of CPU so far, by thread."""
        return {task.name: _cpu(task / "stat") for task in Path(f"/proc/{self.process.pid}/task").iterdir()}

    @property
    def descriptors(self) -> int:
        """Open file descriptors."""
        return sum(1 for _ in Path(f"/proc/{self.process.pid}/fd").iterdir())

    @property
    def memory(self) -> float:
        """Resident memory in MB."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text("utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    def stop(self) -> dict[str, float]:
        """Send SIGTERM, and return when the engine made the first token of each request, by its seed."""
        self.process.send_signal(signal.SIGTERM)
        if status := self.process.wait(_STOP):
            message = f"the server ended with status {status}"
            raise RuntimeError(message)
        first: dict[str, float] = json.loads(self.notes.read_text("utf-8"))
        return first


@contextmanager
def serving(model: Path, adapters: Sequence[Path], *flags: str) -> Iterator[Server]:
    """Run a server over copies of these adapters."""
    with tempfile.TemporaryDirectory() as folder:
        held = Path(folder) / "adapters"
        held.mkdir()
        for adapter in adapters:
            shutil.copy(adapter, held)
        notes = Path(folder) / "notes.json"
        command = [sys.executable, str(Path(__file__).with_name("_timed_serve.py")), str(notes)]
        command += ["-m", str(model), "--adapters", str(held), "--port", "0", "--admin-key", KEY, *flags]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            try:
                url = next((line for line in process.stdout or () if line.startswith("listening")), "")
                if not url:
                    message = f"the server did not start: {' '.join(command)}"
                    raise RuntimeError(message)
                yield Server(process, int(url.rpartition(":")[2]), notes)
            finally:
                process.kill()


def cpu_of_all() -> float:
    """Return the seconds of CPU that everything on the machine has used."""
    user, nice, system, _, _, irq, soft, *_ = map(int, Path("/proc/stat").read_text("utf-8").split("\n", 1)[0].split()[1:])
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


def _cpu(stat: Path) -> float:
    try:
        fields = stat.read_text("utf-8").rpartition(")")[2].split()
    except OSError:  # it has just ended
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
