"""Bodies of OpenAI's Responses API: what items, tools and options mean, and what is refused."""

import pytest

from llamafu.server.schemas.ignored_fields import IgnoredFields
from llamafu.server.schemas.reading import read_body
from llamafu.server.schemas.response_request import ResponseBody
from llamafu.service import InvalidRequestError

CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "name": "weather", "parameters": CITY, "strict": True}
NAMED = {"type": "function", "name": "weather"}
CALL = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "f", "arguments": "{}", "status": "completed"}
OUTPUT = {"type": "function_call_output", "call_id": "call_1", "output": "sun"}
ANSWER = {
    "type": "message",
    "id": "msg_1",
    "role": "assistant",
    "status": "completed",
    "content": [{"type": "output_text", "text": "so", "annotations": [], "logprobs": []}],
}
THOUGHT = {
    "type": "reasoning",
    "id": "rs_1",
    "summary": [],
    "content": [{"type": "reasoning_text", "text": "hm"}],
    "encrypted_content": None,
}
TOOL_CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
USER = {"role": "user", "content": "hi"}
CUSTOM_CALL = {"type": "custom_tool_call", "id": "ctc_1", "call_id": "call_2", "name": "patch", "input": 'a "b"'}
CUSTOM = {"type": "custom", "name": "patch", "description": "Edits."}
LARK = {"type": "grammar", "syntax": "lark", "definition": 'start: "a"'}


def read(**fields):
    return read_body(ResponseBody, {"input": "hi", **fields}, (0, 1), IgnoredFields())


def problem(**fields):
    with pytest.raises(InvalidRequestError) as caught:
        read(**fields)
    [found] = caught.value.problems
    return found


# -- input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "messages"),
    [
        ("hi", [USER]),
        ([USER], [USER]),
        ([{"type": "message", **USER}], [USER]),
        (
            [{"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "text", "text": "b"}]}],
            [{**USER, "content": "a\nb"}],
        ),
        ([{"role": "developer", "content": "be brief"}, USER], [{"role": "developer", "content": "be brief"}, USER]),
        ([USER, ANSWER], [USER, {"role": "assistant", "content": "so"}]),
        ([USER, {**ANSWER, "content": [{"type": "refusal", "refusal": "no"}]}], [USER, {"role": "assistant", "content": "no"}]),
        ([USER, {"role": "assistant", "content": None}], [USER, {"role": "assistant", "content": ""}]),
        ([USER, ANSWER, ANSWER], [USER, *[{"role": "assistant", "content": "so"}] * 2]),
        (
            [USER, THOUGHT, ANSWER, CALL, {**CALL, "call_id": "call_2"}, OUTPUT, {**OUTPUT, "call_id": "call_2"}],
            [
                USER,
                {
                    "role": "assistant",
                    "content": "so",
                    "reasoning_content": "hm",
                    "tool_calls": [TOOL_CALL, {**TOOL_CALL, "id": "call_2"}],
                },
                {"role": "tool", "tool_call_id": "call_1", "content": "sun"},
                {"role": "tool", "tool_call_id": "call_2", "content": "sun"},
            ],
        ),
        (
            [USER, CALL, ANSWER, {**OUTPUT, "output": [{"type": "input_text", "text": "sun"}]}, THOUGHT, ANSWER],
            [
                USER,
                {"role": "assistant", "content": "so", "tool_calls": [TOOL_CALL]},
                {"role": "tool", "tool_call_id": "call_1", "content": "sun"},
                {"role": "assistant", "content": "so", "reasoning_content": "hm"},
            ],
        ),
        (
            [USER, {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}], "content": None}, CALL],
            [USER, {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [TOOL_CALL]}],
        ),
        ([USER, {"type": "reasoning", "summary": []}], [USER]),
        (
            [
                USER,
                {"type": "web_search_call", "id": "ws_1", "action": {"type": "search"}},
                {**CALL, "namespace": "mcp__files"},
                CUSTOM_CALL,
                OUTPUT,
                {"type": "custom_tool_call_output", "call_id": "call_2", "output": "Done"},
            ],
            [
                USER,
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [
                        {**TOOL_CALL, "function": {"name": "mcp__files__f", "arguments": "{}"}},
                        {**TOOL_CALL, "id": "call_2", "function": {"name": "patch", "arguments": {"input": 'a "b"'}}},
                    ],
                },
                {"role": "tool", "tool_call_id": "call_1", "content": "sun"},
                {"role": "tool", "tool_call_id": "call_2", "content": "Done"},
            ],
        ),
    ],
)
def test_items_become_messages(given, messages):
    assert read(input=given).messages == messages


