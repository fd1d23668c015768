"""Media encoded once: the rows of the last ones are kept, as many as fit into a number of bytes."""

from __future__ import annotations

import io
import threading
import time
import warnings
from collections import OrderedDict
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from llamafu._native.media.projector import MediaRows, Projector
from llamafu.errors import MultimodalError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llamafu.generation.media.medium import Medium

    Pieces = tuple[list[int] | MediaRows, ...]
    """What stands for one medium in a prompt: tokens and rows."""

_MOST_BYTES = 1 << 28
"""Of the rows that are kept: 64 pictures of 256 rows of 4096 numbers, for example."""

_LOOK = 0.05
"""Seconds between two looks at whether a request that waits is still wanted."""
GIVEN_UP: ContextVar[Callable[[], bool]] = ContextVar("GIVEN_UP", default=lambda: False)
"""Says whether nobody waits any longer for the request that this thread makes: then no further medium is encoded for it."""


class MediaEncoder:
    """Encodes media with one projector, one at a time, and keeps the rows by the digest of the content. Any thread."""

    def __init__(self, projector: Projector, *, most_bytes: int = _MOST_BYTES) -> None:
        self._projector = projector
        self._most_bytes = most_bytes
        self._kept: OrderedDict[bytes, Pieces] = OrderedDict()
        self._bytes = 0
        self._turn = threading.Lock()
        self._state = threading.Lock()
        self.waiting = 0
        """Media that are being encoded, or wait for it."""
        self.encoded = 0
        self.reused = 0
        self.seconds = 0.0
        """Time that encoding took, in all."""

    def encode(self, medium: Medium) -> Pieces:
        """Return what stands for a medium: kept, or encoded now. `MultimodalError` where that cannot be done."""
        if (found := self._find(medium)) is not None:
            return found
        with self._state:
            self.waiting += 1
        try:
            with self._own_turn():
                if (found := self._find(medium)) is not None:
                    return found
                began = time.perf_counter()
                pieces = tuple(self._encoded(medium))
                with self._state:
                    self.encoded += 1
                    self.seconds += time.perf_counter() - began
                    self._keep(medium.digest, pieces)
                return pieces
        finally:
            with self._state:
                self.waiting -= 1

    @contextmanager
    def _own_turn(self) -> Iterator[None]:
        """Wait for the turn to encode, unless the request is given up meanwhile."""
        given_up = GIVEN_UP.get()
        while not self._turn.acquire(timeout=_LOOK):
            _demand_wanted(given_up)
        try:
            _demand_wanted(given_up)
            yield
        finally:
            self._turn.release()

    def close(self) -> None:
        """Free the projector; waits for what is being encoded. Idempotent."""
        self._projector.close()

    def _find(self, medium: Medium) -> Pieces | None:
        with self._state:
            pieces = self._kept.get(medium.digest)
            if pieces is not None:
                self._kept.move_to_end(medium.digest)
                self.reused += 1
            return pieces

    def _keep(self, digest: bytes, pieces: Pieces) -> None:
        self._kept[digest] = pieces
        self._bytes += _size(pieces)
        while self._bytes > self._most_bytes:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= _size(dropped)

    def _encoded(self, medium: Medium) -> list[list[int] | MediaRows]:
        projector = self._projector
        if medium.kind == "audio":
            if not projector.hears:
                message = f"this is a sound, and the projector {projector.path.name} reads images only"
                raise MultimodalError(message)
            assert isinstance(medium.content, bytes)  # noqa: S101 - sounds are files
            return projector.encode_sound_file(medium.content)
        if not projector.sees:
            message = f"this is an image, and the projector {projector.path.name} reads sounds only"
            raise MultimodalError(message)
        if not isinstance(medium.content, bytes):
            return projector.encode_image(medium.content)
        return projector.encode_image(projector.decoded(medium.content) if medium.plain else _by_pillow(medium.content))


def _demand_wanted(given_up: Callable[[], bool]) -> None:
    if given_up():
        message = "the request was cancelled before its media were encoded"
        raise MultimodalError(message)


def _by_pillow(content: bytes) -> Any:
    """Return the pixels of an image file of a format that libmtmd does not decode."""
    import numpy as np

    try:
        from PIL import Image
    except ImportError as error:
        message = "images of this format are read with Pillow; install it (`pip install 'llamafu[media]'`), or give PNG or JPEG"
        raise MultimodalError(message) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images, whose size is checked already
            return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    except Exception as error:  # Pillow raises errors of many classes for damaged files
        message = f"the image cannot be decoded: {error}"
        raise MultimodalError(message) from error


def _size(pieces: Pieces) -> int:
    return sum(piece.embeddings.nbytes for piece in pieces if isinstance(piece, MediaRows))
