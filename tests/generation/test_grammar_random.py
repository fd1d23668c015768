"""Random schemas, values, bounds and patterns: the grammar against an independent reading of JSON Schema."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any

from helpers.gbnf_matcher import Grammar
from helpers.schema_oracle import is_valid
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from llamafu.errors import GrammarError
from llamafu.generation.grammar import schema_to_gbnf

if TYPE_CHECKING:
    import random

EVERY = 3 if os.environ.get("LLAMAFU_FUZZ_COUNT") else 1
PROFILE = settings(max_examples=50 * EVERY, deadline=None, derandomize=True)


def dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# Schemas with one valid value each, for hypothesis.
LETTERS = st.text(st.sampled_from('abé"\\\n/😀'), max_size=4)
KEYS = st.text(st.sampled_from('ab"é'), max_size=2)


def scalar_pairs() -> st.SearchStrategy[tuple[Any, Any]]:
    bounded = st.tuples(st.integers(-2000, 2000), st.integers(0, 3000), st.integers(0, 3000)).map(
        lambda t: ({"type": "integer", "minimum": t[0], "maximum": t[0] + t[1] + t[2]}, t[0] + t[1])
    )
    strings = st.tuples(LETTERS, st.integers(0, 3), st.integers(0, 3)).map(
        lambda t: ({"type": "string", "minLength": max(0, len(t[0]) - t[1]), "maxLength": len(t[0]) + t[2]}, t[0])
    )
    free = st.one_of(
        st.tuples(st.just({"type": "number"}), st.floats(-1e300, 1e300)),
        st.tuples(st.just({"type": "integer"}), st.integers(-(2**63), 2**63)),
        st.tuples(st.just({"type": ["boolean", "null"]}), st.sampled_from([None, True, False])),
        st.tuples(st.just({"type": "string"}), st.text(st.characters(exclude_categories=["Cs"]), max_size=4)),
    )
    listed = st.lists(LETTERS | st.integers(-5, 5) | st.none(), min_size=1, max_size=4).map(lambda v: ({"enum": v}, v[-1]))
    return bounded | strings | free | listed


@st.composite
def array_pairs(draw: Any, inner: st.SearchStrategy[tuple[Any, Any]]) -> tuple[Any, Any]:
    first = draw(st.lists(inner, max_size=2))
    schema, value = draw(inner)
    tail = draw(st.integers(0, 3))
    values = [each for _, each in first] + [value] * tail
    pair = {"type": "array", "items": schema, "minItems": draw(st.integers(0, len(values)))}
    if first:
        pair["prefixItems"] = [each for each, _ in first]
    if draw(st.booleans()):
        pair["maxItems"] = len(values) + draw(st.integers(0, 2))
    return pair, values


@st.composite
def object_pairs(draw: Any, inner: st.SearchStrategy[tuple[Any, Any]]) -> tuple[Any, Any]:
    members = draw(st.dictionaries(KEYS, inner, max_size=4))
    present = {key: draw(st.booleans()) for key in members}
    value = {key: each for key, (_, each) in members.items() if present[key]}
    schema = {"type": "object", "properties": {key: each for key, (each, _) in members.items()}}
    schema["required"] = [key for key in value if draw(st.booleans())]
    extra = draw(st.none() | st.just((False, None)) | inner)
    if extra is not None:
        schema["additionalProperties"] = extra[0]
        if extra[0] is not False:
            value |= {key: extra[1] for key in draw(st.lists(KEYS, max_size=2)) if key not in members}
    return schema, value


def with_choices(inner: st.SearchStrategy[tuple[Any, Any]]) -> st.SearchStrategy[tuple[Any, Any]]:
    chosen = st.tuples(inner, inner).map(lambda t: ({"anyOf": [t[0][0], t[1][0]]}, t[1][1]))
    return array_pairs(inner) | object_pairs(inner) | chosen


PAIRS = st.recursive(scalar_pairs(), with_choices, max_leaves=6)
WRONG = st.sampled_from([None, True, 0, -3, 7, 1.5, 4000, "", "a", "aaaaaaaaa", [], [1], {}, {"a": 1}, {"zz": None}])


def mutated(value: Any, wrong: Any, rng: random.Random) -> Any:
    """Return `value` with one part, chosen at random, replaced, dropped or added."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        change = rng.randrange(3)
        if change == 0:
            return {k: v for k, v in value.items() if k != key}
        return value | ({key: mutated(value[key], wrong, rng)} if change == 1 else {key + "q": wrong})
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        return value[:at] + [[], [mutated(value[at], wrong, rng)], [value[at], wrong]][rng.randrange(3)] + value[at + 1 :]
    return wrong


@PROFILE
@given(PAIRS, WRONG, st.randoms(use_true_random=False))
def test_valid_values_are_accepted_and_invalid_ones_refused(pair: tuple[Any, Any], wrong: Any, rng: random.Random) -> None:
    schema, value = pair
    assert is_valid(value, schema, schema)
    grammar = Grammar(schema_to_gbnf(schema))
    assert grammar.matches(dumps(value))
    for _ in range(5):
        other = mutated(value, wrong, rng)
        if not is_valid(other, schema, schema):
            assert not grammar.matches(dumps(other)), other


@PROFILE
@given(PAIRS, st.randoms(use_true_random=False))
def test_whatever_is_accepted_is_valid_json_and_valid(pair: tuple[Any, Any], rng: random.Random) -> None:
    schema, value = pair
    grammar = Grammar(schema_to_gbnf(schema))
    for _ in range(8):
        made = grammar.example(rng, 8)
        assert grammar.matches(made)
        assert is_valid(json.loads(made), schema, schema), made
        text = dumps(value)
        at = rng.randrange(len(text) + 1)
        broken = text[:at] + rng.choice(["", " ", '"', ",", "0", "\n", "}", "\\u0061", "e"]) + text[at + rng.randrange(2) :]
        if grammar.matches(broken):
            assert is_valid(json.loads(broken), schema, schema), broken


