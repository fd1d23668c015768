"""Scales of adapters: their types, the adapter state that they make, and the checks of a scale and of its range."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Union

from llamafu._util.arguments import finite_number
from llamafu.errors import InvalidScaleError

if TYPE_CHECKING:
    from llamafu.lora.handles import LoraAdapter

Scale = Union[float, Callable[[int], float]]  # noqa: UP007 - evaluated at run time
"""A number, or a function of the step: step 0 is the prompt and the first token, each further token is one more step."""
LoraScales = Mapping[Union["LoraAdapter", str], Scale]
"""Scales by adapter or by its name."""
State = tuple[tuple[str, float], ...]
"""Adapter state: (digest, scale) pairs sorted by digest, zeros dropped. libllama sums adapters in no fixed order, so the
order carries no meaning; the digest identifies the content, so a changed file is another state."""


def check_scale(value: object, scale_range: tuple[float, float], whose: str | None = None) -> float:
    """Return `value` as a float; `InvalidScaleError` when it is not a finite number within `scale_range`."""
    low, high = scale_range
    number = finite_number(value)
    if number is not None and low <= number <= high:
        return number
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
