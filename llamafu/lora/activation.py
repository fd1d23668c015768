"""Activated LoRA (aLoRA): from which token of a prompt on each adapter acts, and the adapter state of every token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llamafu.lora.active_set import LoraSet
    from llamafu.lora.scales import State


class Activation:
    """Where in one prompt each adapter of a set begins to act.

    A plain adapter acts from token 0 on, an aLoRA from the last occurrence of its invocation tokens on. One whose
    invocation tokens are not in the prompt is dormant: it never acts, in the answer neither.
    """

    def __init__(self, lora: LoraSet[Any], prompt: Sequence[int]) -> None:
        self._lora = lora
        self._length = len(prompt)
        self._starts = {use.content.digest: activation_start(prompt, use.content.info.invocation_tokens) for use in lora.uses}
        self.dormant = frozenset(digest for digest, start in self._starts.items() if start > self._length)
        """Digests of the adapters that never act."""
        self._acting = frozenset(self._starts) - self.dormant if self.dormant else None

    def prompt_states(self) -> list[State]:
        """Return the adapter state of every token of the prompt."""
        borders = sorted({0, *(start for start in self._starts.values() if start < self._length)})
        states: list[State] = []
        for border, following in zip(borders, [*borders[1:], self._length], strict=True):
            acting = frozenset(digest for digest, start in self._starts.items() if start <= border)
            states += [self._lora.state(self._lora.first, acting)] * (following - border)
        return states

    def answer_state(self, step: int) -> State:
        """Return the adapter state of the token that step `step` computes, 1 for the first token of the answer."""
        return self._lora.state(self._lora.at(step), self._acting)


def activation_start(prompt: Sequence[int], invocation: tuple[int, ...]) -> int:
    """Return the position from which an adapter acts: 0 without invocation tokens, past the end when they do not occur."""
    if not invocation:
        return 0
    width = len(invocation)
    found = (i for i in range(len(prompt) - width, -1, -1) if tuple(prompt[i : i + width]) == invocation)
    return next(found, len(prompt) + 1)
