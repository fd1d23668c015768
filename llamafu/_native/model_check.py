"""Opening a model file for the first time, in a child process: what would end this process ends that one.

libllama asserts and throws through C on some damaged files, and some vocabularies let a text end the process later. The
child opens the file without its weights, makes a context, and tokenises texts that are known to be hard. The result is cached
by the file's path, size, time and inode.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llamafu._util import paths
from llamafu._util.system import processes
from llamafu._version import __version__
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
_MOST_KEPT = 2000
"""Results in the cache; beyond that the older half is removed."""
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
    kept = paths.cache_dir() / "opened" / f"{_key(library, path)}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # absent or damaged: the child opens the model again
        known = json.loads(kept.read_text(encoding="utf-8"))
        return CheckedModel(path, int(known["longest_run"]), bool(known["breaks"]))
    checked = _open_in_child(library, path)
    unfinished = kept.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):  # a cache folder that cannot be written costs time, not the answer
        kept.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps({"longest_run": checked.longest_run, "breaks": checked.breaks}), encoding="utf-8")
        unfinished.replace(kept)
        _forget_oldest(kept.parent)
    return checked


def _forget_oldest(folder: Path) -> None:
    """Remove the oldest results once there are many: each change of a file leaves one behind that nobody asks for again."""
    results = [entry for entry in os.scandir(folder) if entry.is_file()]
    if len(results) <= _MOST_KEPT:
        return
    results.sort(key=lambda entry: entry.stat().st_mtime)
    for entry in results[: len(results) - _MOST_KEPT // 2]:
        with contextlib.suppress(FileNotFoundError):  # another process removed it
            Path(entry).unlink()


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


def _key(library: Library, path: Path) -> str:
    """Return a hash of everything that the result depends on."""
    text = [__version__, library.family]
    for file in (_PROGRAM, library.path, path, *_other_parts(path)):
        with contextlib.suppress(OSError):
            status = file.stat()
            text.append(f"{file.resolve()} {status.st_size} {status.st_mtime_ns} {status.st_ino}")
    return hashlib.sha256("\n".join(text).encode("utf-8", "surrogateescape")).hexdigest()


def _other_parts(path: Path) -> list[Path]:
    """Return the files beside `path` that may be parts of the same model."""
    match = re.fullmatch(r"(.+)-\d{5}(-of-\d{5}\.gguf)", path.name)
    return [] if match is None else sorted(path.parent.glob(f"{glob.escape(match[1])}-*{match[2]}"))


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
