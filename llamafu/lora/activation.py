"""Activated LoRA: from which token of a prompt on each adapter acts, and the adapter state of every token."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from llamafu.lora.active_set import LoraSet
    from llamafu.lora.handles import LoraAdapter
    from llamafu.lora.scales import State


def activation(prompt: Sequence[int], invocation: tuple[int, ...]) -> int:
    """Return the position from which an adapter acts: 0 for a plain one; past the prompt when its invocation is not there."""
    if not invocation:
        return 0
    width = len(invocation)
    found = (i for i in range(len(prompt) - width, -1, -1) if tuple(prompt[i : i + width]) == invocation)
    return next(found, len(prompt) + 1)


def prompt_states(starts: Iterable[int], length: int, acting: Callable[[int], State]) -> list[State]:
    """State of each of the `length` tokens of a prompt: an aLoRA acts from the last occurrence of its invocation tokens on.

    `starts` are the positions from which adapters act; `acting` returns the state of those that act at a position.
    """
    borders = sorted({0, *(start for start in starts if start < length)})
    states: list[State] = []
    for border, following in zip(borders, [*borders[1:], length], strict=True):
        states += [acting(border)] * (following - border)
    return states


def states_of(lora: LoraSet, starts: Mapping[LoraAdapter, int], length: int) -> list[State]:
    """State of each prompt token under a set of adapters; `starts` has the position from which each acts."""
    first = lora.first
    return prompt_states(
        starts.values(), length, lambda place: lora.state({a: scale for a, scale in first.items() if starts[a] <= place})
    )
