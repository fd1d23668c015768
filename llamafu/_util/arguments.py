"""Checks of arguments, each with one wording of its error."""

from __future__ import annotations

import math
import operator
import reprlib
from collections.abc import Mapping
from numbers import Real
from typing import SupportsIndex

_WORDS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def check_whole(name: str, value: object, *, low: float | None = None, high: float | None = None) -> int:
    """Return `value`, the argument `name`, as an int: NumPy's integers and the like are whole numbers, truth values are none.

    ValueError unless it is a whole number within the limits. None is no limit.
    """
    number = whole_number(value)
    if number is not None and _within(number, low, high):
        return number
    message = f"{name}={value!r} is not a whole number{'' if low is None else f' {range_text(low, high)}'}"
    raise ValueError(message)


def check_number(name: str, value: object, *, low: float | None = None, high: float | None = None, above: bool = False) -> None:
    """Raise ValueError unless `value`, the argument `name`, is a finite number within the limits.

    `above` leaves `low` itself out. None is no limit.
    """
    number = finite_number(value)
    if number is not None and _within(number, low, high) and not (above and number == low):
        return
    message = f"{name}={value!r} is not a number {range_text(low, high, above=above)}"
    raise ValueError(message)


def check_numbers_by(name: str, value: object, form: str) -> None:
    """Raise TypeError unless `value`, the argument `name`, is a mapping to numbers, of the `form` that the message tells."""
    if not isinstance(value, Mapping):
        message = f"{name}={reprlib.repr(value)} is no mapping; give {form}"
        raise TypeError(message)
    for key, number in value.items():
        if isinstance(number, bool) or not isinstance(number, Real):
            message = f"{name} has {number!r} for {key}, which is no number; give {form}"
            raise TypeError(message)


def whole_number(value: object) -> int | None:
    """Return what stands for a whole number, by its `__index__`, as an int; None for anything else, and for truth values."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        return None
    try:
        return operator.index(value)
    except TypeError:  # NumPy's truth values
        return None


def finite_number(value: object) -> float | None:
    """Return a number, NumPy's and fractions too, as a float; None for what is none, not finite, or beyond a float."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def read_truth(text: str) -> bool:
    """Read yes or no, in one of the words that are common for them; ValueError."""
    if text.lower() not in _WORDS:
        message = f"{text!r} is not one of {', '.join(_WORDS)}"
        raise ValueError(message)
    return _WORDS[text.lower()]


def range_text(low: float | None, high: float | None, *, above: bool = False) -> str:
    """Return the limits as they follow "a number": "from 0 to 1", "of at least 0", "above 0" or "that is finite"."""
    if low is None:
        return "that is finite"
    if high is not None:
        return f"from {_shown(low)} to {_shown(high)}"
    return f"{'above' if above else 'of at least'} {_shown(low)}"


def _within(value: float, low: float | None, high: float | None) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)


def _shown(limit: float) -> str:
    return f"{limit:g}" if isinstance(limit, float) else str(limit)
