"""Grammar rules for the JSON values that hold no other schemas: strings, numbers, true, false, null, listed values."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from llamafu.generation.grammar.decimals import (
    INTEGER_DIGITS,
    MOST_DIVISOR,
    MOST_LISTED,
    Bound,
    decimal,
    decimals_between,
    multiples,
)
from llamafu.generation.grammar.keywords import BOUNDS, impossible, join, leave_out, refuse
from llamafu.generation.grammar.pattern import emit, limit_length
from llamafu.generation.grammar.regex import FORMATS, parse_pattern
from llamafu.generation.grammar.rules import MAX_REPETITIONS, integers, literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from llamafu.generation.grammar.rules import Rules
    from llamafu.generation.grammar.schema import Schema

COMMA = '"," ws'
QUOTE = r'"\x22"'
_FARTHEST_DIGITS = 100
_FARTHEST = 10**_FARTHEST_DIGITS
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
    """Return the body for any string of the right length, or for one that matches `pattern`, or else `format`."""
    low, high = limits(flat, "minLength", "maxLength", path)
    if "pattern" in flat:
        node = limit_length(parse_pattern(flat["pattern"], join(path, "pattern")), low, high)
        if node is None:
            keyword = "minLength" if "minLength" in flat else "maxLength"
            refuse(
                join(path, keyword), f"cannot be joined with pattern {flat['pattern']!r}; put the length into its quantifiers"
            )
        if "format" in flat:
            leave_out(f"format {flat['format']!r} beside pattern")
        return f"{QUOTE} {emit(node, rules)} {QUOTE}"
    node = limit_length(parse_pattern(FORMATS[flat["format"]], path), low, high) if "format" in flat else None
    if node is not None:
        return f"{QUOTE} {emit(node, rules)} {QUOTE}"
    if "format" in flat:
        leave_out(f"format {flat['format']!r} beside lengths")
    scalar(rules, "string")
    return f"{QUOTE} {rules.repeat('char', low, high)} {QUOTE}"


def integer(rules: Rules, flat: Schema, path: str) -> str:
    """Return the body for exactly the integers within the bounds that `multipleOf` divides."""
    _check_bounds(flat, path)
    lows = [math.ceil(flat["minimum"])] if "minimum" in flat else []
    lows += [math.floor(flat["exclusiveMinimum"]) + 1] if "exclusiveMinimum" in flat else []
    highs = [math.floor(flat["maximum"])] if "maximum" in flat else []
    highs += [math.ceil(flat["exclusiveMaximum"]) - 1] if "exclusiveMaximum" in flat else []
    if "multipleOf" in flat:
        step = Fraction(decimal(flat["multipleOf"])).numerator
        low_bound = Bound(Decimal(max(lows))) if lows else None
        return _multiples(rules, Decimal(step), (low_bound, Bound(Decimal(min(highs))) if highs else None), path)
    if not lows and not highs:
        return scalar(rules, "integer")
    farthest = 10 ** max(INTEGER_DIGITS, *(len(str(bound)) + 1 for bound in lows + highs)) - 1
    low, high = max(lows, default=-farthest), min(highs, default=farthest)
    if low > high:
        impossible(path, f"no integer lies between {low} and {high}")
    return integers(low, high)


def number(rules: Rules, flat: Schema, path: str) -> str:
    """Return the body for decimals within the bounds that `multipleOf` divides; without either also with exponents."""
    _check_bounds(flat, path)
    low = _tightest(max, flat, "minimum", "exclusiveMinimum")
    high = _tightest(min, flat, "maximum", "exclusiveMaximum")
    if "multipleOf" in flat:
        return _multiples(rules, decimal(flat["multipleOf"]), (low, high), path)
    if low is None and high is None:
        return scalar(rules, "number")
    body = decimals_between(rules, low, high)
    if not body:
        impossible(path, "no number lies between its bounds")
    return body


def _check_bounds(flat: Schema, path: str) -> None:
    for keyword in BOUNDS:
        if abs(flat.get(keyword, 0)) > _FARTHEST:
            refuse(
                join(path, keyword), f"a bound beyond 1e{_FARTHEST_DIGITS} is not supported, for each digit makes a rule longer"
            )


def _tightest(choose: Callable[..., Decimal], flat: Schema, plain: str, exclusive: str) -> Bound | None:
    bounds = {decimal(flat[plain]): False} if plain in flat else {}
    if exclusive in flat:
        bounds[decimal(flat[exclusive])] = True
    value = choose(bounds) if bounds else None
    return None if value is None else Bound(value, bounds[value])


def _multiples(rules: Rules, step: Decimal, bounds: tuple[Bound | None, Bound | None], path: str) -> str:
    body = multiples(rules, step, *bounds)
    if body is None:
        why = (
            f"{step} is supported with both bounds and at most {MOST_LISTED} multiples between them, or without a maximum and "
            f"with 0 or no minimum for whole numbers up to {MOST_DIVISOR} and for parts of 1 such as 0.01 or 0.25"
        )
        refuse(join(path, "multipleOf"), why)
    if not body:
        impossible(path, f"no multiple of {step} lies between its bounds")
    return body


def enumeration(values: Iterable[Any], path: str) -> str:
    """Return alternatives for exactly these values."""
    return " | ".join(constant(value, path) for value in values)


def limits(flat: Schema, least: str, most: str, path: str) -> tuple[int, int | None]:
    """Return the values of two counting keywords, the second None where there is no limit.

    A higher one than can be counted to is lowered: what is made stays valid.
    """
    low, high = flat.get(least, 0), flat.get(most)
    if high is not None and low > high:
        impossible(join(path, least), f"{low} is above {most} {high}, so nothing could be generated")
    if low > MAX_REPETITIONS:
        refuse(join(path, least), f"more than {MAX_REPETITIONS} is not supported")
    return low, None if high is None else min(high, MAX_REPETITIONS)


def constant(value: Any, path: str) -> str:
    """Return exactly `value`, with optional spaces inside lists and objects."""
    match value:
        case list():
            inner = f" {COMMA} ".join(constant(item, path) for item in value)
            return f'"[" {inner} "]"'
        case dict():
            pairs = (f"{json_literal(key, path, ':')} ws {constant(item, path)}" for key, item in value.items())
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
