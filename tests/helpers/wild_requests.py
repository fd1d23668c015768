"""Requests as careless, curious and hostile clients send them, made from a seed: grammars, schemas, texts, sampling options."""

import itertools
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

MOST_TEXT = 200_000
"""Characters of the longest run of one character but for a few that fill a body."""
BODY = 3_900_000
RUNS = [
    "A",
    "a",
    " ",
    "\n",
    "\t",
    "1",
    "!",
    "é",
    "漢",
    "😀",
    "\u0301",
    "\u200d",
    "\u00ad",
    "\x01",
    "\x7f",
    "ß",
    "\u0406",
    "\u0627",
    "ก",
    "'s",
]
SCRIPTS = [
    *((0x20, 0x7E), (0xA0, 0x24F), (0x370, 0x3FF), (0x400, 0x4FF), (0x590, 0x5FF), (0x600, 0x6FF), (0x900, 0x97F)),
    *((0xE00, 0xE7F), (0x1100, 0x11FF), (0x3040, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0x1F300, 0x1FAFF)),
    *((0x300, 0x36F), (0x2000, 0x206F), (0xE000, 0xE0FF), (0xFE00, 0xFE0F), (0x10000, 0x1007F), (0xF0000, 0xF00FF)),
]
PIECES = ['"a"', '"ab"', "[a-z]", "[^a]", ".", '"\\n"', '"\\U0001F600"', "other", "root", '""', "[\\x00-\\U0010FFFF]"]
TYPES = ["object", "array", "string", "number", "integer", "boolean", "null"]
BORDERS: dict[str, list[Any]] = {
    "temperature": [0, 1e-30, 1e-7, 0.8, 1, 2, 100, 1e30],
    "top_k": [-1, 0, 1, 2, 40, 2**31 - 1],
    "top_p": [0, 1e-30, 0.5, 0.999999, 1],
    "min_p": [0, 1e-30, 0.5, 0.999999, 1],
    "repeat_penalty": [1e-30, 1e-3, 1, 1.1, 1e3, 1e30],
    "frequency_penalty": [-1e30, -2, 0, 2, 1e30],
    "presence_penalty": [-1e30, -2, 0, 2, 1e30],
    "seed": [0, 1, 2**31, 2**32 - 1],
    "ignore_eos": [True, False],
    "stop": ["a", ["", "a"], ["\n\n", "😀"], ["a" * 5000]],
    "logprobs": [0, 1, 5, 20],
    "n": [1, 2],
    "stream": [True, False],
}


@dataclass(frozen=True)
class Wild:
    """One request: what kind it is of, its path and its body as JSON text."""

    kind: str
    path: str
    body: bytes


def wild_requests(seed: int, count: int, kinds: tuple[str, ...] = ()) -> Iterator[Wild]:
    """Yield `count` requests, of every kind in turn, or of the named ones."""
    makers = {name: make for name, make in KINDS.items() if not kinds or name in kinds}
    shared, of_blocks = random.Random(seed), random.Random(f"{seed} blocks")  # noqa: S311 - no secret, and repeatable
    for kind in itertools.islice(itertools.cycle(makers), count):
        path, body = makers[kind](of_blocks if kind == "blocks" else shared)
        yield Wild(kind, path, body if isinstance(body, bytes) else json.dumps(body).encode())


def _completion(dice: random.Random, **fields: Any) -> tuple[str, dict[str, Any]]:
    if dice.random() < 0.2:
        return "/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 6, **fields}
    return "/v1/completions", {"prompt": "hello", "max_tokens": 6, **fields}


# -- grammars --------------------------------------------------------------------------------------------------------


def _expression(dice: random.Random, depth: int) -> str:
    if depth == 0 or dice.random() < 0.2:
        return dice.choice(PIECES)
    inner = [_expression(dice, depth - 1) for _ in range(dice.randint(1, 3))]
    form = dice.randrange(4)
    if form == 0:
        return " ".join(inner)
    if form == 1:
        return f"({' | '.join(inner)})"
    low = dice.choice([0, 1, 2, 10, 2000])
    return f"({inner[0]}){dice.choice(['?', '*', '+', f'{{{low}}}', f'{{{low},}}', f'{{{low},{low + 3}}}'])}"


def _grammar(dice: random.Random) -> str:
    return f"root ::= {_expression(dice, dice.randint(1, 6))}\nother ::= {_expression(dice, 2)}\n"


def _grammar_random(dice: random.Random) -> tuple[str, Any]:
    return _completion(dice, grammar=_grammar(dice), temperature=dice.choice([0, 1]), ignore_eos=dice.random() < 0.5)


