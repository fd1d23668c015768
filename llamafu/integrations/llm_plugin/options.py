"""The options of a generation as `llm` has options: a pydantic class, made of what Llamafu knows of each."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

import llm
from pydantic import BeforeValidator, Field, create_model

from llamafu.generation.options import OPTION_SPECS

if TYPE_CHECKING:
    from llamafu.generation.option_spec import OptionSpec

_TYPES: dict[str, Any] = {"int": int, "float": float, "bool": bool, "text": str, "texts": str}


def _read_json(given: Any) -> Any:
    """Return what a text of the command line says in JSON; anything else as it is."""
    return json.loads(given) if isinstance(given, str) else given


_Scales = Annotated[dict[str, float], BeforeValidator(_read_json)]


@cache
def options_class() -> type[llm.Options]:
    """Return the class: every option that the command line of Llamafu has too, with its limits and meaning, and `lora`."""
    fields: dict[str, Any] = {spec.name: (_TYPES[spec.kind] | None, _field(spec)) for spec in OPTION_SPECS if spec.flag}
    meaning = 'scales of adapters as JSON, such as {"pirate": 0.5}; {} is the base model'
    fields["lora"] = (_Scales | None, Field(default=None, description=meaning))
    made: type[llm.Options] = create_model("Options", __base__=llm.Options, **fields)
    return made


def _field(spec: OptionSpec) -> Any:
    above, least = (spec.low, None) if spec.above else (None, spec.low)
    return Field(default=None, description=spec.doc, gt=above, ge=least, le=spec.high)
