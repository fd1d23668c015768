"""Python functions as tools: how they are described, called, and what is told of what goes wrong."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import pytest

from llamafu import FunctionTools
from llamafu.errors import LlamafuError
from llamafu.generation.tool_call import ToolCall


def weather(city: Literal["Berlin", "Tokyo"], days: int = 1, *, unit: str | None = None) -> dict:
    return {"city": city, "days": days, "unit": unit}


weather.__doc__ = """The weather in a city,
    for some days.

    Args:
        city (str): where,
            in the world
        days: how many days: at least 1

    Returns: a report of days.
    """


def everything(a, b: Any, c: float, d: bool, e: list, f: list[int], g: dict[str, list[str]], h: Sequence[str], i: Mapping):
    pass


everything.__doc__ = """:param a: first
    :param float c: third

    - `d`: fourth
    """


def schema(function):
    (described,) = FunctionTools([function]).descriptions
    return described["function"]


def call(function, arguments):
    return FunctionTools([function]).call(ToolCall("id", function.__name__, arguments))


def test_a_description():
    assert FunctionTools([weather]).descriptions == [
        {
            "type": "function",
            "function": {
                "name": "weather",
                "description": "The weather in a city, for some days.",
                "parameters": {
                    "type": "object",
                    "properties": {
                        "city": {"enum": ["Berlin", "Tokyo"], "description": "where, in the world"},
                        "days": {"type": "integer", "description": "how many days: at least 1"},
                        "unit": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                    },
                    "required": ["city"],
                    "additionalProperties": False,
                },
            },
        }
    ]


def test_types():
    def told(x: Annotated[int, "so many"]):
        pass

    assert schema(told)["parameters"]["properties"]["x"] == {"type": "integer", "description": "so many"}
    assert schema(told)["description"] == ""
    with pytest.raises(TypeError, match=r"everything: the parameter 'i' has the type .*Mapping"):
        schema(everything)
    del everything.__annotations__["i"]
    assert schema(everything)["parameters"]["properties"] == {
        "a": {"description": "first"},
        "b": {},
        "c": {"type": "number", "description": "third"},
        "d": {"type": "boolean", "description": "fourth"},
        "e": {"type": "array"},
        "f": {"type": "array", "items": {"type": "integer"}},
        "g": {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "string"}}},
        "h": {"type": "array", "items": {"type": "string"}},
        "i": {},
    }


def test_a_description_is_a_tool(tiny_model, real):
    """The grammar of a forced call can be made of it, and what the model then writes can be called."""
    from llamafu import Llamafu

    def pick(city: Literal["Berlin", "Tokyo"], late: bool = False, when: Literal["now"] | None = None):
        return {"city": city, "late": late, "when": when}

    tools = FunctionTools([pick])
    with Llamafu(tiny_model, n_ctx=1024, library=real.path) as llm:
        hi = [{"role": "user", "content": "hi"}]
        told = llm.chat(hi, tools=tools.descriptions, tool_choice="required", parallel_tool_calls=False, max_tokens=300, seed=1)
    (made,) = told.tool_calls
    assert json.loads(tools.call(made))["city"] in {"Berlin", "Tokyo"}


@pytest.mark.parametrize(
    ("arguments", "result"),
    [
        ('{"city": "Tokyo"}', {"city": "Tokyo", "days": 1, "unit": None}),
        ('{"city": "Tokyo", "days": 3, "unit": "K"}', {"city": "Tokyo", "days": 3, "unit": "K"}),
        ("", "error: city is missing"),
        ("{}", "error: city is missing"),
        ("[]", "error: the arguments '[]' are not the JSON of an object"),
        ('{"city": "To', 'error: the arguments \'{"city": "To\' are not the JSON of an object'),
        ("[" * 100_000, "error: the arguments '[[["),
        ('{"city": "Rome"}', "error: city is 'Rome'; give 'Berlin' or 'Tokyo'"),
        ('{"city": "Tokyo", "days": "3"}', "error: days is '3'; give integer"),
        ('{"city": "Tokyo", "days": true}', "error: days is True; give integer"),
        ('{"city": "Tokyo", "unit": 3}', "error: unit is 3; give string or null"),
        ('{"town": "Tokyo"}', "error: city is missing; 'town' is no argument (arguments: city, days, unit)"),
    ],
)
def test_a_call(arguments, result):
    told = call(weather, arguments)
    assert told.startswith(result) if isinstance(result, str) else json.loads(told) == result


def test_results_and_what_a_function_raises():
    class Odd:
        def __str__(self):
            return "odd"

    def give(what: str, numbers: list[float] = [], words: dict[str, str] = {}):  # noqa: B006 - only read
        return {"text": "a text", "none": None, "odd": [Odd()], "key": {1: "é"}}[what]

    assert [call(give, json.dumps({"what": what})) for what in ("text", "none", "odd", "key")] == [
        "a text",
        "null",
        '["odd"]',
        '{"1": "é"}',
    ]
    assert call(give, '{"what": "gone"}') == "error: KeyError: 'gone'"
    assert call(give, '{"what": "none", "numbers": [1, 2.5]}') == "null"
    assert call(give, '{"what": "none", "numbers": [1, "2"]}') == "error: numbers[1] is '2'; give number"
    assert call(give, '{"what": "none", "words": {"a": 1}}') == "error: words.a is 1; give string"
    assert FunctionTools([give]).call(ToolCall("id", "gone", "{}")) == "error: there is no tool 'gone' (tools: give)"


def test_what_is_no_tool():
    async def later():
        pass

    def rest(*args):
        pass

    def by_place(a, /):
        pass

    def strange(a: "Nowhere"):  # noqa: F821 - that is the point
        pass

    def bytes_of(a: list[bytes]):
        pass

    for function, says in (
        (later, "later is asynchronous"),
        (rest, "rest: the parameter 'args' cannot be given by its name"),
        (by_place, "by_place: the parameter 'a' cannot be given by its name"),
        (strange, "strange: its signature cannot be read: name 'Nowhere'"),
        (bytes_of, "bytes_of: the parameter 'a' has the type <class 'bytes'>, which a model cannot give; use str, int"),
        (lambda: 1, "is no function with a name"),
        ("weather", "'weather' is no function"),
        (int, "is no function"),
    ):
        with pytest.raises(TypeError, match=says) as caught:
            FunctionTools([function])
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="two functions with the name 'weather'"):
        FunctionTools([weather, weather])


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "some tools.py"
        path.write_text(text, "utf-8")
        return path

    return write


def test_a_file(file):
    tools = FunctionTools.of_file(
        file(
            "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom json import dumps\n"
            "@dataclass\nclass Point:\n    x: int\n"
            "def add(a: int, b: int = 1) -> int:\n    'Add.'\n    return Point(a + b).x\n"
            "def _hidden(): pass\ndef now() -> str:\n    return '12:00'\n"
        )
    )
    assert [described["function"]["name"] for described in tools.descriptions] == ["add", "now"]
    assert tools.call(ToolCall("id", "add", '{"a": 2}')) == "3"
    assert tools.call(ToolCall("id", "now", "{}")) == "12:00"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def add(", "does not run: SyntaxError"),
        ("1 / 0", "does not run: ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "does not run: SystemExit: 3"),
        ("import no_such_module_anywhere", "No module named 'no_such_module_anywhere'"),
        ("x = 1\ndef _a(): pass", "defines no function that could be a tool"),
        ("from json import dumps", "defines no function"),
        ("async def f(): pass", "f is asynchronous"),
        ("def f(x: bytes): pass", "f: the parameter 'x' has the type <class 'bytes'>"),
    ],
)
def test_a_file_that_has_no_tools(file, text, says):
    path = file(text)
    with pytest.raises(LlamafuError, match=says) as caught:
        FunctionTools.of_file(path)
    assert str(path) in str(caught.value)
    with pytest.raises(FileNotFoundError, match="there is no such file; give a Python file with functions"):
        FunctionTools.of_file(path.with_name("gone.py"))
