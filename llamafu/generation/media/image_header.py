"""The size of an image by the first bytes of its file, before anything is decoded; what must not be decoded is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llamafu.errors import MultimodalError

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_PIXELS = 1 << 25
"""As many as 8192 x 4096."""
MOST_SIDE = 1 << 15
MOST_RATIO = 200
"""Of the longer side to the shorter: projectors divide an image into squares along it."""
_PNG = b"\x89PNG\r\n\x1a\n"
_ANIMATED = "is animated, and a model sees one picture; give a frame of it, as an image of its own"
_SIZELESS = frozenset((0xC4, 0xC8, 0xCC))
"""JPEG markers in the range of those that begin a frame, which begin none."""


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What the header of an image file says; `plain`: whether libmtmd itself decodes this format."""

    format: str
    width: int
    height: int
    plain: bool


def read_image_header(content: bytes) -> ImageHeader | None:
    """Return the format and size of an image file; None for what is no image of a known format.

    Raises MultimodalError for one that is animated, too large, too long, or cut off within its header.
    """
    for format_name, matches, size_of, plain in _FORMATS:
        if matches(content):
            try:
                width, height = size_of(content)
            except IndexError:
                message = f"this {format_name} file is cut off within its header"
                raise MultimodalError(message) from None
            check_image_size(width, height)
            return ImageHeader(format_name, width, height, plain)
    return None


def check_image_size(width: int, height: int) -> None:
    """Raise MultimodalError for an image that is empty, too large or too long."""
    size = f"the image is {width} x {height} pixels"
    if width < 1 or height < 1:
        message = f"{size}; give one that is not empty"
    elif width * height > MOST_PIXELS or max(width, height) > MOST_SIDE:
        message = f"{size}; give at most {MOST_PIXELS:,}, and {MOST_SIDE:,} on a side, such as a smaller copy"
    elif max(width, height) > MOST_RATIO * min(width, height):
        message = f"{size}; give one whose longer side is at most {MOST_RATIO} times the shorter, such as a part of it"
    else:
        return
    raise MultimodalError(message)


def _number(content: bytes, start: int, width: int, *, big: bool = False) -> int:
    """Return the unsigned number at `start`; IndexError past the end."""
    raw = content[start : start + width]
    if len(raw) < width:
        raise IndexError
    return int.from_bytes(raw, "big" if big else "little")


def _png(content: bytes) -> tuple[int, int]:
    start = len(_PNG)
    if content[start + 4 : start + 8] != b"IHDR":
        raise IndexError
    size = _number(content, start + 8, 4, big=True), _number(content, start + 12, 4, big=True)
    while start + 8 <= len(content) and (kind := content[start + 4 : start + 8]) not in {b"IDAT", b"IEND"}:
        if kind == b"acTL":
            message = f"this PNG file {_ANIMATED}"
            raise MultimodalError(message)
        start += 12 + _number(content, start, 4, big=True)
    return size


def _jpeg(content: bytes) -> tuple[int, int]:
    start = 2
    while True:
        marker = _number(content, start, 2, big=True)
        if marker >> 8 != 0xFF:  # noqa: PLR2004 - every marker begins so
            raise IndexError
        kind = marker & 0xFF
        if kind == 0xFF:  # noqa: PLR2004 - padding
            start += 1
        elif 0xC0 <= kind <= 0xCF and kind not in _SIZELESS:  # noqa: PLR2004 - the frames of JPEG's standard
            return _number(content, start + 7, 2, big=True), _number(content, start + 5, 2, big=True)
        else:
            start += 2 + max(_number(content, start + 2, 2, big=True), 2)


def _bmp(content: bytes) -> tuple[int, int]:
    if _number(content, 14, 4) == 12:  # noqa: PLR2004 - the oldest header, with sides of 16 bits
        return _number(content, 18, 2), _number(content, 20, 2)
    height = _number(content, 22, 4)
    return _number(content, 18, 4), height if height < 1 << 31 else (1 << 32) - height


def _gif(content: bytes) -> tuple[int, int]:
    size = _number(content, 6, 2), _number(content, 8, 2)
    start, images = 13 + _colours(_number(content, 10, 1)), 0
    while start < len(content) and content[start] in b"\x21\x2c":
        if content[start] == 0x2C:  # noqa: PLR2004 - an image
            images += 1
            start += 11 + _colours(_number(content, start + 9, 1))
        else:
            start += 2
        while start < len(content) and content[start]:
            start += 1 + content[start]
        start += 1
    if images > 1:
        message = f"this GIF file {_ANIMATED}"
        raise MultimodalError(message)
    return size


def _colours(flags: int) -> int:
    """Return the bytes of a GIF's table of colours."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _webp(content: bytes) -> tuple[int, int]:
    kind = content[12:16]
    if kind == b"VP8X":
        if _number(content, 20, 1) & 2:
            message = f"this WebP file {_ANIMATED}"
            raise MultimodalError(message)
        return _number(content, 24, 3) + 1, _number(content, 27, 3) + 1
    if kind == b"VP8L":
        bits = _number(content, 21, 4)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return _number(content, 26, 2) & 0x3FFF, _number(content, 28, 2) & 0x3FFF


_FORMATS: tuple[tuple[str, Callable[[bytes], bool], Callable[[bytes], tuple[int, int]], bool], ...] = (
    ("PNG", lambda content: content.startswith(_PNG), _png, True),
    ("JPEG", lambda content: content.startswith(b"\xff\xd8\xff"), _jpeg, True),
    ("BMP", lambda content: content.startswith(b"BM"), _bmp, True),
    ("GIF", lambda content: content[:6] in {b"GIF87a", b"GIF89a"}, _gif, False),
    ("WebP", lambda content: content.startswith(b"RIFF") and content[8:12] == b"WEBP", _webp, False),
)
IMAGE_FORMATS = tuple(name for name, *_ in _FORMATS)
