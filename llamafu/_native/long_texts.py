"""A child process for texts whose tokenising could overflow a stack of this process, or block it for long."""

from __future__ import annotations

import array
import re
import subprocess
import threading
import time
from typing import TYPE_CHECKING

from llamafu._native.model_check import command, environment
from llamafu._util.system import processes
from llamafu.errors import ClosedError, TokenizeError

if TYPE_CHECKING:
    from typing import IO

    from llamafu._native.library import Library
    from llamafu._native.model_check import CheckedModel

_PATIENCE, _PER_SECOND = 8.0, 1 << 19
"""Seconds for one text, the wait for others included; and bytes a second, for texts that are too long for that."""
_MOST_HERE, _MOST_RUNS_HERE = 1 << 20, 1 << 16
"""The most bytes of a text that is tokenised in this process, where nothing can end it early; and the most of one that has long
runs, whose time grows with the square of their length."""
_BREAK = re.compile(rb"[ \t\n\r\f\v]+")
_RUN = re.compile(rb"[^ \t\n\r\f\v]+")


class LongTexts:
    """A process that opened the model's vocabulary, started when a text needs it. Any thread; one text at a time.

    Many of libllama's pre-tokenizers match with std::regex, which calls itself once or more for every character of a match:
    half a kilobyte of stack each. The process has stack for a million characters, and when it crashes, or takes too long,
    only this text fails.
    """

    def __init__(self, library: Library, checked: CheckedModel) -> None:
        self._library = library
        self._checked = checked
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def must_take(self, text: bytes) -> bool:
        """Tell whether `text` must be tokenised in the child process."""
        longest = self._checked.longest_run
        if len(text) <= min(longest, _MOST_HERE):
            return False
        if not longest or not self._checked.breaks or len(text) > _MOST_RUNS_HERE:
            return True
        # A match spans at most one word and the white space beside it: the longest of each bound its length.
        solid, blank = (max(map(len, pattern.split(text))) for pattern in (_BREAK, _RUN))
        return solid + blank > longest

    def tokenize(self, text: bytes, *, add_special: bool, parse_special: bool) -> list[int]:
        """Return the token ids of `text`; `TokenizeError` when it takes too long or the process crashes."""
        patience = max(_PATIENCE, len(text) / _PER_SECOND)
        deadline = time.monotonic() + patience
        if not self._lock.acquire(timeout=patience):
            message = f"other long texts are being tokenised, and did not end within {patience:.0f} s; try again later"
            raise TokenizeError(message)
        try:
            return self._send(text, flags=add_special + 2 * parse_special, deadline=deadline)
        finally:
            self._lock.release()

    def close(self) -> None:
        """End the process; a text that is being tokenised fails. Idempotent."""
        self._closed = True
        if (process := self._process) is not None:
            process.kill()
        with self._lock:
            self._end()

    def _send(self, text: bytes, *, flags: int, deadline: float) -> list[int]:
        """Send a text to the child process, which is ended when it is late, and return the tokens that come back."""
        if self._closed:
            message = "this model is closed; open a new Llamafu"
            raise ClosedError(message)
        process = self._process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018 - both are pipes
        late = threading.Timer(max(deadline - time.monotonic(), 0.0), process.kill)
        late.daemon = True
        late.start()
        try:
            process.stdin.write(bytes([flags]) + len(text).to_bytes(8, "little") + text)
            process.stdin.flush()
            size = int.from_bytes(_exactly(process.stdout, 8), "little")
            tokens = array.array("i", _exactly(process.stdout, size))
        except (OSError, EOFError):
            ending = self._end()
            raise TokenizeError(self._refusal(text, ending, late=time.monotonic() >= deadline)) from None
        finally:
            late.cancel()
        return tokens.tolist()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603 - our own module, run by our own interpreter
            command(self._library, self._checked.path, "serve"),
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def _end(self) -> str:
        """End the process and return how it ended."""
        process, self._process = self._process, None
        if process is None:
            return ""
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        return processes.ending(process.returncode)

    def _refusal(self, text: bytes, ending: str, *, late: bool) -> str:
        run = max(map(len, _BREAK.split(text)))
        what = f"libllama cannot tokenise this text of {len(text)} bytes with this model"
        how = "it took too long" if late else f"the process that tried it ended ({ending})"
        if not self._checked.longest_run:
            return f"{what}, whose tokenizer dies of some characters: {how}; leave out those that its vocabulary lacks"
        return f"{what}: {how}; its longest word has {run} bytes: put spaces or line ends into it, or give less text"


def _exactly(pipe: IO[bytes], size: int) -> bytes:
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return data
