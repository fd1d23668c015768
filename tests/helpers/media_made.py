"""Pictures and sounds made by the tests, and the bytes of their files, without Pillow."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
RATE = 16000


def picture(rows=32, columns=32, seed=0):
    """Make a picture [rows, columns, 3] uint8: slow changes of colour under noise, so that resizing shows both."""
    noise = np.random.Generator(np.random.PCG64(seed)).integers(0, 256, (rows, columns, 3))
    down, right = np.mgrid[0:rows, 0:columns]
    slow = np.stack([255 * right / columns, 255 * down / rows, 255 * (right + down) / (rows + columns)], axis=-1)
    return (0.4 * noise + 0.6 * np.roll(slow, seed % 3, axis=-1)).astype(np.uint8)


def tone(seconds=0.5, hertz=440.0, rate=RATE):
    """Make a sine, float32 within -0.5 to 0.5."""
    return (0.5 * np.sin(2 * np.pi * hertz / rate * np.arange(int(seconds * rate)))).astype(np.float32)


def png(pixels, *, before=b""):
    """Return a PNG of pixels [rows, columns] (grey), or [rows, columns, 2 to 4]; `before` is put ahead of its data."""
    rows, columns = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    lines = np.concatenate([np.zeros((rows, 1), np.uint8), pixels.reshape(rows, -1)], axis=1)  # 0: each line as it is
    header = struct.pack(">IIBBBBB", columns, rows, 8, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    data = zlib.compress(lines.tobytes())
    return PNG_MAGIC + png_chunk(b"IHDR", header) + before + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


def png_chunk(kind, data):
    """Return one chunk of a PNG with its length and check sum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bmp(pixels):
    """Return a BMP of 24 bits a pixel."""
    rows, columns = pixels.shape[:2]
    lines = np.pad(pixels[::-1, :, ::-1].reshape(rows, -1), ((0, 0), (0, -3 * columns % 4))).tobytes()
    return b"BM" + struct.pack("<IHHI", 54 + len(lines), 0, 0, 54) + _bmp_header(columns, rows, len(lines)) + lines


def gif(*frames):
    """Return a GIF of pictures of one size, each in 64 colours; more than one make it an animation."""
    rows, columns = frames[0].shape[:2]
    palette = bytes(85 * (i >> shift & 3) for i in range(64) for shift in (4, 2, 0)) + bytes(3 * 64)
    out = b"GIF89a" + struct.pack("<HHBBB", columns, rows, 0xF6, 0, 0) + palette
    for frame in frames:
        steps = frame.astype(int) // 64
        codes = (steps[..., 0] * 16 + steps[..., 1] * 4 + steps[..., 2]).ravel()
        out += b"\x21\xf9\x04\x04\x0a\x00\x00\x00" + b"\x2c" + struct.pack("<HHHHB", 0, 0, columns, rows, 0)
        out += b"\x07" + _sub_blocks(_uncompressed_lzw(codes)) + b"\x00"
    return out + b";"


def jpeg(pixels):
    """Return a JPEG of grey pixels [rows, columns]; sides are multiples of 8. Every block has its mean alone."""
    rows, columns = pixels.shape
    means = pixels.reshape(rows // 8, 8, columns // 8, 8).mean(axis=(1, 3)).ravel().round().astype(int) - 128
    bits = "".join(_jpeg_step(step) + "00" for step in np.diff(means, prepend=0).tolist())  # 00: the block ends
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\x00")
    lengths = [0, 0, 0, 12, *[0] * 12]  # twelve codes of four bits: how many bits a step has
    steps = bytes([0x00, *lengths, *range(12)])
    ends = bytes([0x10, 0, 1, *[0] * 14, 0])  # one code of two bits: nothing more in this block
    quantisers = bytes([0, 8, *[1] * 63])  # 8: a block's mean counts eightfold in its first coefficient
    frame = struct.pack(">BHHBBBB", 8, rows, columns, 1, 1, 0x11, 0)
    segments = (0xDB, quantisers), (0xC0, frame), (0xC4, steps), (0xC4, ends), (0xDA, bytes([1, 1, 0, 0, 63, 0]))
    head = b"".join(struct.pack(">BBH", 0xFF, kind, len(body) + 2) + body for kind, body in segments)
    return b"\xff\xd8" + head + data + b"\xff\xd9"


def apng(*frames):
    """Return an animated PNG of pictures of one size."""
    rows, columns = frames[0].shape[:2]
    control = struct.pack(">IIIIHHBB", columns, rows, 0, 0, 1, 10, 0, 0)
    before = png_chunk(b"acTL", struct.pack(">II", len(frames), 0)) + png_chunk(b"fcTL", struct.pack(">I", 0) + control)
    out = png(frames[0], before=before)[:-12]
    for number, frame in enumerate(frames[1:]):
        lines = np.concatenate([np.zeros((rows, 1), np.uint8), frame.reshape(rows, -1)], axis=1)
        out += png_chunk(b"fcTL", struct.pack(">I", 2 * number + 1) + control)
        out += png_chunk(b"fdAT", struct.pack(">I", 2 * number + 2) + zlib.compress(lines.tobytes()))
    return out + png_chunk(b"IEND", b"")


def png_bomb(side=20000):
    """Return a whole PNG of some hundred kilobytes that decodes to `side` x `side` pixels, 1.2 GB at three bytes each."""
    data = zlib.compress(bytes(side * (1 + -(-side // 8))), 1)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return PNG_MAGIC + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


def wav(samples, rate=RATE, channels=1):
    """Return a WAV of 16 bits a sample."""
    data = (np.clip(samples, -1, 1) * 32767).round().astype("<i2").repeat(channels).tobytes()
    form = struct.pack("<HHIIHH", 1, channels, rate, 2 * rate * channels, 2 * channels, 16)
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def data_url(data, kind="image/png"):
    """Return a file as a data URL."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def as_decoded(samples):
    """Return what a decoder makes of a WAV of `samples`: rounded to 16 bits, float32."""
    return ((np.clip(samples, -1, 1) * 32767).round() / 32768).astype(np.float32)


def _bmp_header(columns, rows, size):
    return struct.pack("<IiiHHIIiiII", 40, columns, rows, 1, 24, 0, size, 2835, 2835, 0, 0)


def _uncompressed_lzw(codes):
    """Pack 7-bit colours as 8-bit codes, with a clear code (128) before the codes would grow to 9 bits."""
    out = bytearray()
    for start in range(0, len(codes), 100):
        out += bytes([128, *codes[start : start + 100].tolist()])
    return bytes([*out, 129])


def _sub_blocks(data):
    return b"".join(bytes([len(part)]) + part for part in (data[i : i + 255] for i in range(0, len(data), 255)))


def _jpeg_step(step):
    """Return the bits of one block's change of mean: how many bits it has, then these."""
    size = abs(step).bit_length()
    return f"{size:04b}" + (f"{step if step > 0 else step + (1 << size) - 1:0{size}b}" if size else "")
