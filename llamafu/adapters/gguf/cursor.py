"""A position in the bytes of a GGUF file, and the fields that can be read from there."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import mmap

_U64 = struct.Struct("<Q")


class BrokenOffError(Exception):
    """A defect after which the next field cannot be found."""


class Cursor:
    """Reads fields one after another, none beyond the end of the data; that raises BrokenOffError.

    `problems` collects the defects that allow going on.
    """

    def __init__(self, data: bytes | memoryview | mmap.mmap) -> None:
        self.data = data
        self.size = len(data)
        self.position = 0
        self.problems: list[str] = []

    @property
    def left(self) -> int:
        """The number of bytes between here and the end."""
        return self.size - self.position

    def take(self, layout: struct.Struct, what: str) -> tuple[Any, ...]:
        """Read fields laid out as struct says; `what` names them in messages."""
        start, end = self.position, self.position + layout.size
        if end > self.size:
            message = f"the file ends at byte {self.size}, inside {what}: it is truncated"
            raise BrokenOffError(message)
        self.position = end
        return layout.unpack_from(self.data, start)

    def take_bytes(self, count: int, what: str) -> bytes:
        """Read `count` bytes; `what` names what claims to have them."""
        if count > self.left:
            message = (
                f"{what} claims {count} bytes at byte {self.position}, but only {self.left} are left: truncated or damaged"
            )
            raise BrokenOffError(message)
        start, self.position = self.position, self.position + count
        return bytes(self.data[start : self.position])

    def take_string(self, what: str, index: int | None = None) -> str:
        """Read a string after its length; `what` and `index` name it in messages, and are joined only when one is needed."""
        label = what if index is None else f"{what} {index}"
        raw = self.take_bytes(self.take(_U64, label)[0], label)
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            self.problems.append(f"{label} is not valid UTF-8: {error.reason} at its byte {error.start}")
            return raw.decode(errors="replace")

    def take_name(self, what: str, index: int) -> str:
        """Read a key or tensor name. C compares them up to the first NUL: with one, a key could shadow another."""
        name = self.take_string(what, index)
        if "\0" in name:
            self.problems.append(f"{what} {index} ({name!r}) contains a NUL character")
        return name

    def skip_strings(self, count: int, what: str) -> None:
        """Step over `count` strings without making them: a vocabulary has hundreds of thousands."""
        data, position, last, unpack = self.data, self.position, self.size - _U64.size, _U64.unpack_from
        for _ in range(count):
            if position > last:
                position = self.size + 1
                break
            position += _U64.size + unpack(data, position)[0]
        if position > self.size:
            message = f"{what} of {count} strings goes on behind the end of the file: it is truncated"
            raise BrokenOffError(message)
        self.position = position
