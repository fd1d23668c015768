"""Named mixes: sets of adapters with scales that go by a name of their own."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

from llamafu.errors import LoraError, LoraNotFoundError
from llamafu.lora.scales import check_scale

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamafu.lora.scales import Scale


class NamedMixes:
    """Mixes by name, and what a set of scales means in which such names occur. Any thread.

    A mix is made of adapters, not of mixes. Its owner keeps names of adapters and of mixes apart, by `refuse_taken` and
    `refuse_used`.
    """

    def __init__(self, scale_range: tuple[float, float]) -> None:
        self._scale_range = scale_range
        self._lock = threading.Lock()
        self._mixes: dict[str, dict[str, float]] = {}  # replaced as a whole: readers take no lock

    def all(self) -> dict[str, dict[str, float]]:
        """Return the scales of every mix by adapter, by the mix's name."""
        return {name: dict(scales) for name, scales in self._mixes.items()}

    def checked(self, name: str, scales: Mapping[str, float]) -> dict[str, float]:
        """Return the scales of a new mix as floats.

        Raises TypeError and ValueError for what is no name or no set, `InvalidScaleError`, and `LoraError` for a mix in it.
        """
        if not isinstance(name, str) or not name:
            message = f"the name of a mix is {name!r}; give a string that is not empty"
            raise ValueError(message)
        if not isinstance(scales, Mapping):
            message = f"the mix {name!r} is {scales!r}; give a mapping of adapters' names to scales"
            raise TypeError(message)
        if not scales:
            message = f"the mix {name!r} is empty; name at least one adapter"
            raise ValueError(message)
        if nested := sorted({name, *self._mixes} & set(scales)):
            message = f"the mix {name!r} names {', '.join(map(repr, nested))}, a mix; a mix is made of adapters alone"
            raise LoraError(message)
        return {each: check_scale(scale, self._scale_range, f"{each!r} in the mix {name!r}") for each, scale in scales.items()}

    def add(self, name: str, scales: Mapping[str, float], *, overwrite: bool) -> None:
        """Add a mix that was `checked`; `LoraError` where the name is another mix's, unless `overwrite`."""
        with self._lock:
            known = self._mixes.get(name)
            if known is not None and known != scales and not overwrite:
                message = f"there is a mix {name!r} already ({known}); give another name, or say to overwrite it"
                raise LoraError(message)
            self._mixes = {**self._mixes, name: dict(scales)}

    def remove(self, name: str) -> None:
        """Forget a mix; `LoraNotFoundError`."""
        with self._lock:
            if name not in self._mixes:
                message = f"no mix {name!r} is here (mixes: {', '.join(sorted(self._mixes)) or 'none'})"
                raise LoraNotFoundError(message)
            self._mixes = {other: scales for other, scales in self._mixes.items() if other != name}

    def refuse_taken(self, name: str) -> None:
        """Raise `LoraError` for the name of a new adapter that is a mix's."""
        if name in self._mixes:
            message = f"the name {name!r} is taken by a mix ({self._mixes[name]}); pass name=, or remove the mix"
            raise LoraError(message)

    def refuse_used(self, adapter: str) -> None:
        """Raise `LoraError` for an adapter that is part of a mix and so cannot go."""
        if users := [name for name, scales in self._mixes.items() if adapter in scales]:
            message = f"the adapter {adapter!r} is part of the mix {', '.join(map(repr, users))}; remove the mix first"
            raise LoraError(message)

    def expand(self, scales: Mapping[str, Scale]) -> dict[str, Scale]:
        """Return scales by adapter where some of the names may be those of mixes.

        The scale of a mix multiplies those of its adapters; what an adapter gets from several sides adds up, as the changes of
        adapters do. Raises `InvalidScaleError`.
        """
        mixes = self._mixes
        if mixes.keys().isdisjoint(scales):
            return dict(scales)
        shares: dict[str, list[tuple[Scale, float]]] = {}
        for name, scale in scales.items():
            checked = self._checked_scale(name, scale)
            for adapter, own in mixes.get(name, {name: 1.0}).items():
                shares.setdefault(adapter, []).append((checked, own))
        return {adapter: _sum(found) for adapter, found in shares.items()}

    def _checked_scale(self, name: str, scale: Scale) -> Scale:
        if callable(scale):
            return _OncePerStep(scale, lambda value, step: check_scale(value, self._scale_range, f"{name!r} at step {step}"))
        return check_scale(scale, self._scale_range, repr(name))


class _OncePerStep:
    """A scale that is a function and that several adapters share: it is called once for each step. One thread at a time."""

    def __init__(self, scale: Callable[[int], float], check: Callable[[object, int], float]) -> None:
        self._scale = scale
        self._check = check
        self._known: tuple[int, float] | None = None

    def __call__(self, step: int) -> float:
        if self._known is None or self._known[0] != step:
            self._known = step, self._check(self._scale(step), step)
        return self._known[1]


def _sum(shares: list[tuple[Scale, float]]) -> Scale:
    """Return the sum of scales times factors: a function where one of the scales is."""
    if any(callable(scale) for scale, _ in shares):
        return lambda step: math.fsum((scale(step) if callable(scale) else scale) * own for scale, own in shares)
    return math.fsum(scale * own for scale, own in shares)  # type: ignore[operator] # numbers, as was just seen
