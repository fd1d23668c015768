"""Grammar rules for the JSON values that hold no other schemas: strings, numbers, true, false, null, listed values."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from llamafu.grammar.pattern import emit, limit_length
from llamafu.grammar.regex import FORMATS, parse_pattern
from llamafu.grammar.rules import MAX_REPETITIONS, integers, literal
from llamafu.grammar.schema import BOUNDS, Schema, canonical, join, refuse, type_of, types

if TYPE_CHECKING:
    from llamafu.grammar.rules import Rules

COMMA = '"," ws'
QUOTE = r'"\x22"'
_INTEGER_DIGITS = 19
SCALARS = {  # each type's rule, then those that it needs
    "string": {
        "string": r'"\x22" char* "\x22"',
        "char": r'[ !#-\x5B\x5D-\uD7FF\uE000-\U0010FFFF] | "\x5C" escape',
        "escape": r'[\x22\x5C/bfnrt] | "u" unit',
        "unit": r'[0-9abcefABCEF] hex{3} | [dD] [0-7] hex{2} | [dD] [89abAB] hex{2} "\x5Cu" [dD] [c-fC-F] hex{2}',
        "hex": "[0-9a-fA-F]",
    },
    "number": {
        "number": '"-"? integral fraction? | "-"? [1-9] fraction? [eE] exponent',
        "integral": '"0" | [1-9] [0-9]{0,18}',
        "fraction": '"." [0-9]{1,20}',
        "exponent": '"+"? power | "-" [0-9]{1,3}',
        "power": '[0-9]{1,2} | [12] [0-9]{2} | "30" [0-7]',
    },
    "integer": {"integer": '"0" | "-"? [1-9] [0-9]{0,18}'},
    "boolean": {"boolean": '"true" | "false"'},
    "null": {"null": '"null"'},
}


def scalar(rules: Rules, name: str) -> str:
    """Return the fixed rule `name`, with those that it needs."""
    for part, body in SCALARS[name].items():
        rules.define(part, body)
    return name


def string(rules: Rules, flat: Schema, path: str) -> str:
    """Return the body for any string of the right length, or for one that matches `pattern` or `format`."""
    low, high = limits(flat, "minLength", "maxLength", path)
    pattern = _pattern(flat, path)
    if pattern is None:
        scalar(rules, "string")
        return f"{QUOTE} {rules.repeat('char', low, high)} {QUOTE}"
    node = limit_length(parse_pattern(pattern, join(path, "pattern")), low, high)
    if node is None:
        keyword = "minLength" if "minLength" in flat else "maxLength"
        refuse(join(path, keyword), f"cannot be joined with pattern {pattern!r}; put the length into its quantifiers")
    return f"{QUOTE} {emit(node, rules)} {QUOTE}"


def _pattern(flat: Schema, path: str) -> str | None:
    if "format" not in flat:
        return flat.get("pattern")
    if flat["format"] not in FORMATS:
        refuse(join(path, "format"), f"{flat['format']!r} is not supported; supported are {', '.join(FORMATS)}")
    if "pattern" in flat:
        refuse(join(path, "format"), "cannot be joined with pattern; leave out one of them")
    return FORMATS[flat["format"]]


def integer(rules: Rules, flat: Schema, path: str) -> str:
    """Return the body for exactly the integers within the bounds."""
    lows = [math.ceil(flat["minimum"])] if "minimum" in flat else []
    lows += [math.floor(flat["exclusiveMinimum"]) + 1] if "exclusiveMinimum" in flat else []
    highs = [math.floor(flat["maximum"])] if "maximum" in flat else []
    highs += [math.ceil(flat["exclusiveMaximum"]) - 1] if "exclusiveMaximum" in flat else []
    if not lows and not highs:
        return scalar(rules, "integer")
    farthest = 10 ** max(_INTEGER_DIGITS, *(len(str(bound)) + 1 for bound in lows + highs)) - 1
    low, high = max(lows, default=-farthest), min(highs, default=farthest)
    if low > high:
        refuse(path, f"no integer lies between {low} and {high}")
    return integers(low, high)


def number(rules: Rules, flat: Schema, path: str) -> str:
    """Return the body for any number; bounds on decimal fractions are not for grammars."""
    for keyword in BOUNDS:
        if keyword in flat:
            refuse(join(path, keyword), f"{keyword} is supported for integers only; use type integer, or leave it out")
    return scalar(rules, "number")


def enumeration(flat: Schema, path: str) -> str:
    """Return alternatives for the values of `enum` that have a right type."""
    for keyword in flat.keys() - {"enum", "type"}:
        refuse(join(path, keyword), f"{keyword} beside enum or const is not supported; list only the values that it allows")
    kinds = {*types(flat), *(["integer"] if "number" in types(flat) else [])}
    values = {canonical(value): value for value in flat["enum"] if type_of(value) in kinds}
    if not values:
        refuse(join(path, "enum"), f"none of {flat['enum']!r} has the type {flat['type']!r}")
    return " | ".join(_constant(value, path) for value in values.values())


def limits(flat: Schema, least: str, most: str, path: str) -> tuple[int, int | None]:
    """Return the values of two counting keywords, the second None where there is no limit."""
    low, high = flat.get(least, 0), flat.get(most)
    if max(low, high or 0) > MAX_REPETITIONS:
        refuse(join(path, least if low > MAX_REPETITIONS else most), f"more than {MAX_REPETITIONS} is not supported")
    if high is not None and low > high:
        refuse(join(path, least), f"{low} is above {most} {high}, so nothing could be generated")
    return low, high


def _constant(value: Any, path: str) -> str:
    """Return exactly `value`, with optional spaces inside lists and objects."""
    match value:
        case list():
            inner = f" {COMMA} ".join(_constant(item, path) for item in value)
            return f'"[" {inner} "]"'
        case dict():
            pairs = (f"{json_literal(key, path, ':')} ws {_constant(item, path)}" for key, item in value.items())
            inner = f" {COMMA} ".join(pairs)
            return f'"{{" {inner} "}}"'
    return json_literal(value, path)


def json_literal(value: Any, path: str, suffix: str = "") -> str:
    """Return the GBNF literal of a value's JSON text, then `suffix`."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except ValueError:
        refuse(path, f"{value!r} cannot be written as JSON")
    return literal(text + suffix)
