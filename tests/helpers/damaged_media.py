"""Images that are no whole images: what a hostile or broken upload holds, as many as are asked for, from a seed."""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING

from helpers.media_made import PNG_MAGIC, apng, bmp, gif, jpeg, picture, png, png_bomb, png_chunk

if TYPE_CHECKING:
    from collections.abc import Iterator

_SIDES = (0, 1, 2, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_MAGICS = (PNG_MAGIC, b"\xff\xd8\xff\xe0", b"BM", b"GIF89a", b"RIFF\0\0\0\0WEBP", b"II*\0", b"8BPS", b"P6 9 9 255 ")


def whole_images() -> dict[str, bytes]:
    """Return a small whole image of each format, by its suffix."""
    pixels = picture(32, 24)
    return {"png": png(pixels), "bmp": bmp(pixels), "gif": gif(pixels), "jpg": jpeg(pixels[..., 0])}


def damaged_images(count: int = 2000, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Yield `count` pairs of what was done and the bytes.

    A few may still be whole: flipped bits among the pixels of a BMP harm nobody. The first ones are those of
    `hopeless_images`, which nobody may take.
    """
    made = list(hopeless_images().items())[:count]
    yield from made
    draw, images = random.Random(seed), whole_images()  # noqa: S311 - a test's own draw
    for number in range(count - len(made)):
        kind = draw.choice(list(images))
        what = draw.choice(list(_DAMAGES))
        yield f"{number}: {kind} {what}", _DAMAGES[what](draw, kind, images[kind])


def hopeless_images() -> dict[str, bytes]:
    """Return files that can never be taken as one picture: empty, animated, of another kind, or bombs."""
    pixels = picture(16, 16)
    ends = png_chunk(b"IDAT", b"\x78\x9c\x03\x00\x00\x00\x00\x01") + png_chunk(b"IEND", b"")
    return {
        "empty": b"",
        "one byte": b"\x89",
        "text": b"this is no picture",
        "zeros": bytes(4096),
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg' width='32' height='32'/>",
        "pdf": b"%PDF-1.7\n1 0 obj<<>>endobj\n",
        "elf": b"\x7fELF" + bytes(200),
        "animated gif": gif(pixels, picture(16, 16, seed=1)),
        "animated png": apng(pixels, picture(16, 16, seed=1)),
        "png bomb": png_bomb(),
        **{
            f"png of {columns} x {rows}": PNG_MAGIC
            + png_chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0))
            + ends
            for columns, rows in ((0, 0), (0xFFFF, 0xFFFF), (0x7FFFFFFF, 1), (1, 0xFFFFFFFF), (0x10000, 0x10000))
        },
        **{
            f"bmp of {columns} x {rows}": _with(bmp(pixels), 18, struct.pack("<ii", columns, rows))
            for columns, rows in ((0, 0), (0x7FFFFFFF, 0x7FFFFFFF), (-1, 16), (16, -0x80000000), (60000, -60000))
        },
        "gif of 65535 x 65535": _with(gif(pixels), 6, b"\xff\xff\xff\xff"),
        "jpeg of 65535 x 65535": _with_jpeg_size(jpeg(pixels[..., 0]), 0xFFFF, 0xFFFF),
        "jpeg of no height": _with_jpeg_size(jpeg(pixels[..., 0]), 0, 16),
    }


def _with(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def _png_head(columns: int, rows: int) -> bytes:
    return PNG_MAGIC + png_chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0))


def _with_jpeg_size(data: bytes, rows: int, columns: int) -> bytes:
    return _with(data, data.index(b"\xff\xc0") + 5, struct.pack(">HH", rows & 0xFFFF, columns & 0xFFFF))


def _cut(draw: random.Random, _kind: str, data: bytes) -> bytes:
    return data[: draw.randrange(len(data))]


def _flipped(draw: random.Random, _kind: str, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8, 64))):
        out[draw.randrange(len(out))] ^= 1 << draw.randrange(8)
    return bytes(out)


def _flipped_in_the_header(draw: random.Random, _kind: str, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(draw.choice((1, 2, 4))):
        out[draw.randrange(60)] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
    return bytes(out)


def _resized(draw: random.Random, kind: str, data: bytes) -> bytes:
    columns, rows = draw.choice(_SIDES), draw.choice(_SIDES)
    if kind == "png":
        return _png_head(columns, rows) + data[33:]
    if kind == "bmp":
        return _with(data, 18, struct.pack("<II", columns, rows))
    if kind == "gif":
        return _with(data, 6, struct.pack("<HH", columns & 0xFFFF, rows & 0xFFFF))
    return _with_jpeg_size(data, rows, columns)


def _another_magic(draw: random.Random, _kind: str, data: bytes) -> bytes:
    magics = (
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0",
        b"BM",
        b"GIF89a",
        b"RIFF\0\0\0\0WEBP",
        b"II*\0",
        b"8BPS",
        b"P6 9 9 255 ",
    )
    return _with(data, 0, draw.choice(magics))


def _noise_behind_the_magic(draw: random.Random, _kind: str, data: bytes) -> bytes:
    return data[: draw.choice((2, 8, 16, 33, 54))] + draw.randbytes(draw.randrange(1, 400))


def _grown(draw: random.Random, _kind: str, data: bytes) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + draw.randbytes(draw.choice((1, 2, 4, 64))) + data[at:]


def _shrunk(draw: random.Random, _kind: str, data: bytes) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + data[at + draw.choice((1, 2, 4, 64)) :]


_DAMAGES = {
    "cut": _cut,
    "flipped": _flipped,
    "flipped in the header": _flipped_in_the_header,
    "resized in the header": _resized,
    "under another magic": _another_magic,
    "noise behind the magic": _noise_behind_the_magic,
    "grown": _grown,
    "shrunk": _shrunk,
}
