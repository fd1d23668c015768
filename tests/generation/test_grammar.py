"""JSON Schema to GBNF: what the grammar lets through is valid, and what should come through does."""

from __future__ import annotations

import json
import random
import time
from itertools import pairwise
from typing import Any

import pytest
from helpers.cpu_time import best_cpu_seconds
from helpers.gbnf_matcher import Grammar
from helpers.schema_oracle import is_valid

from llamafu.errors import GrammarError
from llamafu.generation.grammar import schema_to_gbnf
from llamafu.generation.grammar.compiled import CompiledGrammar
from llamafu.generation.grammar.constraint import Constraint
from llamafu.generation.grammar.keywords import _LEFT_OUT
from llamafu.generation.grammar.vocabulary import Vocabulary
from llamafu.generation.options import Options
from llamafu.generation.sampling import constrain

# Schemas, each with values whose JSON text must be accepted and values that must be refused.
CASES: dict[str, tuple[Any, list[Any], list[Any]]] = {
    "anything": ({}, [None, True, -1.5e-7, "é\n", [], {}, {"a": [{"b": 1}]}, 1e22, 2**63 - 1], []),
    "true": (True, [0, "x"], []),
    "boolean": ({"type": "boolean"}, [True, False], [0, "true", None]),
    "type list": ({"type": ["string", "null"], "minLength": 1}, ["a", None], ["", 1]),
    "number or integer": ({"type": ["integer", "number"]}, [1, 1.5], ["1"]),
    "integer": ({"type": "integer"}, [0, -7, 10**18], [1.5, 10**19]),
    "number": ({"type": "number"}, [0, -0.0, 1.5, 5e-324, 9.9e307, 0.00012345678901234567], ["1", None]),
    "bounds": ({"type": "integer", "minimum": -12, "maximum": 105}, [-12, -1, 0, 99, 100, 105], [-13, 106, 1000, 10.5]),
    "minimum": ({"type": "integer", "minimum": 98}, [98, 99, 100, 10**18], [97, 9, 0, -99]),
    "fractional bounds": ({"type": "integer", "exclusiveMinimum": 0.5, "exclusiveMaximum": 3}, [1, 2], [0, 3]),
    "far bounds": ({"type": "integer", "maximum": -(10**30)}, [-(10**30), -(10**30) - 1], [-(10**30) + 1, -1, 0]),
    "lengths": ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "é語😀", "\\'\n"], ["a", "abcd", 12]),
    "empty only": ({"type": "string", "maxLength": 0}, [""], ["a"]),
    "long": (
        {"type": "string", "minLength": 1001, "maxLength": 3000},
        ["a" * 1001, "a" * 2000, "a" * 2001, "a" * 2999, "a" * 3000],
        ["a" * 1000, "a" * 3001],
    ),
    "long with a rest": ({"type": "string", "maxLength": 2500}, ["", "a" * 2500], ["a" * 2501, "a" * 2999]),
    "enum": ({"enum": ['é"', 1, None, [1, {"a": 2}]]}, ['é"', 1, None, [1, {"a": 2}]], ["é", 2, [1]]),
    "typed enum": ({"type": "integer", "enum": [1, 2.5, "x", True]}, [1], [2.5, "x", True]),
    "const": ({"const": {"kind": "cat", "n": []}}, [{"kind": "cat", "n": []}], [{"kind": "cat"}, {}]),
    "open object": ({"type": "object"}, [{}, {"a": 1}, {"é\n": {}}], [[]]),
    "empty properties": ({"type": "object", "properties": {}, "additionalProperties": False}, [{}], [{"a": 1}]),
    "required": (
        {"properties": {"a": {"type": "null"}, "b": {"type": "null"}, "c": {"type": "null"}}, "required": ["b"]},
        [{"b": None}, {"a": None, "b": None}, {"b": None, "c": None}, {"a": None, "b": None, "c": None}],
        [{}, {"a": None}, {"a": None, "c": None}, {"b": 1}, {"b": None, "d": None}],
    ),
    "all optional": (
        {"properties": {"a": {}, "b": {}, "c": {}}},
        [{}, {"a": 1}, {"b": 1}, {"c": 1}, {"a": 1, "c": 1}, {"b": 1, "c": 1}, {"a": 1, "b": 1, "c": 1}],
        [{"d": 1}, []],
    ),
    "extra": (
        {"properties": {"ab": {"type": "integer"}, "a\n": False}, "additionalProperties": {"type": "null"}},
        [{"ab": 1}, {"ab": 1, "abc": None, "": None}, {"a": None}, {"ac": None}, {"b": None}, {'é"': None}],
        [{"ab": None}, {"a": 1}, {"ab": 1, "x": 2}, {"a\n": None}, {"a\n": 1}],
    ),
    "undeclared required": (
        {"type": "object", "required": ["x"], "additionalProperties": {"type": "integer"}},
        [{"x": 1}, {"x": 1, "y": 2}],
        [{}, {"y": 1}, {"x": None}],
    ),
    "items": ({"type": "array", "items": {"type": "integer"}}, [[], [1], [1, 2, 3]], [["a"], [1, None]]),
    "counts": ({"type": "array", "minItems": 2, "maxItems": 3}, [[1, "a"], [[], {}, None]], [[], [1], [1, 2, 3, 4]]),
    "exact count": ({"items": {"const": 0}, "minItems": 2, "maxItems": 2}, [[0, 0]], [[0], [0, 0, 0]]),
    "no items": ({"type": "array", "maxItems": 0}, [[]], [[1]]),
    "tuple": (
        {"prefixItems": [{"type": "string"}, {"type": "integer"}], "items": {"type": "null"}, "minItems": 1, "maxItems": 4},
        [["a"], ["a", 1], ["a", 1, None, None]],
        [[], [1], ["a", "b"], ["a", 1, 2], ["a", 1, None, None, None]],
    ),
    "closed tuple": ({"prefixItems": [{"const": 1}, {"const": 2}], "items": False}, [[], [1], [1, 2]], [[2], [1, 2, 3]]),
    "anyOf": ({"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 1}]}, [5, "a"], ["ab", None]),
    "anyOf with false": ({"anyOf": [False, {"const": 1}]}, [1], [2]),
    "oneOf with false": ({"oneOf": [{"type": "null"}, False]}, [None], [2]),
    "anyOf beside": (
        {"type": "object", "properties": {"a": {"type": "integer"}}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        [{"a": 1}, {"b": 1}, {"a": 1, "b": 2}],
        [{}, {"a": "x", "b": 1}],
    ),
    "oneOf by type": ({"oneOf": [{"type": "integer"}, {"type": "null"}]}, [1, None], ["a"]),
    "oneOf by const": (
        {
            "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}],
            "discriminator": {"propertyName": "is"},
            "$defs": {
                "cat": {"type": "object", "properties": {"is": {"const": "cat"}, "lives": {}}, "required": ["is"]},
                "dog": {"type": "object", "properties": {"is": {"const": "dog"}}, "required": ["is"]},
            },
        },
        [{"is": "cat", "lives": 9}, {"is": "dog"}],
        [{"is": "dog", "lives": 9}, {"is": "cow"}, {}],
    ),
    "oneOf by required": (
        {"type": "object", "oneOf": [{"properties": {"a": {}}, "required": ["a"]}, {"required": ["b"]}]},
        [{"a": 1}, {"b": 1}],
        [{}, {"a": 1, "b": 1}],
    ),
    "oneOf by closing": (
        {
            "oneOf": [
                {"required": ["a"], "properties": {"a": {}}, "additionalProperties": {}},
                {"properties": {"a": False}, "additionalProperties": {"type": "null"}, "type": "object"},
            ]
        },
        [{"a": 1}, {"a": 1, "b": 2}, {}, {"b": None}],
        [{"b": 1}],
    ),
    "allOf": (
        {
            "allOf": [{"$ref": "#/definitions/base"}, {"properties": {"b": {"maxLength": 2}}, "required": ["b"]}],
            "properties": {"c": {"type": "null"}},
            "definitions": {"base": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}},
        },
        [{"a": 1, "b": "x"}, {"b": "xy", "c": None}],
        [{"a": 1}, {"b": "xyz"}, {"b": 1}, {"b": "", "d": 1}],
    ),
    "allOf closes": (
        {"allOf": [{"properties": {"a": {}}, "additionalProperties": False}, {"properties": {"b": {}}}]},
        [{}, {"a": 1}],
        [{"b": 1}],
    ),
    "list": (
        {"$ref": "#/$defs/node", "$defs": {"node": {"properties": {"v": {"type": "null"}, "next": {"$ref": "#/$defs/node"}}}}},
        [{}, {"v": None, "next": {"v": None, "next": {}}}],
        [{"next": {"v": "x"}}, {"next": None}],
    ),
    "tree": (
        {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"$ref": "#"}}]},
        [1, [], [1, [2, [[3]]]]],
        ["a", [[None]]],
    ),
    "ref with company": (
        {"$ref": "#/$defs/a~1b%20c", "description": "d", "maxLength": 2, "$defs": {"a/b c": {"type": "string"}}},
        ["", "ab"],
        ["abc", 1],
    ),
    "date": (
        {"format": "date"},
        ["2024-02-29", "1999-12-31", "2000-02-29", "0001-01-01", "0400-02-29"],
        ["2023-02-29", "1900-02-29", "2024-04-31", "24-01-01", "0000-01-01", "0000-02-29", "2024-00-01", "2024-1-01"],
    ),
    "time": ({"format": "time"}, ["23:59:59Z", "00:00:00.125+05:30"], ["24:00:00Z", "12:00:00", "12:60:00Z"]),
    "date-time": ({"format": "date-time"}, ["2024-02-29T12:00:00.5-08:00"], ["2024-02-30T12:00:00Z", "2024-02-28 12:00:00Z"]),
    "uuid": ({"format": "uuid"}, ["123e4567-E89B-12d3-a456-426614174000"], ["123e4567e89b12d3a456426614174000"]),
    "pattern": ({"pattern": r"^[A-Z]\w{2,4}(-\d+)?$"}, ["Abc", "Xabc_-007"], ["abc", "Ab", "Abc-", "Abcdef"]),
    "pattern anywhere": ({"pattern": "a.c|^x"}, ["abc", "--aéc--", "x", "x\n"], ["ac", "a\nc", "ax"]),
    "pattern and length": ({"pattern": "^[A-Z][a-z]*$", "minLength": 2, "maxLength": 3}, ["Ab", "Abc"], ["A", "Abcd", "abc"]),
    "enum beside lengths": ({"enum": ["a", "bc", 7, "d\n"], "minLength": 2}, ["bc", 7, "d\n"], ["a", "d", 8]),
    "enum beside a pattern": ({"type": "string", "enum": ["ax", "bx", 'a"', 1], "pattern": "^a"}, ["ax", 'a"'], ["bx", 1]),
    "enum beside bounds": (
        {"enum": [1, 2, 3, 4, 8, 2.5, "x"], "exclusiveMinimum": 1, "maximum": 4.0, "multipleOf": 2, "type": "number"},
        [2, 4],
        [1, 3, 8, 2.5, "x"],
    ),
    "enum in branches": (
        {"type": "string", "oneOf": [{"const": "a", "title": "A"}, {"enum": ["b", 3]}, {"const": "cc"}], "maxLength": 1},
        ["a", "b"],
        [3, "cc", "c"],
    ),
    "enum in branches beside": (
        {"anyOf": [{"const": {"a": 1}}, {"const": {"a": 1, "b": 2}}], "properties": {"a": {}}, "unevaluatedProperties": False},
        [{"a": 1}],
        [{"a": 1, "b": 2}],
    ),
    "enum of objects": (
        {
            "enum": [{}, {"a": 1}, {"a": "x"}, {"a": 1, "b": 2}, {"a": 2, "bb": None}, []],
            "properties": {"a": {"$ref": "#/$defs/n"}},
            "required": ["a"],
            "additionalProperties": {"anyOf": [{"type": "null"}, {"type": "string"}]},
            "propertyNames": {"maxLength": 2},
            "type": "object",
            "$defs": {"n": {"type": "integer"}},
        },
        [{"a": 1}, {"a": 2, "bb": None}],
        [{}, {"a": "x"}, {"a": 1, "b": 2}, []],
    ),
    "enum of lists": (
        {"enum": [[], [1], [1, 1], [1, 2], ["x", 1], [2, 1, 3]], "uniqueItems": True, "items": {"minimum": 1}, "minItems": 1}
        | {"prefixItems": [{"type": "integer"}], "maxItems": 2},
        [[1], [1, 2]],
        [[], [1, 1], ["x", 1], [2, 1, 3]],
    ),
    "enum of one branch": (
        {"enum": ["a", "bb", 1, 2], "oneOf": [{"type": "string", "maxLength": 1}, {"type": "integer", "maximum": 1}]},
        ["a", 1],
        ["bb", 2],
    ),
    "const beside": ({"const": 3, "type": "integer", "minimum": 3}, [3], [2]),
    "a type that cannot be": ({"type": ["string", "null"], "minLength": 2, "maxLength": 1}, [None], ["", "ab"]),
    "branches that cannot be": (
        {
            "type": "string",
            "anyOf": [{"type": "integer"}, {"$ref": "#/$defs/no"}, {"maxLength": 1}, {"minLength": 3, "maxLength": 2}],
            "$defs": {"no": False},
        },
        ["", "a"],
        [1, "abc"],
    ),
    "branches that cannot be, inside": (
        {
            "$ref": "#/$defs/node",
            "$defs": {
                "node": {"anyOf": [{"$ref": "#/$defs/pair"}, {"$ref": "#/$defs/odd"}, {"type": "null"}]},
                "pair": {"type": "object", "properties": {"left": {"$ref": "#/$defs/node"}}, "required": ["left"]},
                "odd": {"type": "object", "properties": {"l": {"$ref": "#/$defs/node"}, "n": {"const": 1, "minimum": 2}}}
                | {"required": ["l", "n"]},
            },
        },
        [None, {"left": {"left": None}}],
        [{"l": None, "n": 1}, {"left": 1}],
    ),
    "nullable": ({"type": "string", "maxLength": 1, "nullable": True}, ["a", None], ["ab", 1]),
    "nullable, listed": ({"type": "string", "enum": ["a", None], "nullable": True}, ["a", None], ["b"]),
    "nullable, not listed": ({"type": "string", "enum": ["a"], "nullable": True}, ["a"], [None]),
    "nullable reference": (
        {"properties": {"a": {"nullable": True, "allOf": [{"$ref": "#/definitions/b"}]}}, "required": ["a"]}
        | {"definitions": {"b": {"type": "integer", "nullable": False}}},
        [{"a": 1}, {"a": None}],
        [{"a": "x"}, None],
    ),
    "draft-7 tuple": (
        {"type": "array", "items": [{"type": "string"}, {"type": "integer"}], "additionalItems": {"type": "null"}},
        [[], ["a"], ["a", 1], ["a", 1, None, None]],
        [[1], ["a", "b"], ["a", 1, 2]],
    ),
    "draft-7 tuple of two": (
        {"type": "array", "items": [{"type": "string"}, {"type": "integer"}], "minItems": 2.0, "maxItems": 2.0},
        [["a", 1]],
        [["a"], ["a", 1, 2]],
    ),
    "draft-7 without elements": ({"type": "array", "items": [], "additionalItems": False}, [[]], [[1]]),
    "whole floats": ({"type": "string", "minLength": 1.0, "maxLength": 2.0}, ["a", "ab"], ["", "abc"]),
    "different items": (
        {"type": "array", "items": {"enum": ["a", "b", 1, 1.0]}, "uniqueItems": True, "minItems": 1, "maxItems": 2},
        [["a"], ["b", "a"], [1, "b"]],
        [[], ["a", "a"], ["a", "b", 1], ["c"]],
    ),
    "a set": (
        {"items": {"$ref": "#/$defs/c"}, "uniqueItems": True, "type": "array", "$defs": {"c": {"enum": ["r", "g", "b"]}}},
        [[], ["b"], ["b", "r", "g"]],
        [["b", "b"], ["r", "g", "r"]],
    ),
    "different truths": ({"items": {"type": "boolean"}, "uniqueItems": True}, [[], [True, False]], [[True, True]]),
    "listed names": (
        {"type": "object", "propertyNames": {"enum": ["a", "b"]}, "additionalProperties": {"type": "integer"}},
        [{}, {"b": 1}, {"a": 1, "b": 2}],
        [{"c": 1}, {"a": "x"}],
    ),
    "names of a pattern": (
        {"type": "object", "propertyNames": {"pattern": "^x_"}, "additionalProperties": {"type": "integer"}},
        [{}, {"x_": 1, "x_a": 2}],
        [{"x": 1}, {"x_": "a"}],
    ),
    "names beside properties": (
        {"propertyNames": {"maxLength": 2}, "properties": {"abc": {}, "ab": {"const": 1}}, "additionalProperties": {}},
        [{}, {"ab": 1}],
        [{"abc": 1}, {"ab": 2}],
    ),
    "no names": ({"type": "object", "propertyNames": {"type": "integer"}}, [{}], [{"a": 1}]),
    "JSON text in pattern": ({"pattern": r'^["\\\n\x01/]+$'}, ['"', "\\", "\n", "\x01", "/"], ["n", "\t", "u0001"]),
}  # fmt: skip


def dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


@pytest.mark.parametrize("name", CASES)
def test_cases(name: str) -> None:
    schema, good, bad = CASES[name]
    grammar = Grammar(schema_to_gbnf(schema if isinstance(schema, dict) else json.dumps(schema)))
    for value in good:
        assert is_valid(value, schema, schema), value
        for separators in ((",", ":"), (", ", ": ")):
            text = json.dumps(value, ensure_ascii=False, separators=separators)
            assert grammar.matches(text), text
    for value in bad:
        assert not grammar.matches(dumps(value)), value


@pytest.mark.parametrize("name", CASES)
def test_everything_generated_is_valid(name: str) -> None:
    schema = CASES[name][0]
    grammar = Grammar(schema_to_gbnf(json.dumps(schema)))
    rng = random.Random(name)  # noqa: S311 (test data)
    for _ in range(12 if name.startswith("long") else 60):
        text = grammar.example(rng)
        assert is_valid(json.loads(text), schema, schema), text


def test_free_strings_may_use_any_escape_but_only_whole_characters() -> None:
    grammar = Grammar(schema_to_gbnf({"type": "string", "minLength": 1, "maxLength": 1}))
    for text in (r'"\u00e9"', r'"\ud83d\uDE00"', r'"\/"', '"\x7f"', '"\u2028"'):
        assert grammar.matches(text), text
    for text in (r'"\ud83d"', r'"\ude00"', r'"\ud83d\ud83d"', r'"\x41"', '"\n"', '"\ud800"', '""'):
        assert not grammar.matches(text), text