def _grammar_nested(dice: random.Random) -> tuple[str, Any]:
    depth = dice.choice([10, 100, 1000, 60_000])
    left, right = dice.choice([("(", ")"), ("(", ")?"), ("(", ")*"), ("((", ") | (a))"), ('("a" ', ")?"), ("(", "")])
    return _completion(dice, grammar=f'root ::= {left * depth}"a"{right * depth}')


def _grammar_exploding(dice: random.Random) -> tuple[str, Any]:
    count = dice.choice([10, 30, 200, 400, 5000])
    form = dice.choice(
        [
            "root ::= " + '"a"? ' * count,
            f'root ::= ("a"?){{{count}}}',
            f'root ::= (("a"?){{{count}}}){{{count}}}',
            'root ::= (("a"*)*)*',
            'root ::= ("a" | "a")*',
            f"root ::= {' | '.join(['[a-z]*'] * count)}",
            "root ::= " + " ".join(f"r{i}" for i in range(count)) + "\n" + "\n".join(f'r{i} ::= "a"*' for i in range(count)),
            "\n".join(
                ["root ::= r0", *(f"r{i} ::= r{i + 1} r{i + 1}" for i in range(min(count, 60))), f'r{min(count, 60)} ::= "a"?']
            ),
            "root ::= .* .* .* .* .* .*",
            'root ::= root "a" | "a"',
            'root ::= a\na ::= "" b\nb ::= a | "x"',
            'root ::= "x"{0,1000000}',
            'root ::= "x"{99999999999999999999}',
        ]
    )
    return _completion(dice, grammar=form, temperature=dice.choice([0, 1]), ignore_eos=dice.random() < 0.5)


def _grammar_unspellable(dice: random.Random) -> tuple[str, Any]:
    codes = [
        chr(dice.choice([0x40000, 0x10FFFF, 0xE000, 0xD7FF, 0x378, 0xFFFF, 0x1F600, 0x0])) for _ in range(dice.randint(1, 5))
    ]
    text = "".join(codes)
    if dice.random() < 0.5:
        return _completion(dice, json_schema={"const": text}, temperature=dice.choice([0, 1]))
    escaped = "".join(f"\\U{ord(code):08X}" for code in codes)
    return _completion(dice, grammar=f"root ::= {dice.choice([f'[{escaped}]+', chr(34) + escaped + chr(34)])}")


def _grammar_cut(dice: random.Random) -> tuple[str, Any]:
    text = _grammar(dice)
    place = dice.randrange(len(text))
    damaged = dice.choice(
        [text[:place], text[place:], text[:place] + dice.choice(list('"[]{}()|\\:=#\0\n😀')) + text[place + 1 :]]
    )
    return _completion(dice, grammar=damaged)


# -- schemas ---------------------------------------------------------------------------------------------------------


def _schema(dice: random.Random, depth: int) -> Any:
    if depth == 0:
        return dice.choice([True, False, {}, {"type": dice.choice(TYPES)}, {"const": dice.choice([None, 1, 1.5, "x", [], {}])}])
    inner = lambda: _schema(dice, depth - 1)  # noqa: E731 - a name for what is said twenty times
    number = lambda: dice.choice([-1, 0, 0.5, 1, 2, 1e-9, 1e20, 1.7976931348623157e308, -3.25])  # noqa: E731
    size = lambda: dice.choice([0, 1, 2, 100, 10_000, 10**9, 10**30])  # noqa: E731
    shapes: list[Callable[[], Any]] = [
        lambda: {"type": "object", "properties": {f"k{i}": inner() for i in range(dice.randint(0, 4))}, "required": ["k0"]},
        lambda: {"type": "object", "additionalProperties": inner(), "minProperties": size()},
        lambda: {"type": "array", "items": inner(), "minItems": size(), "maxItems": size()},
        lambda: {"type": "array", "prefixItems": [inner(), inner()], "items": inner()},
        lambda: {"type": "number", dice.choice(["minimum", "exclusiveMinimum"]): number(), "maximum": number()},
        lambda: {"type": "integer", "multipleOf": number(), "minimum": number()},
        lambda: {"type": "string", "minLength": size(), "maxLength": size()},
        lambda: {
            "type": "string",
            "pattern": dice.choice(["^a*$", "(a|a)*b", "a{1,1000}{1,1000}", "[", "(?=a)b", r"\p{L}+", "^" + "(a?)" * 50]),
        },
        lambda: {"type": "string", "format": dice.choice(["email", "uri", "date-time", "uuid", "ipv4", "no-such"])},
        lambda: {dice.choice(["anyOf", "oneOf", "allOf"]): [inner(), inner()]},
        lambda: {"not": inner()},
        lambda: {"if": inner(), "then": inner(), "else": inner()},
        lambda: {"enum": [*range(dice.choice([1, 3, 5000]))]},
        lambda: {"$ref": dice.choice(["#", "#/$defs/a", "#/no", "http://example.invalid/x"]), "$defs": {"a": inner()}},
        lambda: {"dependentSchemas": {"a": inner()}, "patternProperties": {"^x": inner()}, "unevaluatedProperties": False},
        lambda: {"contains": inner(), "minContains": size(), "uniqueItems": True},
        lambda: {
            dice.choice(["type", "items", "properties", "required", "enum", "minimum", "$ref"]): dice.choice(
                [None, 1, "x", [], {}, [None]]
            )
        },
    ]
    return dice.choice(shapes)()


