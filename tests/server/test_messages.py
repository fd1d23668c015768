"""Anthropic's routes: how its messages are read, how answers are written, and its errors."""

import json

import httpx
import pytest
from helpers import claude_code, one_server
from helpers.scripted import saying
from helpers.serving import API, serving
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafu import Engine
from llamafu._native.model import Model
from llamafu.generation.completion import Completion, Timings, Usage
from llamafu.generation.messages import read_messages
from llamafu.generation.tool_call import ToolCall
from llamafu.server.schemas.anthropic_requests import CountTokensBody, MessagesBody
from llamafu.server.schemas.anthropic_writer import MessageWriter
from llamafu.server.schemas.ignored_fields import IgnoredFields
from llamafu.server.schemas.reading import read_body
from llamafu.service import InvalidRequestError

HI = {"role": "user", "content": "ahoy"}
WEATHER = {
    "name": "weather",
    "strict": True,
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
TEMPLATE = (
    "{# <tool_call> <think> #}{% for t in tools or [] %}{{ t.function.name }} {% endfor %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.reasoning_content }}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}[{{ c.function.name }} {{ c.function.arguments | tojson }}]{% endfor %}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{{ enable_thinking }}{{ reasoning_effort }}{% endif %}"
)
shared = one_server.shared
url = one_server.url
engine = one_server.engine
raw = one_server.raw


def read(kind, body, **options):
    """Return a body, and the header for what was ignored of it."""
    ignored = IgnoredFields(**options)
    return read_body(kind, body, (0, 1), ignored), ignored.header()


def text(words, **more):
    return {"type": "text", "text": words, **more}


# -- reading ------------------------------------------------------------------------------------------------------

CALL = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Rome", "day": None}}
READ_CALL = {"id": "t1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome", "day": None}}}


def result(content, **more):
    return {"type": "tool_result", "tool_use_id": "t1", "content": content, **more}


@pytest.mark.parametrize(
    ("body", "read_as"),
    [
        ({"messages": [HI]}, [HI]),
        ({"messages": [HI], "system": "s"}, [{"role": "system", "content": "s"}, HI]),
        (
            {"messages": [HI], "system": [text("s", cache_control={"type": "ephemeral"}), text("t")]},
            [{"role": "system", "content": "s\nt"}, HI],
        ),
        ({"messages": [{"role": "user", "content": [text("a"), text("b", citations=None)]}]}, [{**HI, "content": "a\nb"}]),
        ({"messages": [HI, {**HI, "content": [text("b")]}]}, [{**HI, "content": "ahoy\nb"}]),
        ({"messages": [HI, {"role": "system", "content": [text("b")]}]}, [HI, {"role": "system", "content": "b"}]),
        ({"messages": [HI, {"role": "assistant", "content": "Arrr"}]}, [HI, {"role": "assistant", "content": "Arrr"}]),
        (
            {
                "messages": [
                    HI,
                    {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm.", "signature": "x"}]},
                    {"role": "assistant", "content": [text("I look."), {**CALL, "caller": {"type": "direct"}}]},
                    {"role": "user", "content": [result("sun"), result([text("a"), text("b")]), text("So?")]},
                ]
            },
            [
                HI,
                {"role": "assistant", "content": "I look.", "reasoning_content": "Hm.", "tool_calls": [READ_CALL]},
                {"role": "tool", "tool_call_id": "t1", "content": "sun"},
                {"role": "tool", "tool_call_id": "t1", "content": "a\nb"},
                {"role": "user", "content": "So?"},
            ],
        ),
        (
            {"messages": [{"role": "user", "content": [text("a"), result("no", is_error=True), result(None, is_error=False)]}]},
            [
                {"role": "user", "content": "a"},
                {"role": "tool", "tool_call_id": "t1", "content": "Error: no"},
                {"role": "tool", "tool_call_id": "t1", "content": ""},
            ],
        ),
    ],
)
def test_messages_become_those_of_templates(body, read_as):
    for kind in (MessagesBody, CountTokensBody):
        found, header = read(kind, {"max_tokens": 5, **body})
        assert found.chat_messages() == read_as
        assert header == ""


def test_a_whole_answer_may_be_sent_back():
    answer = json.loads(MessageWriter("m").whole([completion("Arrr", reasoning="Hm.")]))
    found, header = read(MessagesBody, {"messages": [HI, answer]})
    assert found.chat_messages()[1] == {"role": "assistant", "content": "Arrr", "reasoning_content": "Hm."}
    assert header == ""


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, {"tools": None, "chat_template_kwargs": {}}),
        ({"tool_choice": {"type": "auto"}}, {"tool_choice": "auto", "parallel_tool_calls": True}),
        ({"tool_choice": {"type": "none"}}, {"tool_choice": "none"}),
        (
            {"tool_choice": {"type": "any", "disable_parallel_tool_use": True}},
            {"tool_choice": "required", "parallel_tool_calls": False},
        ),
        (
            {"tool_choice": {"type": "tool", "name": "weather"}},
            {"tool_choice": {"type": "function", "function": {"name": "weather"}}},
        ),
        (
            {"tools": [{**WEATHER, "description": "d", "type": "custom", "cache_control": {"type": "ephemeral"}}]},
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {
                            "name": "weather",
                            "description": "d",
                            "parameters": WEATHER["input_schema"],
                            "strict": True,
                        },
                    }
                ]
            },
        ),
        ({"thinking": {"type": "adaptive"}}, {"chat_template_kwargs": {"enable_thinking": True, "thinking": True}}),
        ({"thinking": {"type": "disabled"}}, {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}}),
        (
            {
                "thinking": {"type": "disabled"},
                "output_config": {"effort": "low"},
                "chat_template_kwargs": {"thinking": 1, "x": 2},
            },
            {"chat_template_kwargs": {"enable_thinking": False, "thinking": 1, "x": 2, "reasoning_effort": "low"}},
        ),
    ],
)
def test_options_of_chats(fields, options):
    found, header = read(MessagesBody, {"messages": [HI], **fields})
    assert found.chat_options().items() >= options.items()
    assert header == ""


