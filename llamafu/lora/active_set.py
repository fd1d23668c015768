"""The adapters of one generation or request, fixed at its start, and their scales at every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from llamafu.lora.scales import check_scale

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llamafu.adapters.info import AdapterInfo
    from llamafu.lora.scales import Scale, State


class AdapterContent(Protocol):
    """What a set needs to know of an adapter's content."""

    @property
    def digest(self) -> str:
        """SHA-256 of the content, in hex."""

    @property
    def info(self) -> AdapterInfo:
        """Its rank, targets, invocation tokens and more."""


ContentT = TypeVar("ContentT", bound=AdapterContent)
"""How the owner of a set holds an adapter's content."""


@dataclass(frozen=True, slots=True)
class LoraUse(Generic[ContentT]):
    """One adapter of a set: its name, its content, and its scale, a number or a function of the step."""

    name: str
    content: ContentT
    scale: Scale

    def at(self, step: int, scale_range: tuple[float, float]) -> float:
        """Return the scale at `step`; `InvalidScaleError` when it is not a number within `scale_range`."""
        if callable(self.scale):
            return check_scale(self.scale(step), scale_range, f"{self.name!r} at step {step}")
        return check_scale(self.scale, scale_range, repr(self.name))


class LoraSet(Generic[ContentT]):
    """Adapters and their scales at every step. Contents are distinct. One thread at a time.

    Scales that are functions are called for step 0 by the constructor, then by `at`. Raises `InvalidScaleError`.
    """

    def __init__(self, uses: Sequence[LoraUse[ContentT]], scale_range: tuple[float, float]) -> None:
        self.uses = tuple(uses)
        self._range = scale_range
        self.is_steady = not any(callable(use.scale) for use in uses)
        """Whether every scale is a number, so that no step changes it."""
        self.first = self._scales_at(0)
        """Scales at step 0, in the order of `uses`."""
        self.last = self.first
        """Scales of the last step that was asked for."""

    @property
    def contents(self) -> tuple[ContentT, ...]:
        """The contents of all adapters, in the order of `uses`."""
        return tuple(use.content for use in self.uses)

    def at(self, step: int) -> tuple[float, ...]:
        """Return the checked scales at `step`, in the order of `uses`; each function is called once."""
        if not self.is_steady and step:
            self.last = self._scales_at(step)
        return self.last

    def state(self, scales: Sequence[float], acting: frozenset[str] | None = None) -> State:
        """Return the adapter state of these scales; with `acting`, only adapters with these digests are part of it."""
        pairs = ((use.content.digest, scale) for use, scale in zip(self.uses, scales, strict=True) if scale != 0.0)
        return tuple(sorted(pair for pair in pairs if acting is None or pair[0] in acting))

    def _scales_at(self, step: int) -> tuple[float, ...]:
        return tuple(use.at(step, self._range) for use in self.uses)