def _schema_random(dice: random.Random) -> tuple[str, Any]:
    schema = _schema(dice, dice.randint(0, 4))
    if dice.random() < 0.5 and isinstance(schema, dict):
        return _completion(dice, json_schema=schema, temperature=dice.choice([0, 1]), ignore_eos=dice.random() < 0.3)
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return _completion(dice, response_format=wanted, temperature=dice.choice([0, 1]))


def _schema_deep(dice: random.Random) -> tuple[str, Any]:
    depth = dice.choice([20, 200, 2000, 50_000])
    begin, end = dice.choice(
        [
            ('{"items":', "}"),
            ('{"anyOf":[', ',{"type":"null"}]}'),
            ('{"properties":{"a":', "}}"),
            ('{"allOf":[', "]}"),
            ('{"not":', "}"),
        ]
    )
    body = '{"prompt":"a","max_tokens":4,"json_schema":' + begin * depth + '{"type":"string"}' + end * depth + "}"
    return "/v1/completions", body.encode()


# -- texts -----------------------------------------------------------------------------------------------------------


def _text(dice: random.Random) -> str:
    form = dice.randrange(4)
    if form == 0:
        low, high = dice.choice(SCRIPTS)
        return "".join(chr(dice.randint(low, high)) for _ in range(dice.randint(1, 300)))
    if form == 1:
        return "".join(
            chr(dice.choice([*range(32), 0x7F, 0x85, 0xA0, 0xFEFF, 0xFFFE, 0xFFFF])) for _ in range(dice.randint(1, 200))
        )
    if form == 2:
        return "".join(chr(dice.randint(*dice.choice(SCRIPTS))) for _ in range(dice.randint(1, 400)))
    return dice.choice(RUNS) * dice.choice([100, 5000, 60_000, MOST_TEXT])