def test_options_of_generations():
    fields = {"max_tokens": 7, "stop_sequences": ["a", ""], "temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1}
    found, _ = read(MessagesBody, {"messages": [HI], **fields, "lora": {"pirate": 0.5}})
    wanted = {"max_tokens": 7, "stop": ["a"], "temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1}
    assert found.options() == wanted
    assert found.lora == {"pirate": 0.5}
    schema = {"type": "object", "properties": {"a": {"const": None}}}
    for body in (
        {"output_config": {"format": {"type": "json_schema", "schema": schema}}},
        {"output_format": {"type": "json_schema", "schema": schema}},
    ):
        assert read(MessagesBody, {"messages": [HI], **body})[0].options() == {"max_tokens": -1, "json_schema": schema}


@pytest.mark.parametrize(
    ("fields", "budget"),
    [
        ({}, None),
        ({"thinking": {"type": "adaptive"}}, None),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, 9),
        ({"thinking": {"type": "disabled"}}, 0),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}, "reasoning_budget": 5}, 5),
    ],
)
def test_thinking_has_a_budget(fields, budget):
    assert read(MessagesBody, {"messages": [HI], **fields})[0].options().get("reasoning_budget") == budget


def test_what_is_taken_and_what_is_ignored():
    about = {"metadata": {"user_id": "u"}, "service_tier": "auto", "betas": ["b"], "anthropic_version": "v", "speed": "fast"}
    neutral = {"mcp_servers": [], "container": None, "cache_control": {"type": "ephemeral"}}
    assert read(MessagesBody, {"messages": [HI], **about, **neutral})[1] == ""
    ignored = {
        "messages": [
            {**HI, "mood": 1},
            {"role": "assistant", "content": [text("a", odd=1), {"type": "redacted_thinking", "data": "x"}]},
        ],
        "tools": [{**WEATHER, "defer_loading": True}],
        "context_management": {"edits": []},
    }
    told = "messages[0].mood, messages[1].content[0].odd, messages[1].content[1]"
    found = read(MessagesBody, ignored)[1]
    assert set(found.split(", ")) == {*told.split(", "), "tools[0].defer_loading", "context_management"}
    with pytest.raises(InvalidRequestError, match=r"messages\[0\]\.mood is not a field"):
        read(MessagesBody, {"messages": ignored["messages"]}, strict=True)


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "eA=="}}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"messages": []}, "messages is empty; give at least one, such as {'role': 'user', 'content': 'hi'}"),
        ({"messages": ["a"]}, "messages[0] is 'a'; give an object with role and content"),
        ({"messages": [{"content": "a"}]}, "messages[0].role is missing; give 'user' or 'assistant'"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role is 'tool'; give 'user' or 'assistant'"),
        ({"messages": [{"role": "user"}]}, "messages[0].content is missing; give a string, or a list of blocks"),
        ({"messages": [{**HI, "content": 5}]}, "messages[0].content is 5; give a string, or a list of blocks"),
        ({"messages": [{**HI, "content": ["a"]}]}, "messages[0].content[0] is 'a'; give an object with a type, 'text' or"),
        (
            {"messages": [{**HI, "content": [{"text": "a"}]}]},
            "messages[0].content[0].type is missing; a message with role 'user'",
        ),
        ({"messages": [{**HI, "content": [{"type": "text"}]}]}, "messages[0].content[0].text is missing; give a string"),
        (
            {"messages": [{**HI, "role": "assistant", "content": [IMAGE]}]},
            "messages[0].content[0].type is 'image'; images are read in a user's message",
        ),
        (
            {"messages": [{**HI, "content": [{**IMAGE, "source": {"type": "file", "file_id": "f"}}]}]},
            "messages[0].content[0].source is an object; nothing is kept here between requests; give {'type': 'base64'",
        ),
        (
            {"messages": [{**HI, "content": [result([{"type": "document"}])]}]},
            "messages[0].content[0].content[0].type is 'document'; only text is read here; give the document's text",
        ),
        (
            {"messages": [{**HI, "content": [CALL]}]},
            "messages[0].content[0].type is 'tool_use'; a message with role 'user' takes",
        ),
        (
            {"messages": [{**HI, "content": [{"type": "tool_result", "content": "a", "is_error": 1}]}]},
            "messages[0].content[0].is_error is 1; give true or false; messages[0].content[0].tool_use_id is missing; give a",
        ),
        (
            {"messages": [{"role": "assistant", "content": [{**CALL, "id": "", "input": "{}"}]}]},
            "messages[0].content[0].input is '{}'; give an object with the arguments by name; messages[0].content[0].id is ''",
        ),
        ({"messages": [{**HI, "contents": "a"}]}, "messages[0].contents is not a field; did you mean 'content'?"),
        ({"system": [{"type": "image"}]}, "system[0].type is 'image'; images are read in a user's message"),
        ({"system": 5}, "system is 5; give a string, or a list of blocks"),
        ({"tools": [{"name": "bash", "type": "bash_20250124"}]}, "tools[0].input_schema is missing; give the JSON"),
        ({"tools": [{**WEATHER, "type": "bash_20250124"}]}, "tools[0].type is 'bash_20250124'; give 'custom', or leave it out"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name is missing; give the name of one of the tools"),
        ({"tool_choice": {"type": "any", "name": "f"}}, "tool_choice.name is 'f' beside type 'any'; it belongs to type 'tool'"),
        ({"tool_choice": {"type": "required"}}, "tool_choice.type is 'required'; it should be 'auto', 'any', 'tool' or 'none'"),
        ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens is 0; it should be greater than or"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers is a list; this server cannot do that: nothing is called from here"),
        ({"container": "c"}, "container is 'c'; this server cannot do that"),
        ({"n": 2}, "n is 2; it should be less than or equal to 1"),
        ({"stop_sequence": "a"}, "'stop_sequence' is not a field; did you mean 'stop_sequences'?"),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {}}}, "regex": "a"},
            "regex and output_config.format were given together; give one of them",
        ),
        (
            {
                "output_config": {"format": {"type": "json_schema", "schema": {}}},
                "output_format": {"type": "json_schema", "schema": {}},
            },
            "output_format was given beside output_config.format; give one of them",
        ),
        ({"messages": [{**HI, "content": [text("a")] * 20_001}]}, "messages is a list; give at most 20,000 blocks, not 20,001"),
        ({"messages": [HI] * 3001}, "messages is a list; give at most 3,000 messages, not 3,001"),
    ],
)
def test_what_is_refused(fields, told):
    with pytest.raises(InvalidRequestError) as caught:
        read(MessagesBody, {"messages": [HI], **fields})
    assert told in str(caught.value)


