"""The library's log lines, handed to `logging` ("llamafu.native"); the error lines of a call are kept for messages."""

from __future__ import annotations

import atexit
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

logger = logging.getLogger("llamafu.native")
logger.addHandler(logging.NullHandler())  # without a handler, Python prints warnings to stderr

_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.WARNING, 4: logging.ERROR}
_ERROR, _CONTINUED = 4, 5
_MOST_LINES, _LONGEST = 3, 400
"""The most error lines of one call that a message repeats (the cause comes first), and the most characters of each."""


class LogBridge:
    """Receives every log line of one library; any thread.

    The library's own "info" is debugging detail to a Python user, so it arrives one level lower.
    """

    def __init__(self, ffi: Any, lib: Any) -> None:
        self._ffi = ffi
        self._lib = lib
        self._partial = ""
        self._level = logging.DEBUG
        self._errors: dict[str, None] = {}  # as a set that keeps the order
        self._quiet = False
        self._interrupt: BaseException | None = None
        # Kept on self: a collected callback would leave the library with a dangling pointer.
        self._callback = ffi.callback("void(enum ggml_log_level, const char *, void *)", self._receive, onerror=self._swallow)
        self._served: list[Callable[[Any], None]] = []
        lib.llama_log_set(self._callback, ffi.NULL)
        atexit.register(self.detach)

    def serve(self, register: Callable[[Any], None]) -> None:
        """Receive the lines of a further library too: `register` gives it a callback, now and once more at the end."""
        self._served.append(register)
        register(self._callback)

    def take_errors(self) -> list[str]:
        """Return the distinct error lines since the last call that was checked, three at most, and forget them."""
        errors, self._errors = self._errors, {}
        return list(errors)

    def forget_errors(self) -> None:
        """Forget the error lines of a call that succeeded, lest the next failure repeat them."""
        if self._errors:
            self._errors = {}

    def raise_interrupt(self) -> None:
        """Raise the Ctrl-C that came during the native call before, while a log line was handled."""
        interrupt, self._interrupt = self._interrupt, None
        if interrupt is not None:
            raise interrupt

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Log everything as debugging detail, for a failure that is meant to happen."""
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False
            self.forget_errors()

    def detach(self) -> None:
        """Point the library at a harmless C function: at exit no Python may run inside a destructor."""
        # One that only returns a constant, so that it may be called in any state of the library.
        pointer = self._ffi.cast("void *", self._lib.llama_max_parallel_sequences)
        self._lib.llama_log_set(self._ffi.cast("ggml_log_callback", pointer), self._ffi.NULL)
        for register in self._served:
            register(pointer)

    def _receive(self, level: int, text: Any, _user_data: Any) -> None:
        """Collect the parts of a line, and log it once it is whole."""
        if level != _CONTINUED:
            self._level = level
        self._partial += self._ffi.string(text).decode("utf-8", "replace")
        if not self._partial.endswith("\n"):
            return
        line, self._partial = self._partial.strip(), ""
        if not line:
            return
        if self._level >= _ERROR and len(self._errors) < _MOST_LINES:
            self._errors[line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."] = None
        level = logging.DEBUG if self._quiet else _LEVELS.get(self._level, logging.DEBUG)
        logger.log(level, "%s", line)

    def _swallow(self, _kind: type[BaseException], error: BaseException, _trace: object) -> None:
        """Keep an exception from crossing into C: the log line is lost, but a Ctrl-C is kept for `raise_interrupt`."""
        if not isinstance(error, Exception):
            self._interrupt = error
