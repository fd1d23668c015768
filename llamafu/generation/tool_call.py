"""A call of a tool, as an answer has it, and the parts of one that a stream brings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the model wants called. `arguments` is the text that it wrote: JSON, unless it wrote something else."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A part of the call number `index`, counted from 0: its first part has `id` and `name`, later ones more of `arguments`."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""