BLOCKS = st.sampled_from(
    [*(CALL, IMAGE, text("a"), result("b"), result([text("a"), IMAGE])), {"type": "thinking", "thinking": "a"}, {"type": []}]
)
PARTS = st.recursive(
    BLOCKS | st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "role", "content", "input", "is_error", "text", "name", "x"]), inner)
    ),
    max_leaves=6,
)
ROLES = st.sampled_from(["user", "assistant", "system"])
MESSAGES = st.lists(st.fixed_dictionaries({"role": ROLES | PARTS, "content": PARTS}) | PARTS, max_size=3)
OTHERS = st.sampled_from(["system", "tools", "tool_choice", "thinking", "output_config"])


@settings(max_examples=60, deadline=None)
@given(MESSAGES | PARTS, st.dictionaries(OTHERS, PARTS))
def test_anything_is_read_or_refused(messages, more):
    """Whatever is read is what the library reads as messages."""
    try:
        found, _ = read(MessagesBody, {"messages": messages, **more})
    except InvalidRequestError:
        return
    problems = []
    read_messages(found.chat_messages(), problems)
    assert not problems
    found.options()
    found.chat_options()


# -- writing ------------------------------------------------------------------------------------------------------


def completion(words, reason="stop", calls=(), reasoning="", stop_text=""):
    return Completion(
        words, (1, 2), reason, Usage(9, 2, 4), Timings(0, 0), tool_calls=calls, reasoning=reasoning, stop_text=stop_text, seed=3
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "read_as"),
    [
        ('{"a": null, "b": [1]}', {"a": None, "b": [1]}),
        ("", {}),
        ('{"a": ', {"INVALID_JSON": '{"a": '}),
        ("[1]", {"INVALID_JSON": "[1]"}),
        ('{"a": "\\ud800"}', {"INVALID_JSON": '{"a": "\\ud800"}'}),
        ('{"a": NaN}', {"INVALID_JSON": '{"a": NaN}'}),
        ('{"a": 1e999}', {"INVALID_JSON": '{"a": 1e999}'}),
        (f'{{"a": {"9" * 5000}}}', {"INVALID_JSON": f'{{"a": {"9" * 5000}}}'}),
        ('{"a":' * 5000, {"INVALID_JSON": '{"a":' * 5000}),
    ],
)
def test_arguments_are_objects(arguments, read_as):
    told = json.loads(MessageWriter("m").whole([completion("", "tool_calls", [ToolCall("c", "f", arguments)])]))
    assert told["content"] == [{"type": "tool_use", "id": "c", "name": "f", "input": read_as}]
    assert told["stop_reason"] == "tool_use"


