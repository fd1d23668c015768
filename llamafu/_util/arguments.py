"""Checks of arguments that many functions take."""

from __future__ import annotations


def check_whole(name: str, value: object, *, low: int, high: int | None = None) -> None:
    """Raise ValueError unless `value`, the option `name`, is a whole number within the limits."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        limit = f"from {low} to {high}" if high is not None else f"of at least {low}"
        message = f"{name}={value!r} is not a whole number {limit}"
        raise ValueError(message)
