"""JSON's null in what clients send: a field that is null is absent, at every depth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_DATA = frozenset({"const", "default", "enum", "example", "examples"})
"""Keywords of JSON Schema under which null is a value like any other."""
_TEXT = frozenset({"content"})
"""A message's field: null is an empty text there, while a message without it lacks one."""
_FREE = frozenset({"arguments", "lora", "logit_bias"})
"""Fields whose values have keys that the caller chose: null may mean something there."""
_FREE_OBJECTS = frozenset({"input"})
"""Fields of which that holds where they are objects: the arguments of Anthropic's calls of tools."""
_DATA_OR_FREE = _DATA | _FREE
_BY_NAME = frozenset({"properties", "patternProperties", "dependentSchemas", "$defs", "definitions"})
"""Objects of JSON Schema whose keys are names that the caller chose, and no keywords."""

_PLAIN = frozenset({str, int, float, bool, type(None)})


def without_nulls(value: Any) -> Any:
    """Return `value` without fields that are null, mappings as dicts and sequences as lists; elements of lists stay.

    What is data and not a field stays as it is: `const`, `default`, `enum` and `examples` of a schema, the arguments of a
    tool call, the scales of `lora`, and a message's `content`.
    """
    return _clean(value, names=False)


def _clean(value: Any, *, names: bool) -> Any:
    """Return `value` without nulls; with `names`, its own keys are names that the caller chose."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, Mapping):
        return {
            key: item if not names and _is_free(key, item) else _clean(item, names=not names and key in _BY_NAME)
            for key, item in value.items()
            if item is not None or (not names and key in _DATA | _TEXT)
        }
    if isinstance(value, list | tuple):
        if _PLAIN.issuperset(map(type, value)):  # a million token ids are not looked at one by one
            return list(value)
        return [_clean(item, names=False) for item in value]
    return value


def _is_free(key: object, item: object) -> bool:
    """Whether null may mean something at every depth of a field."""
    return key in _DATA_OR_FREE or (key in _FREE_OBJECTS and isinstance(item, Mapping))
