"""Readers of settings: each makes a value of a text, and raises ValueError for a text that is not legal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from llamafu._util.file_names import NAME_RULE, is_name
from llamafu.errors import HubError
from llamafu.hub.local import is_reference
from llamafu.hub.reference import HubReference

if TYPE_CHECKING:
    from collections.abc import Callable


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """Read a whole number within limits."""

    def read(text: str) -> int:
        value = int(text) if text.isascii() and text.removeprefix("-").isdecimal() else None
        if value is None or value < low or (high is not None and value > high):
            limit = f"from {low} to {high}" if high is not None else f"of at least {low}"
            message = f"{text!r} is not a whole number {limit}"
            raise ValueError(message)
        return value

    return read


def duration(unit: str) -> Callable[[str], float]:
    """Return a reader of a number above 0 of this unit, named as in "seconds"."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value > 0):
            message = f"{text!r} is not a number of {unit} above 0"
            raise ValueError(message)
        return value

    return read


def number(text: str) -> float:
    """Read a number."""
    try:
        return float(text)
    except ValueError:
        message = f"{text!r} is not a number"
        raise ValueError(message) from None


def name_and_scale(text: str) -> tuple[str, float]:
    """Read NAME=SCALE; without a scale it is 1. The range of scales says which are legal."""
    name, sign, scale = text.rpartition("=")
    if not sign:
        return text, 1.0
    try:
        return name, float(scale)
    except ValueError:
        message = f"{text!r} is not NAME=SCALE with a number as its scale"
        raise ValueError(message) from None


def hub_adapter(text: str) -> tuple[str, str]:
    """Read NAME=hf:OWNER/REPO."""
    name, _, reference = text.partition("=")
    if not is_name(name) or not is_reference(reference):
        message = f"{text!r} is not NAME=hf:OWNER/REPO, with a name of {NAME_RULE}"
        raise ValueError(message)
    try:
        return name, str(HubReference.parse(reference))
    except HubError as error:
        raise ValueError(str(error)) from None


def mix_of(text: str) -> tuple[str, dict[str, float]]:
    """Read NAME=ADAPTER:SCALE,ADAPTER:SCALE; without a scale it is 1. The range of scales says which are legal."""
    name, _, rest = text.partition("=")
    scales: dict[str, float] = {}
    for part in rest.split(","):
        adapter, sign, scale = part.strip().rpartition(":")
        adapter, scale = (adapter, scale) if sign else (scale, "1")
        try:
            value = float(scale)
        except ValueError:
            value = math.nan
        if not name or not adapter or math.isnan(value):
            message = f"{text!r} is not NAME=ADAPTER:SCALE,ADAPTER:SCALE with numbers as scales"
            raise ValueError(message)
        if adapter in scales:
            message = f"{text!r} names {adapter!r} twice; name each adapter once"
            raise ValueError(message)
        scales[adapter] = value
    return name, scales


def not_empty(text: str) -> str:
    """Return a text; `ValueError` where it is empty."""
    if not text:
        message = "it is empty"
        raise ValueError(message)
    return text
