"""JSON texts that every reader takes: numbers are finite, and what cannot be written as UTF-8 is escaped."""

from __future__ import annotations

import json
import math
from typing import Any


def read_json(text: str) -> Any:
    """Return the value of a JSON text; ValueError for NaN, infinities and numbers beyond 1.8e308 too."""
    return json.loads(text, parse_constant=_finite, parse_float=_finite)


def write_json(value: Any) -> str:
    """Return a value as JSON: characters as they are, in ASCII where half of a surrogate pair is among them."""
    text = json.dumps(value, ensure_ascii=False)
    return text if is_unicode(text) else json.dumps(value)


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: it has no half of a surrogate pair, as JSON's escapes may have."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value