@pytest.mark.parametrize(
    ("ended", "reason", "sequence"),
    [
        (completion("a"), "end_turn", None),
        (completion("a", stop_text="x"), "stop_sequence", "x"),
        (completion("a", "length"), "max_tokens", None),
        (completion("a", "cancelled"), "max_tokens", None),
        (completion("a", "length", [ToolCall("c", "f", "{")]), "max_tokens", None),
    ],
)
def test_why_it_ended(ended, reason, sequence):
    told = json.loads(MessageWriter("m").whole([ended]))
    assert (told["stop_reason"], told["stop_sequence"]) == (reason, sequence)
    assert told["usage"] == {
        "input_tokens": 5,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 4,
        "output_tokens": 2,
    }
    assert told["seed"] == 3


# -- over HTTP ----------------------------------------------------------------------------------------------------


def ask(url, path="/v1/messages", headers=None, **body):
    headers = {"x-api-key": API, "anthropic-version": "2023-06-01"} if headers is None else headers
    return httpx.post(f"{url}{path}", json={"messages": [HI], "max_tokens": 300, **body}, headers=headers, timeout=60)


def streamed(url, **body):
    """The events of a stream, and what they add up to as Anthropic's package adds them."""
    lines = [line for line in ask(url, stream=True, **body).text.splitlines() if line]
    names = [line.removeprefix("event: ") for line in lines[::2]]
    events = [json.loads(line.removeprefix("data: ")) for line in lines[1::2]]
    assert names == [event["type"] for event in events]
    assert names[:2] == ["message_start", "ping"]
    assert names[-2:] == ["message_delta", "message_stop"]
    message, open_block = events[0]["message"], None
    for event in events[2:-2]:
        if event["type"] == "content_block_start":
            assert open_block is None
            open_block = event["index"]
            assert open_block == len(message["content"])
            message["content"].append({**event["content_block"], "json": ""})
        elif event["type"] == "content_block_stop":
            assert event["index"] == open_block
            open_block = None
        else:
            assert event["index"] == open_block
            block, delta = message["content"][open_block], event["delta"]
            field = {"input_json_delta": "partial_json"}.get(delta["type"], delta["type"].removesuffix("_delta"))
            name = {"partial_json": "json"}.get(field, field)
            block[name] += delta[field]
    assert open_block is None
    for block in message["content"]:
        written = block.pop("json")
        if block["type"] == "tool_use":
            block["input"] = json.loads(written or "{}")
    return events, {**message, **events[-2]["delta"], "usage": events[-2]["usage"], "lora": events[-2]["lora"]}


