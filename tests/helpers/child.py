"""Python snippets in a process of their own, where a crash, a hang or a word on stderr is seen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PRELUDE = """
import gc, os, signal, sys, threading, time, warnings
from pathlib import Path
from llamafu import Llamafu
from llamafu.errors import *

TINY = Path({tiny!r})
GREEDY = {{"temperature": 0, "ignore_eos": True, "max_tokens": 300}}


def opened(model="tiny.gguf", **options):
    return Llamafu(TINY / model, **{{"n_ctx": 512, "n_threads": 1, **options}})


def raises(error, call):
    try:
        call()
    except error as caught:
        return str(caught)
    raise AssertionError(f"{{error.__name__}} was not raised")


def fork():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forks beside threads
        return os.fork()


def join(child, seconds=20):
    # The exit status of a forked child; a negative signal number, -SIGKILL after `seconds`.
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -signal.SIGKILL


def resident():
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
"""


def start(arguments: list[str], *, seconds: float, **variables: str) -> tuple[int, str, str]:
    """Run Python with every warning an error; return status, stdout and stderr, or fail with all stacks when it hangs."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", **variables}
    command = [sys.executable, "-X", "dev", "-W", "error", *arguments]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    ) as process:
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            if sys.platform == "win32":  # no signal reaches another process there
                process.kill()
            else:
                process.send_signal(signal.SIGABRT)  # -X dev prints every thread's stack then
            try:
                out, err = process.communicate(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                out, err = process.communicate()
            pytest.fail(f"still running after {seconds} s\n{out}\n{err}")
    return process.returncode, out, err


def run(tiny_dir: Path, snippet: str, *, seconds: float = 60, **variables: str) -> str:
    """Run `snippet` after `PRELUDE`; it must end with status 0 and leave stderr empty. Returns what it printed.

    `variables` are added to the environment.
    """
    status, out, err = start(["-c", PRELUDE.format(tiny=str(tiny_dir)) + snippet], seconds=seconds, **variables)
    assert (status, err) == (0, ""), f"status {status}\n{out}\n{err}"
    return out
