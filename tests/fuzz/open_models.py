"""Opens damaged model files in turn and says what became of each; ends with status 0 if this process lives through all.

    python open_models.py SOUND FIRST LAST SCRATCH real|forked

"real" lets the library start its child process for every file. "forked" runs the same child's code in forks of a process
that has the library loaded already, some ten times as fast. The last line is JSON: {outcome: how often}.
"""

from __future__ import annotations

import collections
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from helpers.damaged_models import Damage

from llamafu import Llamafu
from llamafu._native import first_open, model_check
from llamafu._native.abi import families
from llamafu.errors import LlamafuError
from llamafu.libraries.discovery import find

_SLOWEST = 30.0
"""Seconds for one file, on a machine that does other things too."""


class Forks:
    """A process that has the library loaded and runs the child's code in a fork of itself for every file."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        to_it, self._ask = os.pipe()
        self._answer, from_it = os.pipe()
        if os.fork() == 0:
            os.close(self._ask)
            self._serve(os.fdopen(to_it, "rb"), os.fdopen(from_it, "wb"))
        os.close(to_it)
        os.close(from_it)
        self._asks, self._answers = os.fdopen(self._ask, "wb"), os.fdopen(self._answer, "rb")

    def run(self, command: list[str]) -> subprocess.CompletedProcess[bytes]:
        """Stand in for `model_check.run_child`."""
        pickle.dump(command, self._asks)
        self._asks.flush()
        code, out, err = pickle.load(self._answers)  # noqa: S301 - our own child's
        if code == -signal.SIGALRM:
            raise subprocess.TimeoutExpired(command, 60)
        return subprocess.CompletedProcess(command, code, out, err)

    def _serve(self, asks: Any, answers: Any) -> None:
        os.environ["GGML_NO_BACKTRACE"] = "1"
        loaded: Any = None
        while True:
            try:
                command = pickle.load(asks)  # noqa: S301 - our own parent's
            except EOFError:
                os._exit(0)
            family, path, plugin, model = command[-5:-1]
            if loaded is None:
                loaded = families.load(family).ffi, families.load(family).ffi.dlopen(path)
                loaded[1].llama_backend_init()
                loaded[1].ggml_backend_load(plugin.encode())
            out, err = self._scratch / "out", self._scratch / "err"
            child = os.fork()
            if child == 0:
                for number, file in ((1, out), (2, err)):
                    os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
                signal.alarm(60)
                first_open.bound_memory(model)
                first_open.try_model(*loaded, model)
                os._exit(0)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            pickle.dump((code, out.read_bytes(), err.read_bytes()), answers)
            answers.flush()


def main(sound: str, first: str, last: str, scratch: str, how: str) -> None:
    """Open the files number `first` to `last` - 1."""
    folder = Path(scratch)
    find(None)  # the proof of the library needs a child of its own
    if how == "forked":
        model_check.run_child = Forks(folder).run
    damage = Damage(Path(sound).read_bytes())
    outcomes: collections.Counter[str] = collections.Counter()
    for number in range(int(first), int(last)):
        path = folder / f"{number}.gguf"
        path.write_bytes(damage.file(number))
        sys.stderr.write(f"{number}\n")
        began = time.monotonic()
        try:
            with Llamafu(path, n_ctx=64, n_threads=1) as llm:
                llm.tokenize("hello, 123 \n\n\t 漢é😀")
                llm.complete("ab the cd", max_tokens=3, temperature=0)
            outcomes["a model"] += 1
        except LlamafuError as error:
            outcomes[type(error).__name__ + (" by the child" if " ended a process " in str(error) else "")] += 1
        if time.monotonic() - began > _SLOWEST:
            message = f"file {number} took {time.monotonic() - began:.1f} s"
            raise TimeoutError(message)
        path.unlink()
    sys.stdout.write(json.dumps(outcomes) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