@pytest.mark.parametrize("path", ["/v1/messages", "/messages", "/v1/messages?beta=true"])
@pytest.mark.parametrize("headers", [{"x-api-key": API}, {"Authorization": f"Bearer {API}"}])
def test_an_answer(url, engine, path, headers):
    told = ask(url, path, headers, model="pirate", metadata={"user_id": "u"})
    assert told.status_code == 200
    found = told.json()
    assert found.pop("id").startswith("msg_")
    assert found.pop("lora")[0]["name"] == "pirate"
    assert found == {
        "type": "message",
        "role": "assistant",
        "model": "pirate",
        "content": [text("Arrr ahoy")],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 1, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 2, "output_tokens": 2},
    }


def test_a_stream(url, engine):
    events, message = streamed(url, lora={"pirate": 0.5})
    assert events[0]["message"]["usage"]["input_tokens"] == 5
    assert [event["delta"]["text"] for event in events if event["type"] == "content_block_delta"] == ["Arrr", " ahoy"]
    assert message["content"] == [text("Arrr ahoy")]
    assert (message["stop_reason"], message["usage"]["output_tokens"]) == ("end_turn", 2)
    assert message["lora"][0]["scale"] == 0.5


def test_nothing_said_has_no_blocks(url, engine):
    assert ask(url, max_tokens=0).json()["content"] == []
    assert streamed(url, max_tokens=0)[1]["content"] == []


def test_tokens_are_counted(url, engine):
    for path in ("/v1/messages/count_tokens", "/messages/count_tokens"):
        told = ask(url, path, model="claude-any", tools=[WEATHER], thinking={"type": "adaptive"})
        assert (told.status_code, told.json()) == (200, {"input_tokens": 5})