def test_white_space_is_bounded() -> None:
    grammar = Grammar(schema_to_gbnf({"type": "array", "items": {"type": "object"}}))
    assert grammar.matches('[{"a": 1, "b":2}, {}]')
    for text in ('[{"a":  1}]', "[ ]", '[{"a":1} ]', '[{"a" :1}]', " []", "[]\n", "[{},\n{}]"):
        assert not grammar.matches(text), text


def test_names_and_order_follow_the_schema() -> None:
    text = schema_to_gbnf({"properties": {"first name": {"minLength": 1}, "Zip": {}}, "required": ["Zip", "first name"]})
    assert "document-first-name ::=" in text
    assert text.startswith("root ::= document\n")
    grammar = Grammar(text)
    assert grammar.matches('{"first name":"x","Zip":1}')
    assert not grammar.matches('{"Zip":1,"first name":"x"}')


def test_text_and_dict_give_the_same_grammar_and_annotations_none() -> None:
    plain = {"type": "object", "properties": {"a": {"type": "integer"}}}
    noted = {"$schema": "x", "$id": "y", "title": "t", "default": {}, **plain}
    assert schema_to_gbnf(plain) == schema_to_gbnf(json.dumps(plain)) == schema_to_gbnf(noted)


def test_many_optional_properties_stay_small() -> None:
    names = [f"property_{i}" for i in range(60)]
    text = schema_to_gbnf(
        {"properties": {name: {"type": "null"} for name in names}, "additionalProperties": {"type": "integer"}}
    )
    assert len(text) < 60_000
    grammar = Grammar(text)
    for one, other in pairwise(names[::12]):
        assert grammar.matches(dumps({one: None, other: None, "more": 1}))
    assert not grammar.matches(dumps({names[3]: 1}))


