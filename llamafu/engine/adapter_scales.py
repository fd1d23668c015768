"""The adapters of one request, fixed when it is submitted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llamafu.generation.completion import AppliedLora
from llamafu.lora.scales import check_scale

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llamafu.engine.registry import Content
    from llamafu.lora.scales import Scale, State


@dataclass(frozen=True, slots=True)
class Use:
    """One adapter of a mix: under which name it was asked for, its content, and its scale or function of the step."""

    name: str
    content: Content
    scale: Scale


class Mix:
    """Adapters and their scales at every step; a steady one asks no function. One thread at a time."""

    def __init__(self, uses: Sequence[Use], scale_range: tuple[float, float]) -> None:
        self.uses = tuple(uses)
        self._range = scale_range
        self.steady = not any(callable(use.scale) for use in uses)
        self.first = self._ask(0)
        self.last = self.first

    @property
    def contents(self) -> tuple[Content, ...]:
        """The adapters that may act."""
        return tuple(use.content for use in self.uses)

    def at(self, step: int) -> tuple[float, ...]:
        """Scales of all uses at a step, checked; each function is asked once a step."""
        if not self.steady and step:
            self.last = self._ask(step)
        return self.last

    def applied(self, dormant: frozenset[str]) -> tuple[AppliedLora, ...]:
        """What took part so far, with first and last scale; `dormant` contents never acted."""
        scales = zip(self.uses, self.first, self.last, strict=True)
        return tuple(
            AppliedLora(use.name, use.content.digest, first, last)
            for use, first, last in scales
            if (first or last) and use.content.digest not in dormant
        )

    def state(self, scales: Sequence[float], acting: frozenset[str] | None = None) -> State:
        """The adapter state of these scales; `acting` leaves all other contents out."""
        found: dict[str, float] = {}
        for use, scale in zip(self.uses, scales, strict=True):
            if scale != 0.0 and (acting is None or use.content.digest in acting):
                found[use.content.digest] = scale
        return tuple(sorted(found.items()))

    def _ask(self, step: int) -> tuple[float, ...]:
        return tuple(
            check_scale(use.scale(step), self._range, f"{use.name!r} at step {step}")
            if callable(use.scale)
            else check_scale(use.scale, self._range, repr(use.name))
            for use in self.uses
        )
