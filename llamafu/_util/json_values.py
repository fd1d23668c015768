"""What messages call a value of JSON."""

from __future__ import annotations


def shown(value: object) -> str:
    """Return a value for a message: its repr where that is short, else its JSON type."""
    if isinstance(value, dict | list):  # whose repr may take a tenth of a second
        return kind_of(value)
    text = repr(value)
    return text if len(text) <= 60 else kind_of(value)  # noqa: PLR2004 - one glance


def kind_of(value: object) -> str:
    """Return the name of a value's JSON type."""
    words: tuple[tuple[type | tuple[type, ...], str], ...] = (
        (bool, "true or false"),
        ((int, float), "a number"),
        (str, "a string"),
        (list, "a list"),
        (dict, "an object"),
        (type(None), "null"),
    )
    return next((word for kind, word in words if isinstance(value, kind)), type(value).__name__)
