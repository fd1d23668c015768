"""A sweep as text: a row of numbers for each mix, with the answer below it."""

from __future__ import annotations

import math
import shutil
import unicodedata
from typing import TYPE_CHECKING

from llamafu.cli.style import BOLD, DIM, Style, colour

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import TextIO

    from llamafu.sweep import Answer, Sweep

_BLOCKS = "▁▂▃▄▅▆▇█"
_CURVE = 24
_NAME = 28
_LINES = 3
_LEAST_WIDTH = 30
_MARK = "…"
_ACCENT = colour(173)


def table(sweep: Sweep, stream: TextIO) -> str:
    """Return the table for `stream`. No line is wider than the terminal; a cut one ends in …."""
    style = Style(stream)
    width = max(_LEAST_WIDTH, shutil.get_terminal_size().columns)
    peak = max(kl for answer in sweep.answers for kl in answer.kls)
    names = [_fit(_label(mix), _NAME) for mix in sweep.mixes]
    first = max(map(columns, ["mix", *names]))
    lines = []
    for index, prompt in enumerate(sweep.prompts):
        lines += [*([""] if index else []), style(_fit(_plain(prompt), width), BOLD)]
        lines.append(style(_fit(f"  {_pad('mix', first)}  KL first  KL mean  token by token", width), DIM))
        for name, answer in zip(names, sweep.to(index), strict=True):
            numbers = f"  {_pad(name, first)}  {answer.kl:8.3f}  {answer.mean_kl:7.3f}"
            room = width - columns(numbers) - 2
            bars = curve(answer.kls, peak, min(room, _CURVE)) if room > 0 else ""
            lines.append(f"{_fit(numbers, width)}  {style(bars, _ACCENT)}".rstrip())
            lines += [f"    {style(line, DIM)}" for line in _answer(answer, width - 4)]
    return "\n".join([*lines, ""])


def curve(values: Sequence[float], peak: float, width: int) -> str:
    """Return at most `width` bars of block characters, the highest for `peak`; each shows the largest of its values.

    The height is the square root of the value, so that small values stay visible.
    """
    size = -(-len(values) // width)
    largest = [max(values[i : i + size]) for i in range(0, len(values), size)]
    return "".join(_BLOCKS[round(math.sqrt(value / peak) * (len(_BLOCKS) - 1)) if peak else 0] for value in largest)


def columns(text: str) -> int:
    """Return the width of `text` on a terminal: East Asian wide characters take two columns, combining marks none."""
    return sum(map(_columns, text))


def _columns(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) == "Cf":
        return 0
    return 2 if unicodedata.east_asian_width(character) in {"W", "F"} else 1


def _label(mix: dict[str, float]) -> str:
    from llamafu.sweep import label

    return _plain(label(mix))


def _plain(text: str) -> str:
    """Return `text` on one line without control characters, since a model can generate escape sequences."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))


def _answer(answer: Answer, width: int) -> list[str]:
    """Return the answer in at most `_LINES` lines; … marks one that is cut, here or by max_tokens."""
    text = _plain(answer.text) or "(nothing)"
    if answer.finish_reason == "length":
        text += _MARK
    lines = list(_wrap(text, width))
    if len(lines) > _LINES:
        lines = [*lines[: _LINES - 1], _fit(" ".join(lines[_LINES - 1 :]), width)]
    return lines


def _wrap(text: str, width: int) -> Iterator[str]:
    line = ""
    for word in text.split(" "):
        if line and columns(line) + 1 + columns(word) > width:
            yield line
            line = ""
        line = f"{line} {word}" if line else word
        while columns(line) > width:  # a word that is wider than the terminal
            piece = _cut(line, width)
            yield piece
            line = line[len(piece) :]
    yield line


def _fit(text: str, width: int) -> str:
    return text if columns(text) <= width else _cut(text, width - 1) + _MARK


def _cut(text: str, width: int) -> str:
    taken = used = 0
    for character in text:
        used += _columns(character)
        if used > width:
            break
        taken += 1
    return text[:taken]


def _pad(text: str, width: int) -> str:
    return text + " " * (width - columns(text))
