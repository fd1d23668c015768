"""What pictures and sound are turned into before an encoder sees them, in NumPy.

The formulas are those that Pillow and Whisper publish. Nothing is shared with libmtmd or with the library under test.
"""

from __future__ import annotations

import math

import numpy as np

SAMPLE_RATE, WINDOW, HOP, SECONDS = 16000, 400, 160, 30  # Whisper's
_PRECISION = 22  # fractional bits of Pillow's filter weights


def fit(picture: np.ndarray, side: int, *, cubic: bool, pad: tuple[int, int, int]) -> np.ndarray:
    """Bring a picture [rows, columns, 3] to `side` x `side`: scaled as a whole, centred, the rest filled with `pad`."""
    rows, columns = picture.shape[:2]
    return _into(picture, side, side, min(side / columns, side / rows), cubic=cubic, pad=pad)


def fit_to_grid(picture: np.ndarray, step: int, least: int, most: int) -> np.ndarray:
    """Bring a picture to the nearest size whose sides are multiples of `step`, of `least` to `most` pixels (Qwen's way)."""
    rows, columns = picture.shape[:2]
    new = [max(step, math.floor(side / step + 0.5) * step) for side in (rows, columns)]
    if new[0] * new[1] > most:
        shrink = math.sqrt(rows * columns / most)
        new = [max(step, math.floor(side / shrink / step) * step) for side in (rows, columns)]
    elif new[0] * new[1] < least:
        grow = math.sqrt(least / (rows * columns))
        new = [math.ceil(side * grow / step) * step for side in (rows, columns)]
    scale = min(new[1] / columns, new[0] / rows)
    return _into(picture, new[0], new[1], scale, cubic=True, pad=(0, 0, 0))


def resize(picture: np.ndarray, rows: int, columns: int, *, cubic: bool) -> np.ndarray:
    """Resample [rows, columns, 3] uint8 as Pillow does: columns first, then rows, whole numbers in between."""
    for axis, size in ((1, columns), (0, rows)):
        if picture.shape[axis] != size:
            weights = _filter_weights(picture.shape[axis], size, cubic=cubic)
            sums = np.moveaxis(np.tensordot(weights, picture.astype(np.int64), (1, axis)), 0, axis)
            picture = np.clip((sums + (1 << (_PRECISION - 1))) >> _PRECISION, 0, 255).astype(np.uint8)
    return picture


def log_mel(samples: np.ndarray, bands: int) -> np.ndarray:
    """Return Whisper's spectrogram of sound at 16 kHz, [bands, frames]: 100 frames a second, 30 s of silence appended."""
    samples = np.float64(samples)
    half = WINDOW // 2
    padded = np.concatenate([samples[half:0:-1], samples, np.zeros(SECONDS * SAMPLE_RATE + half)])
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    power = np.abs(np.fft.rfft(frames * hann)) ** 2
    mel = np.log10(np.maximum(power @ _mel_filters(bands).T, 2.0**-24))
    return ((np.maximum(mel, mel.max() - 8) + 4) / 4).T


def _into(picture: np.ndarray, rows: int, columns: int, scale: float, *, cubic: bool, pad: tuple[int, int, int]) -> np.ndarray:
    if picture.shape[:2] == (rows, columns):
        return picture
    scale = np.float32(scale)
    inner_rows = min(math.ceil(np.float32(picture.shape[0]) * scale), rows)
    inner_columns = min(math.ceil(np.float32(picture.shape[1]) * scale), columns)
    canvas = np.full((rows, columns, 3), pad, np.uint8)
    top, left = (rows - inner_rows) // 2, (columns - inner_columns) // 2
    inner = resize(picture, inner_rows, inner_columns, cubic=cubic)
    canvas[top : top + inner_rows, left : left + inner_columns] = inner
    return canvas


def _filter_weights(before: int, after: int, *, cubic: bool) -> np.ndarray:
    """Weights of all old pixels in each new one, [after, before], in units of 2**-22."""
    scale = before / after
    widened = max(scale, 1.0)
    support = (2.0 if cubic else 1.0) * widened
    weights = np.zeros((after, before))
    for new in range(after):
        centre = (new + 0.5) * scale
        first, last = max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), before)
        row = np.array([_kernel((old - centre + 0.5) / widened, cubic=cubic) for old in range(first, last)])
        weights[new, first:last] = row / row.sum()
    return np.trunc(weights * 2**_PRECISION + np.where(weights < 0, -0.5, 0.5)).astype(np.int64)


def _kernel(x: float, *, cubic: bool) -> float:
    x = abs(x)
    if not cubic:
        return max(1 - x, 0.0)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return -0.5 * (((x - 5) * x + 8) * x - 4) if x < 2 else 0.0


def _mel_filters(bands: int) -> np.ndarray:
    """Triangles on Slaney's mel scale, each of area 1: [bands, frequencies]."""
    step = math.log(6.4) / 27  # above 1000 Hz the scale is logarithmic, below it is 200/3 Hz a mel
    top = 15 + math.log(SAMPLE_RATE / 2 / 1000) / step
    mels = np.linspace(0, top, bands + 2)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp((mels - 15) * step))[:, None]
    frequencies = np.arange(WINDOW // 2 + 1) * SAMPLE_RATE / WINDOW
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    return np.maximum(np.minimum(rising, falling), 0) * 2 / (edges[2:] - edges[:-2])
