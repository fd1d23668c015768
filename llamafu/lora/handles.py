"""Adapters as the model layer knows them: handles, their names, and the sets in which they act."""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llamafu.errors import ClosedError, InvalidScaleError, LoraError, LoraNotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from llamafu._native.adapter import Adapter
    from llamafu._native.context import Context
    from llamafu.adapters.info import AdapterInfo
    from llamafu.generation.options import Scale
    from llamafu.model.adapters import LoraHost

State = tuple[tuple[str, float], ...]
"""Adapter state: (digest, scale) pairs sorted by digest, zeros dropped. libllama adds adapters up in no fixed
order, so order means nothing; the digest names the content, so a changed file is another state."""


class LoraAdapter:
    """A loaded adapter of one `Llamafu`. Its methods are its owner's, and as thread-safe.

    It does not keep its owner open: when that is closed or gone, they raise `ClosedError`.

    The same content loaded twice is the same object under one more name; `name` is the first one.
    """

    def __init__(self, owner: LoraHost, name: str, path: Path, info: AdapterInfo) -> None:
        # Weak: with a cycle between the two, dropping a Llamafu would free its memory only when the collector comes by.
        self._owner = weakref.ref(owner)
        self.name = name
        self.path = path
        self.info = info

    @property
    def digest(self) -> str:
        """SHA-256 of the file's content, in hex."""
        return self.info.digest

    @property
    def scale(self) -> float:
        """Scale in the owner's active set; 0.0 when it is not in the set."""
        return self._llamafu._scale_of(self) or 0.0  # noqa: SLF001 - its owner

    @property
    def is_active(self) -> bool:
        """True when it is in the owner's active set, at whatever scale."""
        return self._llamafu._scale_of(self) is not None  # noqa: SLF001 - its owner

    def apply(self, scale: float = 1.0) -> None:
        """Put it into the active set at `scale`; in the set already, its scale is replaced."""
        self._llamafu.apply_lora_adapter(self, scale)

    def set_scale(self, scale: float) -> None:
        """Replace the scale of an adapter that is in the active set; `LoraError` when it is not."""
        if not self.is_active:
            message = f"the adapter {self.name!r} is not applied, so it has no scale to change; call apply({scale})"
            raise LoraError(message)
        self._llamafu.apply_lora_adapter(self, scale)

    def remove(self) -> None:
        """Take it out of the active set; it stays loaded."""
        self._llamafu.remove_lora_adapter(self)

    def unload(self) -> None:
        """Take it out of the active set and free it."""
        self._llamafu.unload_lora_adapter(self)

    @property
    def _llamafu(self) -> LoraHost:
        owner = self._owner()
        if owner is None:
            message = f"the Llamafu that loaded the adapter {self.name!r} is gone; keep it for as long as its adapters are used"
            raise ClosedError(message)
        return owner

    def __repr__(self) -> str:
        return f"<LoraAdapter {self.name!r} rank={self.info.rank} digest={self.digest[:12]}>"


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


class Registry:
    """Loaded adapters by name and by content. Not thread-safe: its owner holds a lock."""

    def __init__(self) -> None:
        self._by_name: dict[str, LoraAdapter] = {}
        self._native: dict[str, Adapter] = {}

    def __iter__(self) -> Iterator[LoraAdapter]:
        return iter(dict.fromkeys(self._by_name.values()))

    def find_content(self, digest: str) -> LoraAdapter | None:
        """Return the adapter with this content, if it is loaded."""
        return next((adapter for adapter in self if adapter.digest == digest), None)

    def claim(self, name: str, digest: str) -> None:
        """Raise `LoraError` when `name` is taken by other content."""
        holder = self._by_name.get(name)
        if holder is not None and holder.digest != digest:
            message = (
                f"the name {name!r} is taken by other content (loaded from {holder.path}, digest {holder.digest[:12]}); "
                "pass name= or unload that one"
            )
            raise LoraError(message)

    def add(self, adapter: LoraAdapter, name: str, native: Adapter) -> None:
        """Register `adapter` under `name`, one more name if its content is known."""
        self._by_name[name] = adapter
        self._native[adapter.digest] = native

    def resolve(self, key: LoraAdapter | str) -> LoraAdapter:
        """Return the loaded adapter that `key` means; `LoraNotFoundError` names what is loaded."""
        by_handle = {adapter: adapter for adapter in self}
        found = self._by_name.get(key) if isinstance(key, str) else by_handle.get(key)
        if found is None:
            loaded = ", ".join(sorted(self._by_name)) or "none"
            message = f"no adapter {key!r} is loaded here (loaded: {loaded}); load it with load_lora_adapter"
            raise LoraNotFoundError(message)
        return found

    def native(self, adapter: LoraAdapter) -> Adapter:
        """Native handle of a loaded adapter."""
        return self._native[adapter.digest]

    def drop(self, adapter: LoraAdapter) -> Adapter:
        """Forget `adapter` under all its names and return its native handle."""
        self._by_name = {name: other for name, other in self._by_name.items() if other is not adapter}
        return self._native.pop(adapter.digest)


def check_scale(value: object, scale_range: tuple[float, float], whose: str | None = None) -> float:
    """Return `value` as a float; `InvalidScaleError` when it is not a finite number within `scale_range`."""
    low, high = scale_range
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and low <= value <= high:
        return float(value)
    message = (
        f"scale{f' of {whose}' if whose else ''} is {value!r}; it must be a finite number from {low:g} to {high:g} "
        "(a wider scale_range= is the constructor's choice)"
    )
    raise InvalidScaleError(message)


def check_scale_range(scale_range: tuple[float, float]) -> tuple[float, float]:
    """Return the range as floats; `ValueError` unless it is (low, high), finite, low <= high."""
    try:
        low, high = (float(bound) for bound in scale_range)
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        message = f"scale_range={scale_range!r} is not a pair (low, high) of finite numbers with low <= high"
        raise ValueError(message)
    return low, high
