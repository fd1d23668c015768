"""What the header of a sound file says: libmtmd trusts it, and would allocate whatever it claims."""

from __future__ import annotations

import struct

from llamafu.errors import MultimodalError

MOST_SECONDS = 1800
MOST_MP3_BYTES = 1 << 24
"""An MP3 file has no length in its header, and expands to at most some 60 times its size."""
SOUND_FORMATS = ("WAV", "FLAC", "MP3")
_LINEAR = frozenset((1, 3, 6, 7, 0xFFFE))
"""WAV's codes for samples that each have a place of their own: whole numbers, floats, A-law and mu-law."""
_MOST_CHANNELS = 8
_LOWEST_RATE, _HIGHEST_RATE = 1000, 384_000


def sound_format(content: bytes) -> str | None:
    """Return which of `SOUND_FORMATS` a file is; None for another."""
    if content.startswith(b"RIFF") and content[8:12] == b"WAVE":
        return "WAV"
    if content.startswith(b"fLaC"):
        return "FLAC"
    if content.startswith(b"ID3") or (len(content) > 1 and content[0] == 0xFF and content[1] >= 0xE0):  # noqa: PLR2004 - MPEG
        return "MP3"
    return None


def check_sound(content: bytes) -> None:
    """Raise MultimodalError for a sound file whose header is damaged, or that is too long."""
    kind = sound_format(content)
    if kind == "MP3":
        if len(content) > MOST_MP3_BYTES:
            message = f"this MP3 file has {len(content):,} bytes; give at most {MOST_MP3_BYTES:,}, such as a part of it"
            raise MultimodalError(message)
        return
    frames, rate = _wav(content) if kind == "WAV" else _flac(content)
    if not _LOWEST_RATE <= rate <= _HIGHEST_RATE:
        message = f"the sound has {rate} samples a second; give one with {_LOWEST_RATE} to {_HIGHEST_RATE}"
        raise MultimodalError(message)
    if not 0 < frames <= MOST_SECONDS * rate:
        message = f"the sound is {frames / rate:,.0f} seconds long; give one of at most {MOST_SECONDS}, and not an empty one"
        raise MultimodalError(message)


def _wav(content: bytes) -> tuple[int, int]:
    """Return the samples of each channel, and how many of them are a second."""
    place, form = 12, None
    while place + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, place)
        place += 8
        if name == b"fmt " and size >= 16 and place + 16 <= len(content):  # noqa: PLR2004 - the size of the plain form
            form = struct.unpack_from("<HHIIHH", content, place)
        if name == b"data":
            break
        place += size + size % 2
    else:
        message = "this WAV file has no samples: it is cut off or damaged"
        raise MultimodalError(message)
    if form is None:
        message = "this WAV file does not say what its samples are: it is damaged"
        raise MultimodalError(message)
    code, channels, rate, _, frame, bits = form
    if code not in _LINEAR or not 0 < channels <= _MOST_CHANNELS or bits % 8 or frame != channels * bits // 8 or not frame:
        message = (
            f"this WAV file has samples of the form {code}, {channels} channels and {bits} bits; give plain PCM of at most "
            f"{_MOST_CHANNELS} channels, or FLAC"
        )
        raise MultimodalError(message)
    if size > len(content) - place:
        message = f"this WAV file says that it has {size:,} bytes of samples, but {len(content) - place:,} are there"
        raise MultimodalError(message)
    return size // frame, rate


def _flac(content: bytes) -> tuple[int, int]:
    """Return the samples of each channel, and how many of them are a second."""
    if len(content) < 42 or content[4] & 0x7F:  # noqa: PLR2004 - the first block, which has to be STREAMINFO
        message = "this FLAC file is cut off within its header"
        raise MultimodalError(message)
    packed = int.from_bytes(content[18:26], "big")
    return packed & ((1 << 36) - 1), packed >> 44
