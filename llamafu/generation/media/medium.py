"""One image or sound of a caller's, read from whatever it was given as, and known by its content."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llamafu.errors import MultimodalError
from llamafu.generation.media.image_header import IMAGE_FORMATS, check_image_size, read_image_header
from llamafu.generation.media.sound_header import SOUND_FORMATS, check_sound, sound_format

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_FILE_BYTES = 1 << 26
_DATA_URL = re.compile(r"data:[^,;]*(?:;[^,;]*)*;base64,", re.IGNORECASE)
_LEGAL = "give a path, bytes, a file object, a PIL image, or a NumPy array of uint8 with the shape (height, width, 3)"
_CHANNELS = 3


@dataclass(frozen=True, slots=True, eq=False)
class Medium:
    """An image or a sound: `content` is a file's, or the pixels of an image, shape [height, width, 3].

    `digest`: the SHA-256 of the content. `plain`: whether libmtmd decodes the file; else Pillow does. `where`: the place that
    it was given at, for messages.
    """

    kind: Literal["image", "audio"]
    content: bytes | NDArray[np.uint8]
    digest: bytes
    plain: bool = True
    where: str = ""


def read_medium(given: object) -> Medium:
    """Read an image or a sound, and check its header. Raises MultimodalError, TypeError for another object, OSError."""
    import numpy as np

    if isinstance(given, np.ndarray):
        return _of_pixels(given)
    if _is_pil(given):
        return _of_pil(given)
    content = _content_of(given)
    if len(content) > MOST_FILE_BYTES:
        message = f"the file has {len(content):,} bytes or more; give one of at most {MOST_FILE_BYTES:,}"
        raise MultimodalError(message)
    digest = hashlib.sha256(content).digest()
    if sound_format(content) is not None:
        check_sound(content)
        return Medium("audio", content, digest)
    header = read_image_header(content)
    if header is None:
        formats = ", ".join((*IMAGE_FORMATS, *SOUND_FORMATS))
        what = "is empty" if not content else f"begins with {reprlib.repr(content[:12])}"
        message = f"the data {what}, which is no image or sound that can be read; give one of {formats}"
        raise MultimodalError(message)
    return Medium("image", content, digest, header.plain)


def content_of_data_url(url: str) -> bytes:
    """Return what a data URL holds; `MultimodalError` for another URL, or data that are not base64."""
    match = _DATA_URL.match(url)
    if match is None:
        message = f"the URL {reprlib.repr(url)} is no data URL; give 'data:image/png;base64,' and the file in base64"
        raise MultimodalError(message)
    return decoded_base64(url[match.end() :])


def decoded_base64(text: str) -> bytes:
    """Return the bytes of a text in base64, which may have white space in it; `MultimodalError`."""
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        message = f"the data are no base64 ({error}); encode the bytes of the file, without anything around them"
        raise MultimodalError(message) from error


def _content_of(given: object) -> bytes:
    """Return the bytes of a file that was given by path, data URL, content or as an object to read from."""
    if isinstance(given, bytes | bytearray | memoryview):
        return bytes(given)
    if isinstance(given, str) and given[:5].lower() == "data:":
        return content_of_data_url(given)
    if isinstance(given, str) and re.match(r"https?://", given, re.IGNORECASE):
        message = f"{reprlib.repr(given)} is on another machine, and nothing is fetched here; give the file, or its bytes"
        raise MultimodalError(message)
    if isinstance(given, str | os.PathLike):
        with Path(os.fspath(given)).open("rb") as file:
            return file.read(MOST_FILE_BYTES + 1)
    if (read := getattr(given, "read", None)) is not None:
        content = read(MOST_FILE_BYTES + 1)
        if isinstance(content, bytes):
            return content
        message = f"a file object gave {type(content).__name__}; open the file in binary mode"
        raise TypeError(message)
    message = f"{reprlib.repr(given)} is {type(given).__name__}; {_LEGAL}"
    raise TypeError(message)


def _of_pixels(given: NDArray[Any]) -> Medium:
    import numpy as np

    if given.dtype != np.uint8 or given.ndim != _CHANNELS or given.shape[2] != _CHANNELS:
        message = f"the array has the type {given.dtype} and the shape {given.shape}; {_LEGAL}"
        raise MultimodalError(message)
    height, width, _ = given.shape
    check_image_size(width, height)
    pixels = np.ascontiguousarray(given).copy()
    return Medium("image", pixels, hashlib.sha256(b"%d %d " % (width, height) + pixels.tobytes()).digest())


def _is_pil(given: object) -> bool:
    return all(hasattr(given, name) for name in ("convert", "getbands", "tobytes", "size"))


def _of_pil(given: Any) -> Medium:
    import numpy as np

    if getattr(given, "n_frames", 1) > 1:
        message = f"the PIL image has {given.n_frames} frames, and a model sees one picture; give a copy of one frame"
        raise MultimodalError(message)
    check_image_size(*given.size)
    try:
        pixels = np.asarray(given.convert("RGB"))
    except Exception as error:  # Pillow decodes late, and raises errors of many classes for damaged files
        message = f"the PIL image cannot be decoded: {error}"
        raise MultimodalError(message) from error
    return _of_pixels(pixels)
