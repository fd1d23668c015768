"""Private copies of adapter files, so that a request keeps its content when the file changes or goes."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import threading
import weakref
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from llamafu.errors import ErrorCode, LoraLoadError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import BinaryIO


_CHUNK_BYTES = 1 << 18  # bytes read in one go


class AdapterCopy:
    """A temporary file with one content; it is removed when this object is collected. Any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._complete = False
        weakref.finalize(self, _remove, path, os.getpid()).atexit = False

    def fill(self, content: Callable[[], Iterable[bytes]]) -> None:
        """Write the chunks that `content` yields, once only; raises what it raises, and LoraLoadError when writing fails."""
        with self._lock:
            if self._complete:
                return
            written = 0
            try:
                with self._path.open("wb") as file:
                    for chunk in content():
                        written += file.write(chunk)
            except BaseException as error:
                self._path.unlink(missing_ok=True)
                if not isinstance(error, OSError):
                    raise
                message = (
                    f"an adapter cannot be copied to {self._path.parent} (after {written} bytes): {error.strerror}; "
                    "make room there, or name another folder in TMPDIR"
                )
                raise LoraLoadError(message) from error
            self._complete = True

    def read(self) -> bytes:
        """Return the content; LoraLoadError when it cannot be read."""
        with self.open() as file:
            return file.read()

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open the content for reading; LoraLoadError when that, or a read in the block, fails."""
        try:
            with self._path.open("rb", buffering=_CHUNK_BYTES) as file:
                yield file
        except OSError as error:
            message = f"the private copy {self._path} of an adapter cannot be read: {error.strerror or error}; ask again"
            raise LoraLoadError(message, code=ErrorCode.FILE_READ_FAILED) from error


class AdapterCopies:
    """A temporary folder with one copy of each content that is referred to. Any thread."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="llamafu-engine-"))
        self._pid = os.getpid()
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._copies: weakref.WeakValueDictionary[str, AdapterCopy] = weakref.WeakValueDictionary()

    def acquire(self, digest: str, content: Callable[[], Iterable[bytes]]) -> AdapterCopy:
        """Return the copy of a content; where there is none yet it is made of the chunks that `content` yields."""
        with self._lock:
            copy = self._copies.get(digest)
            if copy is None:  # numbered: an earlier copy of this content may not be removed yet
                copy = self._copies[digest] = AdapterCopy(self._folder / f"{next(self._numbers)}.gguf")
        copy.fill(content)
        return copy

    def close(self) -> None:
        """Remove the folder. Idempotent; does nothing in a forked child, whose parent still uses it."""
        if os.getpid() == self._pid:
            shutil.rmtree(self._folder, ignore_errors=True)


def _remove(path: Path, pid: int) -> None:
    if os.getpid() == pid:
        path.unlink(missing_ok=True)