def test_instructions_come_first_and_join_what_the_system_says():
    assert read(instructions="be kind").messages == [{"role": "system", "content": "be kind"}, USER]
    assert read(instructions="").messages == [USER]
    given = [{"role": "developer", "content": "be brief"}, USER]
    assert read(instructions="be kind", input=given).messages == [{**given[0], "content": "be kind\n\nbe brief"}, USER]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (3, "input is 3; give a string, or a list of items"),
        ([], "input is an empty list; give a string, or at least one item"),
        ([{"type": "reasoning", "summary": []}], "input has no item that says something; give a message"),
        (["hi"], "input[0] is 'hi'; give an object"),
        (
            [{"content": "hi"}],
            "input[0].type is missing; give 'message', 'function_call', 'function_call_output', 'custom_tool",
        ),
        ([{"type": "local_shell_call"}], "input[0].type is 'local_shell_call'; give 'message', "),
        ([{"type": "web_search_call", "id": "x"}], "input has no item that says something; give a message"),
        ([{**CUSTOM_CALL, "input": {}}], "input[0].input is an object; give a string"),
        ([{**CALL, "namespace": 3}], "input[0].namespace is 3; give a string that is not empty"),
        ([{**OUTPUT, "type": "custom_tool_call_output"}], "input[0].call_id is 'call_1', and no function_call before it has"),
        ([{"type": ["a"]}], "input[0].type is a list; give 'message', "),
        ([{"type": "item_reference", "id": "x"}], "input[0].type is 'item_reference'; nothing is kept here between requests"),
        ([{"type": "message", "content": "a"}], "input[0].role is missing; give 'user', 'assistant', 'system' or 'developer'"),
        ([{"role": "tool", "content": "a"}], "input[0].role is 'tool'; give 'user', "),
        ([{"role": "user"}], "input[0].content is missing; give a string, or a list of text parts"),
        ([{"role": "user", "content": ["a"]}], "input[0].content[0] is 'a'; give an object with type 'input_text' and a text"),
        (
            [
                USER,
                {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_image", "file_id": "x"}]},
            ],
            "input[1].content[1].image_url is missing; nothing is kept here between requests",
        ),
        ([{"role": "user", "content": [{"type": "input_text"}]}], "input[0].content[0].text is missing; give a string"),
        (
            [{"role": "user", "content": [{"type": {}, "text": "a"}]}],
            "input[0].content[0].type is an object; give 'input_text'",
        ),
        ([USER, OUTPUT], "input[1].call_id is 'call_1', and no function_call before it has that; send"),
        ([CALL, {**OUTPUT, "output": 5}], "input[1].output is 5; give a string, or a list of text parts"),
        ([{**CALL, "name": ""}], "input[0].name is ''; give a string that is not empty"),
        ([{**CALL, "arguments": {}}], "input[0].arguments is an object; give the JSON of an object as a string"),
        ([{**CALL, "call_id": None}], "input[0].call_id is missing; give a string that is not empty"),
        ([USER] * 3001, "input is a list; give at most 3,000 items, not 3,001"),
        ([{"role": "user", "content": [{"type": "text", "text": ""}] * 20_001}], "input is a list; give at most 20,000 parts"),
    ],
)
def test_bad_input(given, told):
    assert problem(input=given).startswith(told)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id is 'resp_1'; this server cannot do that: nothing is kept"),
        ({"conversation": "conv_1"}, "conversation is 'conv_1'; this server cannot do that: nothing is kept"),
        ({"prompt": {"id": "p"}}, "prompt is an object; this server cannot do that: prompts are not kept here; write it into"),
        ({"background": True}, "background is True; this server cannot do that: an answer is made while its request is open"),
        ({"truncation": "auto"}, "truncation is 'auto'; this server cannot do that: a prompt is computed whole or refused"),
        ({"messages": [USER]}, "messages is a list; this server cannot do that: give them as input"),
        ({"n": 2}, "n is 2; it should be less than or equal to 1"),
        ({"response_format": {"type": "json_object"}}, "response_format is an object; this server cannot do that: give it as"),
        (
            {"tools": [{"type": "functoin", "name": "x"}]},
            "tools[0].type is 'functoin'; give 'function' or 'custom': your program",
        ),
        ({"tools": [{"name": "x"}]}, "tools[0].type is missing; give 'function' or 'custom': your program"),
        ({"tools": [{**CUSTOM, "parameters": {}}]}, "tools[0].parameters was given beside type 'custom', with which it has no"),
        (
            {"tools": [{"type": "namespace", "name": "n", "tools": [{**NAMED, "format": LARK}]}]},
            "tools[0].tools[0].format was given beside type 'function', with which it has no meaning; leave it out",
        ),
        (
            {"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "function"}]}]},
            "tools[0].tools[0].name is missing;",
        ),
        ({"tools": [{"type": "function"}]}, "tools[0].name is missing; give a string that is not empty"),
        ({"tools": [{**NAMED, "parameters": "{}"}]}, "tools[0].parameters is '{}'; give an object"),
        ({"tools": [NAMED] * 1001}, "tools is a list; it should have at most 1000 items, not 1001"),
        ({"tool_choice": "any"}, "tool_choice is 'any'; give 'auto', 'none', 'required', {'type': 'function', 'name': ...}"),
        (
            {"tool_choice": {"type": "allowed_tools", "mode": "any", "tools": [NAMED]}},
            "tool_choice is an object; give 'auto', ",
        ),
        ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}, "tool_choice is an object; give 'auto', "),
        ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": ["f"]}}, "tool_choice is an object; give 'auto', "),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice is an object; give 'auto', "),
        ({"include": ["all"]}, "include[0] is 'all'; it should be 'message.output_text.logprobs', "),
        ({"top_logprobs": 2}, "top_logprobs is 2, but nothing asks for any; give include: ['message.output_text.logprobs']"),
        ({"top_logprobs": 21}, "top_logprobs is 21; it should be less than or equal to 20"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema is missing; give a JSON Schema"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type is 'xml'; it should be"),
        ({"text": {"format": {"type": "json_object"}}, "regex": "a"}, "regex and text.format were given together"),
        ({"max_output_tokens": -2}, "max_output_tokens is -2; it should be greater than or equal to -1"),
        ({"max_output_token": 2}, "'max_output_token' is not a field; did you mean 'max_output_tokens'?"),
    ],
)
def test_bad_fields(fields, told):
    assert problem(**fields).startswith(told)


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, {}),
        ({"max_output_tokens": 5, "top_p": 0.5, "temperature": 0}, {"max_tokens": 5, "top_p": 0.5, "temperature": 0}),
        ({"max_tokens": 5, "seed": 3, "repetition_penalty": 1.5}, {"max_tokens": 5, "seed": 3, "repeat_penalty": 1.5}),
        ({"include": ["message.output_text.logprobs"]}, {"logprobs": 0}),
        ({"include": ["message.output_text.logprobs", "reasoning.encrypted_content"], "top_logprobs": 3}, {"logprobs": 3}),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": CITY}}}, {"json_schema": CITY}),
        ({"text": {"format": {"type": "json_object"}}}, {"json_schema": {"type": "object"}}),
        ({"json_schema": CITY, "text": {"format": {"type": "text"}, "verbosity": "low"}}, {"json_schema": CITY}),
        (
            {
                "background": False,
                "store": True,
                "truncation": "disabled",
                "metadata": {"a": "b"},
                "user": "me",
                "previous_response_id": None,
                "include": [],
                "tools": [],
                "service_tier": "auto",
                "max_tool_calls": 3,
                "reasoning": {"effort": None, "summary": "auto"},
                "prompt_cache_key": "x",
                "text": {},
                "n": 1,
                "stream_options": {"include_obfuscation": False},
                "prompt": None,
            },
            {},
        ),
    ],
)
def test_options(fields, options):
    body = read(**fields)
    given = {name: value for name, value in body.options().items() if value is not None}
    assert given == {"max_tokens": -1, **options}


