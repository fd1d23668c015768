"""The adapters of one generation, and their scales at every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llamafu.lora.scales import check_scale

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llamafu._native.adapter import Adapter
    from llamafu._native.context import Context
    from llamafu.lora.handles import LoraAdapter
    from llamafu.lora.scales import Scale, State


@dataclass(frozen=True, slots=True)
class LoraUse:
    """One adapter in one generation: its native handle and its scale, a number or a function of the step."""

    adapter: LoraAdapter
    native: Adapter
    scale: Scale

    def at(self, step: int, scale_range: tuple[float, float]) -> float:
        """Scale at `step`, checked."""
        value = self.scale(step) if callable(self.scale) else self.scale
        return check_scale(value, scale_range, f"{self.adapter.name!r} at step {step}" if callable(self.scale) else None)


class LoraSet:
    """The adapters of one generation, fixed at its start."""

    def __init__(self, uses: tuple[LoraUse, ...], scale_range: tuple[float, float]) -> None:
        self.uses = uses
        self._range = scale_range
        self._native = {use.adapter.digest: use.native for use in uses}
        self._steady = not any(callable(use.scale) for use in uses)
        self._first = self.scales(0)

    def scales(self, step: int) -> dict[LoraAdapter, float]:
        """Checked scale of every adapter at `step`; each function is asked once."""
        if self._steady and step:
            return self._first
        return {use.adapter: use.at(step, self._range) for use in self.uses}

    @staticmethod
    def state(scales: Mapping[LoraAdapter, float]) -> State:
        """The adapter state of these scales."""
        return tuple(sorted((adapter.digest, scale) for adapter, scale in scales.items() if scale != 0.0))

    def enter(self, context: Context, state: State) -> None:
        """Make `state` the context's; an adapter that was unloaded meanwhile is a `ClosedError`."""
        context.set_adapters({self._native[digest]: scale for digest, scale in state})

    @property
    def first(self) -> dict[LoraAdapter, float]:
        """Scales at step 0."""
        return dict(self._first)