@pytest.mark.parametrize(
    ("options", "status", "kind", "message"),
    [
        ({"headers": {}}, 401, "authentication_error", "no key was given; send it as X-Api-Key"),
        ({"headers": {"x-api-key": "other"}}, 401, "authentication_error", "this key is not known"),
        ({"model": "gone"}, 404, "not_found_error", "no such model: 'gone'"),
        ({"lora": {"gone": 1}}, 404, "not_found_error", "no such adapter: 'gone'"),
        (
            {"messages": [{**HI, "content": [{"type": "document"}]}]},
            400,
            "invalid_request_error",
            "content[0].type is 'document'",
        ),
        ({"messages": [{**HI, "content": "a" * 1001}]}, 400, "invalid_request_error", "1001 tokens are more than the context"),
        ({"top_p": 2}, 400, "invalid_request_error", "top_p is 2"),
        ({"tool_choice": {"type": "any"}}, 400, "invalid_request_error", "tool_choice is 'required', but there is no tool"),
    ],
)
def test_errors(url, engine, options, status, kind, message):
    for stream in (False, True):
        told = ask(url, **options, stream=stream)
        assert told.status_code == status
        assert told.json() == {"type": "error", "error": {"type": kind, "message": told.json()["error"]["message"]}}
        assert message in told.json()["error"]["message"]


def test_errors_of_counting(url, engine):
    told = ask(url, "/v1/messages/count_tokens", tool_choice={"type": "any"})
    assert (told.status_code, told.json()["error"]["type"]) == (400, "invalid_request_error")


def test_errors_of_the_server(url, engine):
    engine.full = True
    told = ask(url)
    assert (told.status_code, told.json()["error"]["type"]) == (429, "rate_limit_error")
    assert int(told.headers["retry-after"]) >= 1
    engine.full = False
    told = ask(url, messages=[{**HI, "content": "a FAIL"}])
    assert (told.status_code, told.json()["error"]["type"]) == (500, "api_error")
    lines = ask(url, messages=[{**HI, "content": "a FAIL"}], stream=True).text.splitlines()
    assert lines[-3] == "event: error"
    error = json.loads(lines[-2].removeprefix("data: "))
    assert error == {"type": "error", "error": {"type": "api_error", "message": error["error"]["message"]}}


def test_what_was_ignored_is_named(url, engine):
    told = ask(url, context_management={"edits": []})
    assert (told.status_code, told.headers["llamafu-ignored"]) == (200, "context_management")


def test_a_body_that_is_too_large(engine):
    with serving(engine, max_body=1000) as address:
        told = ask(address, messages=[{**HI, "content": "a" * 2000}])
    assert (told.status_code, told.json()["error"]["type"]) == (413, "request_too_large")


# -- with a model -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def live(real, tiny_model):
    with (
        Engine(tiny_model, n_ctx=16384, library=real.path) as engine,
        serving(engine, alias=["claude-sonnet-4-5-20250929"]) as url,
    ):
        yield url


@pytest.fixture
def template(monkeypatch):
    monkeypatch.setattr(Model, "chat_template", lambda self: TEMPLATE)


def test_a_model_that_thinks_speaks_and_calls(live, template, monkeypatch):
    said = '<think>Hm.</think>I look.<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'
    with saying(monkeypatch, f'{said}<tool_call>{{"name": "weather", "arguments": {{}}}}</tool_call>'):
        whole = ask(live, tools=[WEATHER]).json()
        events, message = streamed(live, tools=[WEATHER])
        omitted = ask(live, thinking={"type": "adaptive", "display": "omitted"}).json()
        unseen = streamed(live, thinking={"type": "adaptive", "display": "omitted"})[1]
    for told in (whole, message):
        thought, spoken, *calls = told["content"]
        assert thought == {"type": "thinking", "thinking": "Hm.", "signature": "unsigned"}
        assert spoken == text("I look.")
        assert [(call["type"], call["name"], call["input"]) for call in calls] == [
            ("tool_use", "weather", {"city": "Rome"}),
            ("tool_use", "weather", {}),
        ]
        assert len({call["id"] for call in calls}) == 2
        assert told["stop_reason"] == "tool_use"
    assert whole["usage"] == message["usage"] | {"input_tokens": whole["usage"]["input_tokens"]} | {
        "cache_read_input_tokens": whole["usage"]["cache_read_input_tokens"]
    }
    start = events[0]["message"]["usage"]["input_tokens"]
    assert start == sum(message["usage"][name] for name in ("input_tokens", "cache_read_input_tokens"))
    assert omitted["content"][0] == unseen["content"][0] == {"type": "thinking", "thinking": "", "signature": "unsigned"}
    parts = [event["delta"]["partial_json"] for event in events if event.get("delta", {}).get("type") == "input_json_delta"]
    assert len(parts) > 3