def test_tools_and_hints_are_those_of_chats():
    body = read(
        tools=[WEATHER], tool_choice=NAMED, parallel_tool_calls=False, reasoning={"effort": "low"}, text={"verbosity": "low"}
    )
    chosen = body.chat_options()
    function = {"name": "weather", "parameters": CITY, "strict": True}
    assert chosen["tools"] == [{"type": "function", "function": function}]
    assert chosen["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
    assert chosen["parallel_tool_calls"] is False
    assert chosen["chat_template_kwargs"] == {"reasoning_effort": "low", "verbosity": "low"}
    assert read(chat_template_kwargs={"enable_thinking": False}).chat_options()["chat_template_kwargs"] == {
        "enable_thinking": False
    }


def test_tools_of_other_types_than_functions():
    """Codex CLI sends all of these: a text as input, a namespace for each server of tools, and what OpenAI itself runs."""
    ignored = IgnoredFields()
    tools = [
        {"type": "web_search", "external_web_access": False},
        {**CUSTOM, "format": LARK},
        {"type": "namespace", "name": "mcp__files", "description": "Files.", "tools": [{**NAMED, "description": "d"}, CUSTOM]},
        {"type": "image_generation", "output_format": "png"},
    ]
    body = read_body(ResponseBody, {"input": "hi", "tools": tools}, (0, 1), ignored)
    assert ignored.names == ("tools[]",)
    first, second, third = [tool["function"] for tool in body.chat_options()["tools"]]
    assert (first["name"], second["name"], third["name"]) == ("patch", "mcp__files__weather", "mcp__files__patch")
    assert first["description"] == 'Edits.\n\nIts input follows this lark grammar:\n\nstart: "a"'
    assert first["parameters"] == third["parameters"]
    assert first["parameters"]["properties"] == {"input": {"type": "string"}}
    assert second.keys() == {"name", "description"}
    assert [tool.flat() for tool in body.tools] == tools[1:3]
    with pytest.raises(InvalidRequestError, match="tools.0..type is 'web_search'; give 'function' or 'custom'"):
        read_body(ResponseBody, {"input": "hi", "tools": tools}, (0, 1), IgnoredFields(strict=True))


def test_a_choice_of_several_tools():
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [NAMED, {"type": "custom", "name": "patch"}]}
    ignored = IgnoredFields()
    given = {**allowed, "tools": [*allowed["tools"], {"type": "web_search"}]}
    body = read_body(ResponseBody, {"input": "hi", "tools": [WEATHER, CUSTOM], "tool_choice": given}, (0, 1), ignored)
    assert body.tool_choice == allowed
    functions = [{"type": "function", "function": {"name": name}} for name in ("weather", "patch")]
    assert body.chat_options()["tool_choice"] == {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "required", "tools": functions},
    }
    assert ignored.header() == "tool_choice.tools[2]"
    custom = read(tools=[CUSTOM], tool_choice={"type": "custom", "name": "patch"})
    assert custom.chat_options()["tool_choice"] == functions[1]
    with pytest.raises(InvalidRequestError, match="tool_choice is an object; give 'auto'"):
        read_body(ResponseBody, {"input": "hi", "tools": [WEATHER], "tool_choice": given}, (0, 1), IgnoredFields(strict=True))


def test_unknown_fields_are_named():
    def header(**fields):
        ignored = IgnoredFields()
        read_body(ResponseBody, {"input": "hi", **fields}, (0, 1), ignored)
        return ignored.header()

    assert header(moderation=1) == "moderation"
    assert header(tools=[{**NAMED, "defer_loading": True}]) == "tools[0].defer_loading"
    assert header(input=[{**USER, "mood": 1}]) == "input[0].mood"
    assert header(input=[{**USER, "content": [{"type": "input_text", "text": "a", "cache": 1}]}]) == "input[0].content[0].cache"
    assert header(input=[USER, {**THOUGHT, "encrypted_content": "x"}]) == "input[1].encrypted_content"
    strict = IgnoredFields(strict=True)
    with pytest.raises(InvalidRequestError, match=r"input\[0\].mood is not a field"):
        read_body(ResponseBody, {"input": [{**USER, "mood": 1}]}, (0, 1), strict)
