"""JSON of long lists, written piece by piece: other threads get their turn in between."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_AT_ONCE = 1000
"""Elements of a list that one call writes: a tenth of a millisecond."""


def json_in_parts(answer: Mapping[str, Any]) -> str:
    """Return an object as JSON, its lists in parts."""
    return "{" + ",".join(f"{_json(name)}:{_value(value)}" for name, value in answer.items()) + "}"


def _value(value: object) -> str:
    if not isinstance(value, list):
        return _json(value)
    parts = (_json(value[start : start + _AT_ONCE])[1:-1] for start in range(0, len(value), _AT_ONCE))
    return "[" + ",".join(parts) + "]"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