SMALL = st.sampled_from(
    [
        {},
        {"type": "integer"},
        {"type": "number"},
        {"type": "integer", "minimum": 3},
        {"type": "string"},
        {"maxLength": 1},
        {"enum": ["a", 1, None]},
        {"const": "a"},
        {"type": ["string", "integer", "null"]},
        {"anyOf": [{"type": "null"}, {"const": "b"}]},
        {"items": {"type": "integer"}},
        {"prefixItems": [{"type": "null"}]},
        {"type": "array", "minItems": 1},
        {"type": "array", "items": {"enum": [1, 2, "a"]}, "uniqueItems": True},
        {"type": "object", "propertyNames": {"enum": ["a", "d"]}, "additionalProperties": {"type": "null"}},
        {"propertyNames": {"maxLength": 1}},
        {"type": "string", "nullable": True, "minLength": 1},
        {"enum": [{"a": 1}, {"b": "a", "a": None}, ["a"], [None], 3, 3.5, "ab"]},
        False,
    ]
)
OBJECTS = st.fixed_dictionaries(
    {},
    optional={
        "type": st.just("object"),
        "properties": st.dictionaries(st.sampled_from("abc"), SMALL, max_size=2),
        "required": st.lists(st.sampled_from("abc"), max_size=2),
        "additionalProperties": SMALL | st.just(True),
    },
)


@settings(PROFILE, max_examples=170 * EVERY)
@given(
    st.sampled_from(["allOf", "anyOf", "oneOf"]),
    st.lists(SMALL | OBJECTS | OBJECTS.map(lambda schema: schema | {"type": "object"}), min_size=2, max_size=3),
    SMALL | OBJECTS,
    st.randoms(use_true_random=False),
)
def test_joined_schemas_are_kept_to_or_refused(keyword: str, parts: list[Any], beside: Any, rng: random.Random) -> None:
    schema = {**(beside or {}), keyword: parts}
    try:
        grammar = Grammar(schema_to_gbnf(schema))
    except GrammarError:
        return
    for _ in range(6):
        text = grammar.example(rng, 8)
        assert is_valid(json.loads(text), schema, schema), text


@PROFILE
@given(st.integers(-(10**6), 10**6), st.integers(0, 10**4), st.lists(st.integers(-(10**6) - 10**4, 10**6 + 10**4), max_size=20))
@example(-1, 1, [])
@example(0, 10**4, [])
def test_integer_bounds_are_exact(low: int, width: int, others: list[int]) -> None:
    high = low + width
    grammar = Grammar(schema_to_gbnf({"type": "integer", "minimum": low, "maximum": high}))
    for value in (low - 1, low, low + 1, high - 1, high, high + 1, 0, -low, -high, 10 * low, *others):
        assert grammar.matches(str(value)) == (low <= value <= high), value
    for text in ("-0", "00", "01", "+1", "1.0", "-", ""):
        assert not grammar.matches(text)


# Patterns over few letters, in the part of the syntax that Python and ECMAScript share.
ATOMS = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", r"\"", r"\\", r"\n", "é", r"\w", r"\s", r"[\d\x22-]", r"\/"])
COUNTS = st.sampled_from(["", "", "*", "+", "?", "{2}", "{0,2}", "{1,}", "*?", "{0}"])


def compounds(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    sequences = st.lists(inner, max_size=3).map("".join)
    groups = st.tuples(sequences, sequences, st.sampled_from(["(", "(?:"]), COUNTS)
    return sequences | groups.map(lambda t: f"{t[2]}{t[0]}|{t[1]}){t[3]}") | groups.map(lambda t: f"{t[2]}{t[0]}){t[3]}")


PATTERNS = st.recursive(st.tuples(ATOMS, COUNTS).map("".join), compounds, max_leaves=5)
BRANCHES = st.tuples(st.sampled_from(["", "^"]), PATTERNS, st.sampled_from(["", "$"])).map("".join)


@PROFILE
@given(
    st.lists(BRANCHES, min_size=1, max_size=2).map("|".join),
    st.lists(st.text(st.sampled_from('ab"\\\né 1-/'), max_size=6), max_size=8),
)
@example("^(a?)*$", ["", "aa"])
@example("^((a*)(b*))+$", ["abba", "c"])
@example("^(a?b?){2}$", ["", "ab", "abab", "ababa"])
def test_patterns_mean_what_regular_expressions_mean(pattern: str, texts: list[str]) -> None:
    grammar = Grammar(schema_to_gbnf({"type": "string", "pattern": pattern}))
    meaning = re.compile(pattern.replace("$", r"\Z"), re.ASCII)
    for text in texts:
        assert grammar.matches(dumps(text)) == bool(meaning.search(text)), text


@PROFILE
@given(PATTERNS, st.integers(0, 4), st.integers(0, 4), st.lists(st.text(st.sampled_from("ab1"), max_size=6), max_size=8))
def test_pattern_with_lengths_is_exact_or_refused(pattern: str, low: int, more: int, texts: list[str]) -> None:
    schema = {"type": "string", "pattern": f"^(?:{pattern})$", "minLength": low, "maxLength": low + more}
    try:
        grammar = Grammar(schema_to_gbnf(schema))
    except GrammarError as error:
        assume("cannot be joined" in str(error))
        return
    for text in texts:
        assert grammar.matches(dumps(text)) == is_valid(text, schema, schema), text
