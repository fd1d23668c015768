"""The samplers that the option `samplers` puts in order: their names, and llama.cpp's order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamafu._util.suggestions import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

SAMPLERS = ("penalties", "dry", "top_n_sigma", "top_k", "typical_p", "top_p", "min_p", "xtc", "temperature")
"""Every sampler by name, in llama.cpp's order."""
_OTHER_NAMES = {"typ_p": "typical_p", "temp": "temperature"}
"""What llama.cpp calls some of them."""


def order_of(samplers: Sequence[str] | None) -> tuple[str, ...]:
    """Return the samplers that may act, in their order; None is llama.cpp's. ValueError for an unknown or repeated name."""
    if samplers is None:
        return SAMPLERS
    found: list[str] = []
    for name in samplers:
        known = _OTHER_NAMES.get(name, name)
        if known not in SAMPLERS:
            message = f"samplers holds {name!r}{did_you_mean(name, SAMPLERS)} (samplers: {', '.join(SAMPLERS)})"
            raise ValueError(message)
        if known in found:
            message = f"samplers holds {name!r} twice; give each name once"
            raise ValueError(message)
        found.append(known)
    return tuple(found)