def check(schema: Any, good: list[str], bad: list[str]) -> None:
    """The texts that a schema's grammar takes, and those that it does not."""
    grammar = Grammar(schema_to_gbnf(schema))
    for text in good:
        assert grammar.matches(text), text
    for text in bad:
        assert not grammar.matches(text), text


NUMBERS = {
    "from 0 to 1": ({"type": "number", "minimum": 0, "maximum": 1}, ["0", "1", "0.5", "1.0", "0.999"], ["-0.1", "1.01", "2"]),
    "decimals": ({"minimum": 0.25, "maximum": 12.75}, ["0.25", "0.3", "7", "12.75", "9.99"], ["0.249", "0.2", "12.751", "0"]),
    "between decimals": ({"minimum": 1.25, "maximum": 1.5}, ["1.25", "1.3", "1.50"], ["1.24", "1.2", "1.51", "1"]),
    "exclusive": ({"exclusiveMinimum": 0, "exclusiveMaximum": 0.1}, ["0.01", "0.09999"], ["0", "0.0", "0.1", "0.10"]),
    "negative": ({"minimum": -1.5, "maximum": -0.5}, ["-1.5", "-1", "-0.5", "-0.51"], ["-0.4", "-1.51", "0", "1"]),
    "around 0": ({"minimum": -0.5, "exclusiveMaximum": 0.5}, ["-0.5", "0", "0.49", "-0.1"], ["0.5", "-0.51", "1", "-1"]),
    "only a minimum": ({"type": "number", "exclusiveMinimum": 2.5}, ["2.51", "3", "123456789"], ["2.5", "2.50", "-3", "1"]),
    "only a maximum": ({"maximum": 2.5}, ["2.5", "-70.25", "0"], ["2.51", "3"]),
    "far": ({"minimum": 1e20, "maximum": 1e22}, ["1" + "0" * 20, "5" + "0" * 21], ["9" * 20, "1" + "0" * 23]),
    "cents": ({"type": "number", "multipleOf": 0.01, "minimum": 0}, ["0", "1.25", "3.5"], ["0.001", "-1"]),
    "cents without bounds": ({"type": "number", "multipleOf": 0.01}, ["-1.25", "3.5", "7"], ["0.001"]),
    "quarters": ({"type": "number", "multipleOf": 0.25}, ["1.25", "3", "0.75", "-0.50"], ["0.2", "0.7"]),
    "listed": ({"type": "number", "multipleOf": 0.5, "minimum": -1, "exclusiveMaximum": 1}, ["-1", "0.5", "0"], ["1", "0.25"]),
    "sevens": ({"type": "integer", "multipleOf": 7}, ["0", "7", "-14", "700000"], ["1", "8", "07"]),
    "sevens within": ({"type": "integer", "multipleOf": 7, "minimum": 8, "maximum": 30}, ["14", "21", "28"], ["7", "35", "15"]),
    "whole as number": ({"type": "number", "multipleOf": 1, "minimum": 0.5, "maximum": 3}, ["1", "3"], ["0", "1.5", "4"]),
    "half of integers": ({"type": "integer", "multipleOf": 0.5, "minimum": 0, "maximum": 2}, ["0", "1", "2"], ["0.5", "3"]),
}  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_keep_to_their_bounds(name: str) -> None:
    schema, good, bad = NUMBERS[name]
    check(schema, good, bad)