def test_a_call_and_its_result(live, template):
    forced = {"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "weather"}}
    told = ask(live, **forced).json()
    assert told["stop_reason"] == "tool_use"
    (call,) = told["content"]
    assert call["input"]["city"] in {"Paris", "Rome"}
    (same,) = streamed(live, **forced, temperature=0)[1]["content"]
    assert same["input"]["city"] in {"Paris", "Rome"}
    history = [
        HI,
        {"role": "assistant", "content": told["content"]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call["id"], "content": "sun"}]},
    ]
    told = ask(live, messages=history, tools=[WEATHER], max_tokens=4, ignore_eos=True)
    assert (told.status_code, told.json()["stop_reason"]) == (200, "max_tokens")
    named = ask(live, tools=[WEATHER], tool_choice={"type": "tool", "name": "f"})
    assert (named.status_code, "tool_choice names 'f'" in named.json()["error"]["message"]) == (400, True)


def test_thinking_ends_at_its_budget(live, monkeypatch):
    """The template opens the reasoning, so that a model that never ends it thinks until the budget is spent."""
    monkeypatch.setattr(Model, "chat_template", lambda self: f"{TEMPLATE}<think>")
    asked = {"max_tokens": 40, "ignore_eos": True, "temperature": 0}
    endless = ask(live, **asked, thinking={"type": "adaptive"}).json()["content"]
    assert [block["type"] for block in endless] == ["thinking"]
    for budget in (3, 9):
        thought, spoken = ask(live, **asked, thinking={"type": "enabled", "budget_tokens": budget}).json()["content"]
        assert (thought["type"], spoken["type"]) == ("thinking", "text")
        assert endless[0]["thinking"].startswith(thought["thinking"])
        assert len(thought["thinking"]) < len(endless[0]["thinking"])


def test_stop_sequences_are_named(live, template, monkeypatch):
    with saying(monkeypatch, "one two three"):
        told = ask(live, stop_sequences=["x", " thr"]).json()
        assert (told["content"], told["stop_reason"], told["stop_sequence"]) == ([text("one two")], "stop_sequence", " thr")
        message = streamed(live, stop_sequences=["x", " thr"])[1]
        assert (message["content"], message["stop_reason"], message["stop_sequence"]) == (
            [text("one two")],
            "stop_sequence",
            " thr",
        )
        assert ask(live, stop_sequences=["x"]).json()["stop_sequence"] is None


def test_an_answer_is_continued(live, template, monkeypatch):
    """The last message of an assistant is the beginning of the answer; thinking and effort reach the template."""

    def count(**body):
        return ask(live, "/v1/messages/count_tokens", **body).json()["input_tokens"]

    begun = [HI, {"role": "assistant", "content": "Ar"}]
    with_turn = count(messages=[HI])
    assert count(messages=begun) == with_turn + 2  # the two letters in place of nothing
    assert count(thinking={"type": "disabled"}) == with_turn + len("False")
    assert count(output_config={"effort": "high"}) == with_turn + len("high")
    assert count(tools=[WEATHER]) > with_turn


def test_the_request_of_claude_code(live, monkeypatch):
    """By the tiny model's own template, which has no place for tools, so that a grammar holds what is called."""
    headers = {"Authorization": f"Bearer {API}", **claude_code.HEADERS}
    counted = ask(live, "/v1/messages/count_tokens?beta=true", headers, **claude_code.BODY)
    assert counted.status_code == 200, counted.text
    told = ask(live, "/v1/messages?beta=true", headers, **{**claude_code.BODY, "max_tokens": 4})
    assert told.status_code == 200, told.text
    assert told.headers["llamafu-ignored"] == "context_management"
    lines = told.text.splitlines()
    assert lines[-3] == "event: message_stop"
    start = json.loads(lines[1].removeprefix("data: "))["message"]
    assert start["usage"]["input_tokens"] == counted.json()["input_tokens"]
