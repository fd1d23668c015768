"""How many prompt tokens a step computes beside answers."""

from __future__ import annotations

from llamafu.generation.prompt import PREFIX_BLOCK

_WEIGHT = 0.2
"""Of the newest measurement in a moving mean."""
_MOST = 4.0
"""What a measurement may be of the mean."""


class PromptBudget:
    """Keeps the time between two tokens of an answer near a target, `target` in seconds. The engine's thread only.

    A step takes as long as its answers' tokens take by themselves, and for each prompt token a time that is measured from
    step to step: it depends on the model, the machine, its load and the adapters. One block of a prompt is computed in any
    case, or a prompt would never end where one block takes longer than the target.
    """

    def __init__(self, target: float) -> None:
        self._target = target
        self._answers: float | None = None
        self._prompt_token: float | None = None

    @property
    def tokens(self) -> int:
        """Prompt tokens of the next step, in whole blocks: one block until something is measured."""
        if not self._prompt_token:
            return PREFIX_BLOCK
        fitting = (self._target - (self._answers or 0.0)) / self._prompt_token
        return max(int(fitting) // PREFIX_BLOCK, 1) * PREFIX_BLOCK

    def record(self, seconds: float, prompt_tokens: int, *, beside: bool) -> None:
        """Take note of a step: how long it took, how many prompt tokens it computed, and whether `beside` answers' tokens."""
        if not prompt_tokens:
            self._answers = _mean(self._answers, seconds, _WEIGHT)
            return
        # What the answers' tokens took is not known while every step has prompts in it; then it counts as the prompts',
        # which leads to the same budget.
        answers = self._answers or 0.0 if beside else 0.0
        own = max(seconds - answers, seconds / 10) / prompt_tokens
        if self._prompt_token is not None:  # the machine may have done something else in that step
            own = min(max(own, self._prompt_token / _MOST), self._prompt_token * _MOST)
        self._prompt_token = _mean(self._prompt_token, own, _WEIGHT * min(1.0, prompt_tokens / PREFIX_BLOCK))


def _mean(before: float | None, value: float, weight: float) -> float:
    return value if before is None else before + weight * (value - before)
