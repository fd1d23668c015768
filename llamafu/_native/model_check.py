"""Opening a model file for the first time, in a child process: what would end this process ends that one.

libllama asserts and throws through C on some damaged files, and some vocabularies let a text end the process later. The
child opens the file without its weights, makes a context, and tokenises texts that are known to be hard. The result is cached
by the file's path, size, time and inode.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llamafu._util.kept_results import KeptResult, file_states
from llamafu._util.shard_names import shard_names
from llamafu._util.system import processes
from llamafu.errors import ModelLoadError

if TYPE_CHECKING:
    from llamafu._native.library import Library

_PROGRAM = Path(__file__).with_name("first_open.py")
_TIMEOUT = 30.0
_STAGES = (
    ("opened", "opening it"),
    ("computes", "computing with it"),
    ("tokenizes", "tokenising an empty text with it"),
)
_MOST_LINES = 3
_NO_LIMIT, _SHORT_RUN = 1 << 62, 4096
"""In bytes. A short run is one for whose recursion any thread's stack is large enough: some 600 bytes of it for each byte."""


@dataclass(frozen=True, slots=True)
class CheckedModel:
    """A model file that may be opened in this process."""

    path: Path
    longest_run: int
    """The longest run in bytes that may be tokenised in this process; texts with longer ones go to a child process."""
    breaks: bool
    """Whether white space ends a run: the patterns of some pre-tokenizers match across it."""


def check_model(library: Library, path: Path) -> CheckedModel:
    """Return what is known of the model at `path`, from the cache or from a child process (about 0.1 s and its vocabulary).

    Raises `ModelLoadError`, with libllama's last words, where opening it kills the child.
    """
    parts = sorted({path, *(path.with_name(name) for name in shard_names(path.name))})
    kept = KeptResult.of("opened", [library.family, *file_states([_PROGRAM, library.path, *parts])])
    match kept.read():
        case {"longest_run": int(longest), "breaks": bool(breaks)}:
            return CheckedModel(path, longest, breaks)
    checked = _open_in_child(library, path)
    kept.write({"longest_run": checked.longest_run, "breaks": checked.breaks})
    return checked


def command(library: Library, path: Path, task: str) -> list[str]:
    """Return the command line of `first_open.py` for a model."""
    import _cffi_backend

    here = Path(__file__).resolve().parent
    folder = here.parents[1] if library.family.startswith("header:") else here / "abi"
    site = Path(_cffi_backend.__file__).parent
    plugin = "" if library.plugin is None else str(library.plugin)
    return [
        *(sys.executable, "-I", "-S", str(_PROGRAM), str(site), str(folder), library.family),
        *(str(library.path), plugin, str(path), task),
    ]


def run_child(run: list[str]) -> subprocess.CompletedProcess[bytes]:
    """Run such a command line to its end; `subprocess.TimeoutExpired` when it takes too long."""
    return subprocess.run(  # noqa: S603 - our own module, run by our own interpreter
        run, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT, check=False
    )


def environment() -> dict[str, str]:
    """Return the child's environment: an abort in it needs no debugger's backtrace, which takes seconds."""
    return {**os.environ, "GGML_NO_BACKTRACE": "1"}


def _open_in_child(library: Library, path: Path) -> CheckedModel:
    """Let the child process open the model, and return what its last stage says of it."""
    try:
        done = run_child(command(library, path, "try"))
    except subprocess.TimeoutExpired:
        message = f"{path}: libllama did not open it within {_TIMEOUT:.0f} s in a process of its own; the file may be damaged"
        raise ModelLoadError(message) from None
    stages = done.stdout.split()
    if b"refused" in stages or b"flat" in stages:
        return CheckedModel(path, _NO_LIMIT, breaks=True)
    if (missing := next((doing for stage, doing in _STAGES if stage.encode() not in stages), None)) is not None:
        words = last_words(done.stderr)
        message = f"cannot load the model {path}: {missing} ended a process ({processes.ending(done.returncode)})"
        mend = "the file is damaged or made for another libllama: fetch or convert it again"
        raise ModelLoadError(f"{message}; {mend}; libllama says: {words}" if words else f"{message}; {mend}")
    return CheckedModel(path, _SHORT_RUN if b"spells" in stages else 0, breaks=b"words" in stages)


def last_words(stderr: bytes) -> str:
    """Return what a process that libllama ended said of the cause: at most three lines, each once."""
    lines = [line.strip() for line in stderr.decode("utf-8", "replace").splitlines()]
    told = dict.fromkeys(line[:400] for line in lines if line)
    return "; ".join(list(told)[-_MOST_LINES:])