@pytest.mark.parametrize("step", [3, 29, 299])
def test_multiples_have_an_end_and_never_too_many_alternatives(step: int) -> None:
    pieces = [b"</s>", b"-", *(b"%0*d" % (length, i) for length in (1, 2, 3) for i in range(10**length))]
    vocabulary = Vocabulary(pieces, [0], lambda _: None)
    draw = random.Random(step)  # noqa: S311
    grammar = schema_to_gbnf({"type": "integer", "multipleOf": step})
    for width in (1, 2, 3):
        text, constraint = b"", Constraint(CompiledGrammar(grammar, vocabulary))
        while not constraint.is_complete and any(constraint.allowed()):
            tokens = [token for token in constraint.allowed().tolist() if token]
            token = draw.choice([each for each in tokens if len(pieces[each]) == width and each > 1] or tokens)
            text += pieces[token]
            constraint.accept(token)
        assert len(text) <= 20
        assert int(text) % step == 0


def test_a_schema_joined_with_itself_stays_small() -> None:
    definitions: dict[str, Any] = {"t0": {"type": "object", "properties": {"a": {"const": 1}}}}
    definitions |= {f"t{i}": {"allOf": [{"$ref": f"#/$defs/t{i - 1}"}, {"$ref": f"#/$defs/t{i - 1}"}]} for i in range(1, 41)}
    begun = time.process_time()
    check({"$ref": "#/$defs/t40", "$defs": definitions}, ['{"a":1}'], ['{"a":2}'])
    for i in range(1, 41):
        definitions[f"t{i}"]["allOf"][1] = {"allOf": [{"$ref": f"#/$defs/t{i - 1}"}]}
    with pytest.raises(GrammarError, match="more than 100,000 steps"):
        schema_to_gbnf({"$ref": "#/$defs/t40", "$defs": definitions})
    assert time.process_time() - begun < 4


