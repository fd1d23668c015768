"""Fields of samplers whose form in a body is another one than in Python: llama-server's, OpenAI's and TabbyAPI's."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BeforeValidator, SkipValidation

from llamafu._util.json_values import shown
from llamafu.generation.logit_bias import check_logit_bias
from llamafu.generation.sampler_order import SAMPLERS
from llamafu.server.schemas.content import Texts
from llamafu.server.schemas.field_types import JsonSchemaOf, must_be, refuse

_LONGEST_ID = 10
"""Digits of a token id."""
_OFF_HERE = frozenset({"infill", "adaptive_p", "tfs_z"})
"""llama-server's samplers that are not here, and that its own default leaves off."""
_LETTERS = {
    "e": "penalties",
    "d": "dry",
    "s": "top_n_sigma",
    "k": "top_k",
    "y": "typical_p",
    "p": "top_p",
    "m": "min_p",
    "x": "xtc",
    "t": "temperature",
    "i": "infill",
    "a": "adaptive_p",
}
"""What llama-server calls samplers in a text that has a letter for each."""
_BIAS = "an object of token ids or texts with numbers, or a list of such pairs"


def _bias(value: object) -> object:
    """Read OpenAI's object, whose keys are ids written as strings, and llama-server's pairs, where false forbids a token."""
    pairs = list(value.items()) if isinstance(value, dict) else value
    if not isinstance(pairs, list):
        raise must_be(_BIAS)
    found: dict[int | str, Any] = {}
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or isinstance(pair[0], list | dict):  # noqa: PLR2004
            refuse([f"logit_bias holds {shown(pair)}; give {_BIAS}"])
        key, number = pair
        if isinstance(value, dict) and key.isascii() and key.isdecimal() and len(key) <= _LONGEST_ID:
            key = int(key)
        if key in found:
            refuse([f"logit_bias holds {shown(key)} twice; give it once"])
        found[key] = number
    try:
        check_logit_bias(found)
    except ValueError as error:
        refuse([str(error)])
    return found


def _breakers(value: object) -> object:
    """Read what TabbyAPI's clients send: a list, or one that is written as JSON text."""
    if isinstance(value, str) and value.startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _samplers(value: object) -> object:
    """Read names, or llama-server's letters, and leave out the names of samplers that would be off."""
    if isinstance(value, str) and value not in SAMPLERS and value and _LETTERS.keys() >= set(value):
        value = [_LETTERS[letter] for letter in value]
    if not isinstance(value, list):
        return value
    return [name for name in value if not (isinstance(name, str) and name in _OFF_HERE)]


Bias = Annotated[
    SkipValidation[dict[int | str, Any]],
    BeforeValidator(_bias),
    JsonSchemaOf(dict[str, float | bool] | list[tuple[int | str, float | bool]]),
]
Breakers = Annotated[Texts, BeforeValidator(_breakers)]
Samplers = Annotated[Texts, BeforeValidator(_samplers)]