def _asking(dice: random.Random, text: str) -> tuple[str, Any]:
    return dice.choice(
        [
            ("/v1/completions", {"prompt": text, "max_tokens": 2}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": text}], "max_tokens": 2}),
            ("/v1/responses", {"input": text, "max_output_tokens": 2}),
            ("/v1/completions", {"prompt": text, "max_tokens": 1, "echo": True, "logprobs": 1}),
            ("/completion", {"prompt": [7, text], "n_predict": 2}),
            ("/tokenize", {"content": text, "with_pieces": True}),
            ("/v1/token/encode", {"text": text}),
            ("/v1/embeddings", {"input": text}),
        ]
    )


def _text_random(dice: random.Random) -> tuple[str, Any]:
    return _asking(dice, _text(dice))


def _text_filling(dice: random.Random) -> tuple[str, Any]:
    """One character up to the limit of a body, now and then."""
    run = dice.choice(RUNS)
    length = BODY // len(json.dumps(run)) if dice.random() < 0.02 else 20_000
    return _asking(dice, run * length)


def _text_surrogates(dice: random.Random) -> tuple[str, Any]:
    half = dice.choice(["\\ud800", "\\udfff", "\\ud83d", "\\ud83d\\ud83d", "\\ude00\\ud83d"])
    name = dice.choice(["prompt", "stop", "grammar", "model"])
    return "/v1/completions", f'{{"prompt":"a","max_tokens":1,"{name}":"x{half}y"}}'.encode()


# -- sampling --------------------------------------------------------------------------------------------------------


def _sampling(dice: random.Random) -> tuple[str, Any]:
    names = dice.sample([*BORDERS], dice.randint(1, 6))
    fields = {name: dice.choice(BORDERS[name]) for name in names}
    if dice.random() < 0.3:
        fields |= dice.choice(
            [{"grammar": 'root ::= "a"*'}, {"json_schema": {"type": "object"}}, {"grammar": 'root ::= [a-c] "d"'}]
        )
    return "/v1/completions", {"prompt": "hello", "max_tokens": dice.choice([1, 6, 20]), **fields}


# -- counts ----------------------------------------------------------------------------------------------------------


def _counts(dice: random.Random) -> tuple[str, Any]:
    """A body that holds very many of one thing."""
    count = dice.choice([100, 3000, 10_000, 50_000])
    turn = {"role": "user", "content": "hello"}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}}
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    name, value = dice.choice(
        [
            ("messages", [turn] * count),
            ("messages", [{"role": "user", "content": [{"type": "text", "text": "a"}] * count}]),
            ("messages", [turn, call, {"role": "tool", "content": "x"}] * (count // 3)),
            ("messages", [turn, {**call, "tool_calls": call["tool_calls"] * count}]),
            ("tools", [tool] * (count // 3)),
            ("stop", ["a"] * count),
            ("chat_template_kwargs", {f"x{i}": i for i in range(count)}),
            ("lora", [{"name": "a", "scale": 1}] * count),
            ("json_schema", {"enum": [[i] for i in range(count)]}),
            ("json_schema", {"oneOf": [{"const": i} for i in range(count // 3)]}),
            ("json_schema", {"type": "object", "properties": {f"a long name {i}": {} for i in range(count)}}),
            ("prompt", [7] * count * 20),
            ("prompt", [[7] * count] * 16),
            ("prompt", [7, "a"] * count),
            ("content", ["a", 7] * count),
            ("x", [[]] * count * 20),
            ("input", [turn] * count),
            ("input", [{"role": "user", "content": [{"type": "input_text", "text": "a"}] * count}]),
            ("input", [turn, *[{"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}] * count]),
        ]
    )
    if name == "input":
        return "/v1/responses", {"max_output_tokens": 2, "stream": dice.random() < 0.5, name: value}
    if name == "content":
        return "/tokenize", {name: value}
    if name == "prompt":
        return dice.choice(["/v1/completions", "/completion"]), {"max_tokens": 2, name: value}
    return "/v1/chat/completions", {"messages": [turn], "max_tokens": 2, name: value}


def _blocks(dice: random.Random) -> tuple[str, Any]:
    """A body of Anthropic's with very many of one thing, or with blocks of any kind anywhere."""
    count = dice.choice([1, 3000, 19_000, 50_000])
    text = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
    call = {"type": "tool_use", "id": "t", "name": "f", "input": {"a": None}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [text], "is_error": dice.random() < 0.5}
    tool = {"name": "f", "input_schema": {"type": "object", "properties": {"a": {}}}}
    block = dice.choice([text, call, result, {"type": "thinking", "thinking": "a"}, {"type": "image"}, {"type": []}, 5, {}])
    turn = {"role": dice.choice(["user", "assistant", "system", "tool"]), "content": [block] * count}
    name, value = dice.choice(
        [
            ("messages", [turn]),
            ("messages", [{"role": "user", "content": "a"}, turn, {"role": "user", "content": [result] * count}]),
            ("messages", [{"role": "user", "content": "a", f"x{i}": i} for i in range(min(count, 2900))]),
            ("messages", [{"role": "user", "content": [{**text, "texts": "b"}] * count}]),
            ("system", [text] * count),
            ("tools", [tool] * min(count, 3000)),
            ("stop_sequences", ["a"] * count),
            ("tool_choice", {"type": dice.choice(["any", "tool", "none", "auto"]), "name": "f"}),
            ("thinking", {"type": "enabled", "budget_tokens": count}),
        ]
    )
    path = dice.choice(["/v1/messages", "/v1/messages/count_tokens"])
    if dice.random() < 0.1:
        return "/v1/rerank", {"query": _text(dice), "documents": [_text(dice)[:500]] * min(count, 2048)}
    return path, {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2, name: value}


def _probabilities(dice: random.Random) -> tuple[str, Any]:
    wanted = {"n": dice.choice([4, 16]), "max_tokens": dice.choice([20, 60]), "ignore_eos": True, "stream": dice.random() < 0.2}
    if dice.random() < 0.5:
        return "/v1/completions", {"prompt": "hello", "logprobs": 20, "echo": not wanted["stream"], **wanted}
    turn = {"role": "user", "content": "hello"}
    return "/v1/chat/completions", {"messages": [turn], "logprobs": True, "top_logprobs": 20, **wanted}


KINDS: dict[str, Callable[[random.Random], tuple[str, Any]]] = {
    "grammar, random": _grammar_random,
    "grammar, nested": _grammar_nested,
    "grammar, exploding": _grammar_exploding,
    "grammar, unspellable": _grammar_unspellable,
    "grammar, cut": _grammar_cut,
    "schema, random": _schema_random,
    "schema, deep": _schema_deep,
    "text, random": _text_random,
    "text, filling": _text_filling,
    "text, surrogates": _text_surrogates,
    "sampling": _sampling,
    "counts": _counts,
    "probabilities": _probabilities,
    "blocks": _blocks,
}