@pytest.mark.parametrize(
    "given", [{"json_schema": wrong} for wrong in ([], True, False, 5)] + [{"grammar": 5}, {"grammar": b""}]
)
def test_what_is_neither_schema_nor_grammar_is_named(given: Any) -> None:
    with pytest.raises(GrammarError, match=r"^(json_schema|grammar): .* is no "):
        constrain(None, Options(**given))  # type: ignore[arg-type]


def test_what_is_not_enforced_is_taken_and_named_once(caplog: Any) -> None:
    _LEFT_OUT.clear()
    check({"format": "email"}, ['"a.b@example.org"'], ['"a@b"', '"@example.org"', '"a b@example.org"'])
    check({"format": "ipv4"}, ['"127.0.0.1"'], ['"127.0.0"', '"256.0.0.1"'])
    check({"format": "uri"}, ['"https://example.org/a/b?c=d#e"'], ['"example"'])
    check({"format": "duration"}, ['"P1D"', '"PT5M"'], ['"P"', '"5M"'])
    check({"format": "email", "maxLength": 3}, ['"abc"'], ['"abcd"'])
    check({"format": "date", "pattern": "^2"}, ['"2"', '"2x"'], ['"1"'])
    check({"format": "date", "enum": ["x"]}, ['"x"'], ['"y"'])
    check({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, ["[1,1]"], ['["a"]'])
    check({"items": {"enum": [*range(9)]}, "uniqueItems": True}, ["[1,1]"], ["[9]"])
    check({"items": {"type": "integer"}, "uniqueItems": True, "maxItems": 1}, ["[1]"], ["[1,1]"])
    for _ in range(2):
        check({"type": "string", "format": "idn-hostname", "contentEncoding": "base64"}, ['"?"'], [])
    notes = {"x-order": 3, "$anchor": "here", "contentMediaType": "text/plain", "externalDocs": {}, "example": 1}
    check({"type": "object", "properties": {"a": {"type": "null", **notes}}, **notes}, ['{"a":null}'], ['{"a":1}'])
    named = [record.getMessage() for record in caplog.records]
    words = ("idn-hostname", "contentEncoding", "email", "beside enum", "uniqueItems", "x-order")
    assert [sum(word in line for line in named) for word in words] == [1, 1, 1, 1, 1, 0]


def test_unevaluated_properties_are_those_that_nothing_speaks_about() -> None:
    base = {"$defs": {"named": {"properties": {"name": {"type": "string"}}, "required": ["name"]}}}
    closed = {**base, "type": "object", "allOf": [{"$ref": "#/$defs/named"}], "properties": {"n": {"type": "integer"}}}
    closed["unevaluatedProperties"] = False
    check(closed, ['{"name":"x","n":1}', '{"name":"x"}'], ['{"name":"x","m":1}', '{"n":1}'])
    typed = {"type": "object", "properties": {"n": {"type": "integer"}}, "unevaluatedProperties": {"type": "null"}}
    check(typed, ['{"n":1,"m":null}', "{}"], ['{"m":1}'])
    branches = [{"properties": {"a": {"const": 1}}, "required": ["a"]}, {"properties": {"b": {"const": 2}}, "required": ["b"]}]
    check(
        {"type": "object", "anyOf": branches, "unevaluatedProperties": False}, ['{"a":1}', '{"b":2}'], ['{"a":1,"b":2}', "{}"]
    )
    check({"type": "array", "prefixItems": [{"const": 1}], "unevaluatedItems": False}, ["[1]", "[]"], ["[1,2]", "[2]"])


def test_an_anchor_is_a_reference_too() -> None:
    check(
        {"$defs": {"x": {"$anchor": "here", "type": "null"}}, "items": {"$ref": "#here"}, "type": "array"}, ["[null]"], ["[1]"]
    )


def test_thousands_of_branches_told_apart_are_no_trouble() -> None:
    kinds = [{"type": "object", "properties": {"k": {"const": i}}, "required": ["k"]} for i in range(3000)]
    assert schema_to_gbnf({"oneOf": kinds}).count("k-pair") > len(kinds)
    values = [{"const": i, "title": "t"} for i in range(6000)]
    check({"oneOf": [*values, {"type": "string", "maxLength": 1}]}, ["5999", '"a"'], ["6000"])
    check({"oneOf": values, "minimum": 5000, "type": "integer"}, ["5000"], ["4999"])
    assert best_cpu_seconds(lambda: schema_to_gbnf({"oneOf": kinds}), 1) < 2
    assert best_cpu_seconds(lambda: schema_to_gbnf({"oneOf": values}), 1) < 0.5


def test_thousands_of_branches_that_nothing_tells_apart_are_refused_at_once() -> None:
    kinds = [{"type": "object", "properties": {f"k{i}": {}}, "required": [f"k{i}"]} for i in range(6000)]

    def refused() -> None:
        with pytest.raises(GrammarError, match="6,000 branches of oneOf are too many to compare"):
            schema_to_gbnf({"oneOf": kinds})

    assert best_cpu_seconds(refused, 1) < 2


@pytest.mark.parametrize("length", [20, 400, 20_000])
def test_keys_beside_thousands_of_long_ones_cost_little(length: int) -> None:
    letters = random.Random(length)  # noqa: S311
    names = [f"{i:04}" + "".join(letters.choices("abcdef", k=length)) for i in range(1500 if length < 1000 else 20)]
    schema = {"type": "object", "properties": dict.fromkeys(names, True), "additionalProperties": {"type": "null"}}

    def compiled() -> None:
        try:
            grammar.append(schema_to_gbnf(schema))
        except GrammarError as error:
            assert "bytes" in str(error)  # noqa: PT017 - either is well

    grammar: list[str] = []
    assert best_cpu_seconds(compiled, 1) < 3
    assert grammar or length == 400


def test_an_undeclared_key_is_never_a_declared_one_however_long() -> None:
    names = ["abc", "a" * 63, "a" * 64, "a" * 65, "b" * 200]
    schema = {"type": "object", "properties": dict.fromkeys(names, False), "additionalProperties": {"type": "null"}}
    shown = ["ab", "abcd", "a" * 62, "b" * 20 + "c", "b" * 63, "x" * 300]
    check(schema, [dumps({name: None}) for name in shown], [dumps({name: None}) for name in names])


def test_patterns_beside_many_values_have_a_bound() -> None:
    schema = {"enum": [f"{i:06}" + "a" * 200 for i in range(20_000)], "pattern": "(a|a)*b"}

    def refused() -> None:
        with pytest.raises(GrammarError, match="more than 1,000,000 steps"):
            schema_to_gbnf(schema)

    assert best_cpu_seconds(refused, 1) < 5


def test_counts_beyond_what_is_counted_are_lowered() -> None:
    check({"type": "string", "maxLength": 2**31 - 1}, ['""', dumps("a" * 3000)], ["1"])
    check({"type": "array", "maxItems": 1e300, "items": {"const": 0}}, ["[]", "[0,0]"], ["[1]"])


REFUSED = {
    "number bounds": ({"properties": {"p": {"type": "number", "minimum": 1, "exclusiveMaximum": 1}}}, "#/properties/p: no"),
    "multipleOf": ({"type": "integer", "multipleOf": 7, "minimum": 3}, "#/multipleOf: 7 is supported with both bounds"),
    "no multiple": ({"type": "number", "multipleOf": 0.5, "minimum": 0.1, "maximum": 0.4}, "#: no multiple of 0.5"),
    "illegal multipleOf": ({"type": "integer", "multipleOf": 0}, "#/multipleOf: 0.*above 0"),
    "far maximum": ({"type": "number", "maximum": -1e300}, "#/maximum: a bound beyond 1e100"),
    "far minimum": ({"type": "integer", "minimum": 10**400}, "#/minimum: a bound beyond 1e100"),
    "listed twice": ({"oneOf": [{"const": 1}, {"enum": [1, 2]}]}, "#/oneOf: oneOf branches 0 and 1 might"),
    "deep pattern": ({"pattern": "(" * 5000}, "nested too deep"),
    "long enum": ({"enum": [f"{i:0100}" for i in range(12000)]}, "more than 1,000,000 bytes"),
    "uniqueItems": ({"type": "array", "uniqueItems": 1}, "#/uniqueItems: 1.*true or false"),
    "too few different items": (
        {"items": {"enum": [1, 2]}, "uniqueItems": True, "minItems": 3},
        "#/minItems: 3 different items are wanted, but only 2",
    ),
    "not": ({"items": {"not": {}}}, "#/items/not: "),
    "if": ({"if": {}, "then": {}}, "#/if: "),
    "patternProperties": ({"$ref": "#/$defs/a", "$defs": {"a": {"patternProperties": {}}}}, r"#/\$defs/a/patternProperties: "),
    "dependentSchemas": ({"anyOf": [{}, {"dependentSchemas": {}}]}, "#/anyOf/1/dependentSchemas: "),
    "contains": ({"allOf": [{"contains": {}}]}, "#/allOf/0/contains: "),
    "names and required": ({"propertyNames": {"maxLength": 1}, "required": ["ab"]}, "#/required: 'ab' is required, but"),
    "no branch": ({"type": "null", "anyOf": [{"minLength": 1, "type": "string"}, False]}, "#/anyOf: .*of 2.*in common"),
    "an optional part that cannot be": (
        {"properties": {"a": {"type": "null"}}, "oneOf": [{}, {"type": "object", "properties": {"a": {"type": "integer"}}}]},
        "#/oneOf/1/properties/a: .*nothing in common",
    ),
    "no type": ({"type": ["string", "array"], "maxLength": 1, "minLength": 2, "items": False, "minItems": 1}, "#: .*of 2"),
    "fraction of a count": ({"minItems": 1.5}, "#/minItems: 1.5.*integer of 0 or more"),
    "nullable": ({"type": "string", "nullable": "yes"}, "#/nullable: 'yes'.*true or false"),
    "typo": ({"tpye": "string"}, "#/tpye: "),
    "odd path": ({"properties": {"a/b": {"contains": {}}}}, "#/properties/a~1b/contains: "),
    "list items": ({"items": [1]}, "#/items: .*or a list of them"),
    "illegal type": ({"type": "text"}, "#/type: 'text'.*one of object, array"),
    "illegal length": ({"minLength": -1}, "#/minLength: -1.*integer of 0 or more"),
    "illegal bound": ({"type": "integer", "exclusiveMinimum": True}, "#/exclusiveMinimum: True.*finite number"),
    "illegal required": ({"required": "a"}, "#/required: 'a'.*list of strings"),
    "no schema": ({"properties": {"a": 1}}, "#/properties: "),
    "empty anyOf": ({"anyOf": []}, "#/anyOf: "),
    "enum and length": ({"enum": ["a"], "minLength": 2}, r"#/enum: none of \['a'\] is valid .*\(minLength\)"),
    "enum of other type": ({"enum": ["a"], "type": "null"}, "#/enum: "),
    "enum not JSON": ({"enum": ["\ud800"]}, "#: .*JSON"),
    "false": ({"properties": {"a": False}, "required": ["a"]}, "#/required: 'a'"),
    "lengths": ({"minLength": 3, "maxLength": 2}, "#/minLength: 3 is above maxLength 2"),
    "far too long": ({"minLength": 10**7}, "#/minLength: more than 1000000 is not supported"),
    "bounds": ({"type": "integer", "minimum": 1.2, "maximum": 1.8}, "#: no integer"),
    "items": ({"prefixItems": [{}], "items": False, "minItems": 2}, "#/minItems: "),
    "remote": ({"$ref": "https://example.org/x"}, r"#/\$ref: .*#/\$defs/name"),
    "lost": ({"$ref": "#/$defs/x"}, r"#/\$ref: .*nothing"),
    "circle": ({"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/b"}]}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "itself"),
    "circle in allOf": ({"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"}, "itself"),
    "oneOf": ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "#/oneOf: oneOf branches 0 and 1 .*anyOf"),
    "oneOf untyped": ({"oneOf": [{"type": "integer"}, {"properties": {"a": {}}}]}, "#/oneOf: "),
    "oneOf and a shared optional": (
        {"oneOf": [{"type": "object", "properties": {"a": {"const": i}}} for i in (1, 2)]},
        "#/oneOf: ",
    ),
    "oneOf and a shared type": (
        {"oneOf": [{"type": ["object", "null"], "properties": {"a": {"const": i}}, "required": ["a"]} for i in (1, 2)]},
        "#/oneOf: ",
    ),
    "circle beside a type": ({"type": "object", "anyOf": [{"$ref": "#"}]}, "itself"),
    "two patterns": ({"allOf": [{"pattern": "a"}, {"pattern": "b"}]}, "#: .*'pattern'"),
    "two types": ({"allOf": [{"type": "string"}, {"type": "null"}]}, "#: .*nothing in common"),
    "tuple and items": ({"allOf": [{"prefixItems": [{}]}, {"items": {"type": "null"}}]}, "#: .*prefixItems"),
    "look-ahead": ({"pattern": "^(?=a)b$"}, "#/pattern: .*look-ahead"),
    "look-behind": ({"pattern": "(?<!a)b"}, "#/pattern: .*look-behind"),
    "back reference": ({"pattern": r"(a)\1"}, r"#/pattern: .*back reference \\1"),
    "word border": ({"pattern": r"\bword"}, r"#/pattern: .*word border \\b"),
    "Unicode property": ({"pattern": r"\p{L}"}, r"#/pattern: .*Unicode property \\p"),
    "inner ^": ({"pattern": "a(^b)"}, r"#/pattern: .*\^ after"),
    "inner $": ({"pattern": "(a$)b"}, r"#/pattern: .*\$ inside"),
    "open group": ({"pattern": "(a"}, r"#/pattern: .*\( without \)"),
    "open class": ({"pattern": "[a"}, "#/pattern: .*end inside"),
    "closed group": ({"pattern": "a)"}, r"#/pattern: .*unmatched \)"),
    "empty class": ({"pattern": "[]"}, "#/pattern: .*no character"),
    "bad count": ({"pattern": "a{2,1}"}, "#/pattern: .*{n,m}"),
    "two counts": ({"pattern": "a**"}, "#/pattern: .*quantifier after"),
    "flags": ({"pattern": "(?i)a"}, r"#/pattern: .*group \(\?i"),
    "pattern and length": ({"pattern": "^(ab)*$", "maxLength": 5}, "#/maxLength: .*pattern"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_keyword_and_the_path(name: str) -> None:
    schema, message = REFUSED[name]
    with pytest.raises(GrammarError, match=message):
        schema_to_gbnf(schema)


@pytest.mark.parametrize("schema", ["{", "[1]", "3", {"enum": [object()]}, {"enum": [float("nan")]}])
def test_what_is_no_schema_is_refused(schema: Any) -> None:
    with pytest.raises(GrammarError, match=r"^JSON schema: "):
        schema_to_gbnf(schema)


@pytest.mark.parametrize("schema", [{"type": ["x" * 90] * 9}, {"allOf": [{"enum": [*range(900)]}, {"enum": ["a" * 900]}]}])
def test_no_refusal_repeats_a_long_value(schema: Any) -> None:
    with pytest.raises(GrammarError) as caught:
        schema_to_gbnf(schema)
    assert len(str(caught.value)) < 400


def test_endless_nesting_is_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(2000):
        deep = {"items": deep}
    with pytest.raises(GrammarError, match=r"nested too deep|recursion"):
        schema_to_gbnf(deep)
