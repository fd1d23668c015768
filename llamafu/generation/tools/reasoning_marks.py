"""What stands before and after the reasoning of an answer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReasoningMarks:
    """What stands before and after the reasoning at the beginning of an answer; `silent` are marks around the text.

    recurs: reasoning may also come later in an answer, and several times.
    resumes: what stands between the closing mark and what follows, after the first reasoning and after each later one.
    """

    opening: str
    closing: str
    silent: tuple[str, ...] = ()
    recurs: bool = False
    resumes: tuple[str, ...] = ("",)
