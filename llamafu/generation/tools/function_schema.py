"""Describing a Python function as a tool: its signature and its docstring as a JSON Schema."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

_PLAIN: dict[Any, dict[str, Any]] = {
    inspect.Parameter.empty: {},
    Any: {},
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
    list: {"type": "array"},
    dict: {"type": "object"},
}
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}
_LEGAL = "str, int, float, bool, None, list, dict, Literal, Annotated and unions of these"
_PARAMETER = re.compile(
    r"\s*(?:[-*] )?(?::param\s+(?:[^:]*\s)?(?P<sphinx>\w+):|`?(?P<name>\w+)`?(?:\s*\([^)]*\))?:)\s+(?P<text>.*)"
)
"""A line of a docstring that begins what it says of a parameter: `name: text`, `name (type): text`, `:param name: text`."""


def describe(function: Callable[..., Any]) -> dict[str, Any]:
    """Return a function as a tool in OpenAI's form. TypeError for one that a model cannot call."""
    name = getattr(function, "__name__", "")
    if not inspect.isroutine(function) or not name.isidentifier():
        message = f"{function!r} is no function with a name; give functions that were made by def"
        raise TypeError(message)
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        message = f"{name} is asynchronous; give a plain function, which may run an event loop of its own"
        raise TypeError(message)
    try:
        parameters = inspect.signature(function).parameters
        hints = get_type_hints(function, include_extras=True)
    except (NameError, TypeError, ValueError, SyntaxError) as error:
        message = f"{name}: its signature cannot be read: {error}"
        raise TypeError(message) from error
    about, told = _docstring_of(function, parameters)
    properties: dict[str, Any] = {}
    for parameter in parameters.values():
        if parameter.kind not in {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}:
            message = (
                f"{name}: the parameter {parameter.name!r} cannot be given by its name, as a model does; make it a plain one"
            )
            raise TypeError(message)
        schema = _schema_of(hints.get(parameter.name, inspect.Parameter.empty), f"{name}: the parameter {parameter.name!r}")
        properties[parameter.name] = {**schema, **({"description": told[parameter.name]} if parameter.name in told else {})}
    required = [each.name for each in parameters.values() if each.default is inspect.Parameter.empty]
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": about, "parameters": schema}}


def mismatch(value: object, schema: Mapping[str, Any], where: str) -> str | None:
    """Return what is wrong with a JSON value by a schema as `describe` makes them, None where nothing is."""
    if "anyOf" in schema:
        if any(mismatch(value, each, where) is None for each in schema["anyOf"]):
            return None
        return f"{where} is {value!r}; give {' or '.join(_words(each) for each in schema['anyOf'])}"
    if "enum" in schema:
        fits = any(value == each and type(value) is type(each) for each in schema["enum"])
        return None if fits else f"{where} is {value!r}; give {_words(schema)}"
    if "type" not in schema:
        return None
    if not isinstance(value, _TYPES[schema["type"]]) or (isinstance(value, bool) and schema["type"] != "boolean"):
        return f"{where} is {value!r}; give {_words(schema)}"
    inner: list[tuple[object, Any, str]] = []
    if isinstance(value, list):
        inner = [(each, schema.get("items", {}), f"{where}[{index}]") for index, each in enumerate(value)]
    elif isinstance(value, dict) and isinstance(schema.get("additionalProperties"), Mapping):
        inner = [(each, schema["additionalProperties"], f"{where}.{name}") for name, each in value.items()]
    return next(filter(None, (mismatch(*each) for each in inner)), None)


def _words(schema: Mapping[str, Any]) -> str:
    return " or ".join(map(repr, schema["enum"])) if "enum" in schema else str(schema.get("type", "any value"))


def _schema_of(annotation: Any, where: str) -> dict[str, Any]:
    """Return the JSON Schema of a type; TypeError for one that JSON has no form for."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and annotation in _PLAIN:
        return dict(_PLAIN[annotation])
    if origin is Annotated:
        told = next((each for each in arguments[1:] if isinstance(each, str)), None)
        return {**_schema_of(arguments[0], where), **({} if told is None else {"description": told})}
    if origin is Literal and all(isinstance(each, str | int | bool | None) for each in arguments):
        return {"enum": list(arguments)}
    if origin in {Union, types.UnionType}:
        return {"anyOf": [_schema_of(each, where) for each in arguments]}
    if origin in {list, Sequence}:
        return {"type": "array", "items": _schema_of(arguments[0], where)}
    if origin in {dict, Mapping} and arguments[0] is str:
        return {"type": "object", "additionalProperties": _schema_of(arguments[1], where)}
    message = f"{where} has the type {annotation!r}, which a model cannot give; use {_LEGAL}"
    raise TypeError(message)


def _docstring_of(function: Callable[..., Any], parameters: Collection[str]) -> tuple[str, dict[str, str]]:
    """Return the first paragraph of a docstring, and what it says of each parameter."""
    lines = (inspect.getdoc(function) or "").splitlines()
    about: list[str] = []
    told: dict[str, str] = {}
    current, depth, is_first = "", 0, True
    for line in lines:
        found = _PARAMETER.match(line)
        name = (found["sphinx"] or found["name"]) if found else ""
        indent = len(line) - len(line.lstrip())
        if found and name in parameters:
            current, depth, is_first = name, indent, False
            told[name] = found["text"].strip()
        elif not line.strip():
            current, is_first = "", False
        elif current and indent > depth:
            told[current] += f" {line.strip()}"
        elif is_first:
            about.append(line.strip())
        else:
            current = ""
    return " ".join(about), told
