"""OpenAI's Responses API: whole answers, the order of a stream's events, refusals, tools, reasoning, and who leaves."""

import json

import httpx
import pytest
from helpers import one_server
from helpers.cpu_time import best_cpu_seconds
from helpers.scripted import saying
from helpers.served import wait_for
from helpers.serving import API, FakeEngine, serving

from llamafu import Engine
from llamafu._native.model import Model
from llamafu.generation.completion import Completion, Piece, Timings, TokenLogprob, Usage
from llamafu.generation.tool_call import ToolCallDelta
from llamafu.generation.tools.answer_format import AnswerFormat, AnswerParser
from llamafu.generation.tools.reasoning_marks import reasoning_of
from llamafu.server.http.sse import written_event
from llamafu.server.schemas.reading import read_body
from llamafu.server.schemas.response_answers import ResponseAnswer
from llamafu.server.schemas.response_request import ResponseBody
from llamafu.server.schemas.response_writer import ResponseWriter

shared = one_server.shared
url = one_server.url
engine = one_server.engine
folder = one_server.folder
raw = one_server.raw

USER = {"role": "user", "content": "hi"}
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "name": "weather", "parameters": CITY, "strict": True}
NAMED = {"type": "function", "name": "weather"}
TEMPLATE = (
    "{# <tool_call> <think> #}{% for t in tools or [] %}{{ t.function.name }} {% endfor %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.reasoning_content }}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}[{{ c.function.name }} {{ c.function.arguments | tojson }}]{% endfor %}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{{ reasoning_effort }}{{ verbosity }}{% endif %}"
)


def writer_of(**fields):
    return ResponseWriter(read_body(ResponseBody, {"input": "hi", **fields}), "m")


def ask(address, **body):
    answer = httpx.post(f"{address}/v1/responses", json={"input": "hi", **body}, headers={"X-Api-Key": API}, timeout=60)
    return answer.status_code, answer.json()


def streamed(address, **body):
    """Return the events of a stream, checked for what holds of every one, and the response that they end with."""
    given = {"input": "hi", "stream": True, **body}
    with httpx.stream("POST", f"{address}/v1/responses", json=given, headers={"X-Api-Key": API}, timeout=60) as answer:
        assert answer.status_code == 200
        text = answer.read().decode()
    events = []
    for each in text.removesuffix("\n\n").split("\n\n"):
        name, data = each.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    assert [event["sequence_number"] for event in events] == [*range(len(events))]
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert {event["response"]["status"] for event in events[:2]} == {"in_progress"}
    last = events[-1]["response"]
    assert events[-1]["type"] == f"response.{last['status']}"
    assert events[0]["response"]["id"] == last["id"]
    return events, last


def built(events):
    """Return the items that the events between build up, each of which has to begin and to end, one after another."""
    items, texts = [], []
    for event in events[2:-1]:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert event["output_index"] == len(items)
            assert event["item"]["status"] == "in_progress"
            items.append(event["item"])
            texts.append("")
            continue
        item = items[-1]
        assert event["output_index"] == len(items) - 1
        assert event.get("item_id", item["id"]) == item["id"]
        if kind.endswith(".delta"):
            texts[-1] += event["delta"]
        elif kind.endswith(("text.done", "arguments.done", "input.done")):
            assert event.get("text", event.get("arguments", event.get("input"))) == texts[-1]
        elif kind == "content_part.added":
            assert event["part"]["text"] == ""
        elif kind == "content_part.done":
            assert event["part"]["text"] == texts[-1]
        else:
            assert kind == "output_item.done"
            assert event["item"]["id"] == item["id"]
            items[-1] = event["item"]
    assert all(item["status"] != "in_progress" for item in items)
    return items


def test_an_answer(raw):
    body = {"input": "ahoy there", "instructions": "x", "metadata": {"a": "b"}, "max_output_tokens": 9}
    told = raw.post("/v1/responses", json=body).json()
    ResponseAnswer.model_validate(told)
    assert (told["object"], told["status"], told["model"], told["error"]) == ("response", "completed", "smol", None)
    [item] = told["output"]
    assert item["content"] == [{"type": "output_text", "text": "ahoy there", "annotations": [], "logprobs": []}]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    assert told["usage"] == {
        "input_tokens": 3,
        "input_tokens_details": {"cached_tokens": 2},
        "output_tokens": 2,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 5,
    }
    again = {
        "instructions": "x",
        "metadata": {"a": "b"},
        "max_output_tokens": 9,
        "store": False,
        "tools": [],
        "temperature": 0.8,
    }
    assert {name: told[name] for name in again} == again
    assert raw.post("/responses", json={"input": "ahoy"}).json()["output"][0]["content"][0]["text"] == "ahoy"


def test_one_that_is_cut(raw):
    told = raw.post("/v1/responses", json={"input": "ahoy there", "max_output_tokens": 1}).json()
    assert (told["status"], told["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert told["output"][0]["status"] == "incomplete"


def test_the_order_of_a_stream(url, engine):
    events, last = streamed(url, input="ahoy there", tools=[WEATHER], metadata={"é": "\u2028"})
    assert [event["type"].removeprefix("response.") for event in events[2:]] == [
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert built(events) == last["output"]
    assert last["output"][0]["content"][0]["text"] == "ahoy there"
    assert last["usage"]["output_tokens"] == 2
    for event in (*events[:2], events[-1]):
        assert (event["response"]["tools"], event["response"]["metadata"]) == ([WEATHER], {"é": "\u2028"})
    events, last = streamed(url, input="ahoy there", max_output_tokens=1)
    assert last["incomplete_details"] == {"reason": "max_output_tokens"}
    assert built(events) == last["output"]


def test_probabilities(url, engine):
    asked = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
    token = {"token": "ahoy", "logprob": -0.5, "bytes": [*b"ahoy"]}
    entry = {**token, "top_logprobs": [token]}
    assert ask(url, input="ahoy", **asked)[1]["output"][0]["content"][0]["logprobs"] == [entry]
    events, last = streamed(url, input="ahoy", **asked)  # the fake engine's pieces have none: they come at the end
    assert last["output"][0]["content"][0]["logprobs"] == [entry]
    assert built(events) == last["output"]


def test_probabilities_of_pieces_come_with_their_text():
    writer = writer_of()
    tokens = [TokenLogprob(1, text, -0.5, ()) for text in ("a", "b", "c")]
    pieces = [Piece(text, (token,)) for text, token in zip(("", "ab", "c"), tokens, strict=True)]
    events = [event for piece in pieces for event in writer.pieces(0, piece)]
    told = [json.loads(f"{{{event['fields']}}}") for event in events if event["type"].endswith(".delta")]
    found = [[one["token"] for one in each["logprobs"]] for each in told]
    assert found == [["a", "b"], ["c"]]


@pytest.mark.parametrize(
    ("body", "lora"),
    [
        ({"model": "pirate"}, {"pirate": 1.0}),
        ({"model": "smol"}, None),
        ({"lora": {"shout": 0.5}}, {"shout": 0.5}),
        ({"model": "pirate", "lora": {}}, {}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_adapters(url, engine, folder, body, lora, stream):
    told = streamed(url, **body)[1] if stream else ask(url, **body)[1]
    assert engine.asked[-1][1].get("lora") == lora
    assert {one["name"]: one["scale"] for one in told["lora"]} == (lora or {})
    assert told["model"] == body.get("model", "smol")


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"model": "gone"}, 404, "not_found", None),
        ({"input": 3}, 400, "invalid_request", "input"),
        ({"previous_response_id": "resp_1"}, 400, "invalid_request", "previous_response_id"),
        ({"input": "x" * 1001}, 400, "context_length_exceeded", None),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "f"}}, 400, "invalid_request", "tool_choice"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals(url, engine, body, status, code, param, stream):
    got, told = ask(url, stream=stream, **body)
    assert (got, told["error"]["code"], told["error"]["param"]) == (status, code, param)


def test_a_full_queue(url, engine):
    engine.full = True
    assert ask(url)[0] == 429


def test_an_answer_that_fails(url, engine):
    last = streamed(url, input="ahoy FAIL there")[1]
    assert (last["status"], last["error"]["code"]) == ("failed", "server_error")
    assert last["error"]["message"]
    assert last["output"][0]["content"][0]["text"] == "ahoy"
    assert ask(url, input="ahoy FAIL there")[0] == 500


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_request(url, engine, stream):
    engine.endless, engine.pace = True, 0.01
    options = {"json": {"input": "ahoy", "stream": stream}, "headers": {"X-Api-Key": API}, "timeout": 0.3}
    if stream:
        with httpx.stream("POST", f"{url}/v1/responses", **options) as answer:
            lines = answer.iter_lines()
            while "output_text.delta" not in next(lines):
                pass
            assert len(engine.running) == 1
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/responses", **options)
    assert engine.asked
    assert wait_for(lambda: not engine.running)


def test_a_silent_stream_is_kept_open():
    engine = FakeEngine()
    engine.pace = 0.2
    with (
        serving(engine, ping=0.05) as address,
        httpx.stream(
            "POST", f"{address}/v1/responses", json={"input": "a", "stream": True}, headers={"X-Api-Key": API}
        ) as answer,
    ):
        text = answer.read().decode()
    assert "\n\n: ping\n\n" in text
    assert text.endswith("}\n\n")


def test_ignored_fields_are_told(raw):
    told = raw.post("/v1/responses", json={"input": [{**USER, "mood": 1}], "moderation": {}, "stream": True})
    assert told.headers["llamafu-ignored"] == "moderation, input[0].mood"


def test_a_piece_costs_little():
    """Of the 0.3 ms of CPU that the server may take for a token, the writing of its event is a small part."""
    writer = writer_of(tools=[WEATHER] * 100)

    def write():
        for _ in range(1000):
            for event in writer.pieces(0, " there"):
                written_event(event)

    write()
    assert best_cpu_seconds(write, 3) < 0.05


# -- tools and reasoning, with a real engine --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def live(real, tiny_model):
    with Engine(tiny_model, n_ctx=2048, library=real.path) as engine, serving(engine) as url:
        yield url


@pytest.fixture
def template(monkeypatch):
    """Give every model a template with marks for calls and reasoning."""
    monkeypatch.setattr(Model, "chat_template", lambda self: TEMPLATE)


SAID = '<think>\nHm.\n</think>\nI look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'


def test_reasoning_text_and_calls(live, template, monkeypatch):
    with saying(monkeypatch, f'{SAID}\n<tool_call>{{"name": "weather", "arguments": {{}}}}</tool_call>'):
        _, whole = ask(live, tools=[WEATHER])
        events, last = streamed(live, tools=[WEATHER])
    assert whole["status"] == last["status"] == "completed"
    assert built(events) == last["output"]
    for told in (whole, last):
        ResponseAnswer.model_validate(told)
        reasoning, message, *calls = told["output"]
        assert reasoning["content"] == [{"type": "reasoning_text", "text": "Hm."}]
        assert message["content"][0]["text"] == "I look."
        assert [(call["type"], call["name"], call["arguments"]) for call in calls] == [
            ("function_call", "weather", '{"city": "Rome"}'),
            ("function_call", "weather", "{}"),
        ]
        assert len({call["call_id"] for call in calls} | {call["id"] for call in calls}) == 4
        assert 0 < told["usage"]["output_tokens_details"]["reasoning_tokens"] < told["usage"]["output_tokens"] / 2
    kinds = {event["type"].removeprefix("response.") for event in events}
    assert {"reasoning_text.delta", "reasoning_text.done", "function_call_arguments.delta"} <= kinds


def test_text_after_a_call_is_a_message_of_its_own(live, template, monkeypatch):
    with saying(monkeypatch, 'a<tool_call>{"name": "weather", "arguments": {}}</tool_call>b'):
        events, last = streamed(live, tools=[WEATHER])
    assert built(events) == last["output"]
    assert [item["type"] for item in last["output"]] == ["message", "function_call", "message"]


@pytest.mark.parametrize("choice", [NAMED, "required"])
def test_a_forced_call(live, template, choice):
    asked = {"tools": [WEATHER], "tool_choice": choice, "parallel_tool_calls": False, "temperature": 0}
    status, whole = ask(live, **asked)
    assert (status, whole["tool_choice"]) == (200, choice)
    [call] = whole["output"]
    assert json.loads(call["arguments"])["city"] in {"Paris", "Rome"}
    events, last = streamed(live, **asked)
    assert built(events) == last["output"]
    assert last["output"][0]["arguments"] == call["arguments"]
    assert sum(event["type"] == "response.function_call_arguments.delta" for event in events) > 2


def test_some_of_the_tools(live, template):
    """The model's weights are random: only the grammar keeps it from the other one."""
    choice = {"type": "allowed_tools", "mode": "required", "tools": [NAMED]}
    asked = {"tools": [{"type": "function", "name": "now"}, WEATHER], "tool_choice": choice, "parallel_tool_calls": False}
    for seed in range(3):
        status, told = ask(live, seed=seed, **asked)
        ResponseAnswer.model_validate(told)
        assert (status, told["tool_choice"]) == (200, choice)
        assert [item["name"] for item in told["output"]] == ["weather"]
    assert ask(live, **{**asked, "tools": [{"type": "function", "name": "now"}]})[0] == 400


def test_calls_of_custom_tools_and_in_namespaces(live, template, monkeypatch):
    """A text as input comes as it is written, not as JSON; a tool of a namespace comes with it."""
    tools = [
        {"type": "custom", "name": "patch", "description": "Edits."},
        {"type": "namespace", "name": "mcp__files", "tools": [{"type": "function", "name": "list"}]},
    ]
    arguments = json.dumps({"input": 'a "b"\n\té\U0001f600 \\'})
    calls = (f'{{"name": "patch", "arguments": {arguments}}}', '{"name": "mcp__files__list", "arguments": {"at": "/"}}')
    with saying(monkeypatch, "".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)):
        _, whole = ask(live, tools=tools)
        events, last = streamed(live, tools=tools)
    assert built(events) == last["output"]
    for told in (whole, last):
        ResponseAnswer.model_validate(told)
        patch, listed = told["output"]
        assert (patch["type"], patch["name"], patch["input"]) == ("custom_tool_call", "patch", json.loads(arguments)["input"])
        assert (listed["type"], listed["name"], listed["arguments"]) == ("function_call", "list", '{"at": "/"}')
        assert (listed["namespace"], told["tools"]) == ("mcp__files", tools)
    deltas = [event["delta"] for event in events if event["type"] == "response.custom_tool_call_input.delta"]
    assert len(deltas) > 5
    outputs = [
        {"type": "custom_tool_call_output", "call_id": last["output"][0]["call_id"], "output": "Done"},
        {"type": "function_call_output", "call_id": last["output"][1]["call_id"], "output": "none"},
    ]
    with saying(monkeypatch, "Both."):
        status, told = ask(live, input=[USER, *last["output"], *outputs], tools=tools)
    assert (status, told["output"][0]["content"][0]["text"]) == (200, "Both.")


@pytest.mark.parametrize(
    ("arguments", "given"),
    [('{"input": "a\\', "a"), ('{"input": "a', "a"), ("nothing", "nothing"), ('{"input": 5}', "5"), ("{}", ""), ("[1]", "[1]")],
)
def test_input_that_is_cut_or_no_text(arguments, given):
    """Nothing is lost, and what was told stays told."""
    writer = writer_of(tools=[{"type": "custom", "name": "f"}])
    pieces = [Piece("", tool_calls=(ToolCallDelta(0, "call_1", "f"),))]
    pieces += [Piece("", tool_calls=(ToolCallDelta(0, arguments=letter),)) for letter in arguments]
    events = [event for piece in pieces for event in writer.pieces(0, piece)]
    events += writer.last(0, Completion("", (), "tool_calls", Usage(1, 1, 0), Timings(0.1, 0.1), ()))
    read = [json.loads(f"{{{event['fields']}}}") for event in events if "custom_tool_call_input" in event["type"]]
    assert "".join(each.get("delta", "") for each in read) == read[-1]["input"] == given


def test_a_call_and_its_output_go_back(live, template, monkeypatch):
    with saying(monkeypatch, SAID):
        _, told = ask(live, tools=[WEATHER])
    output = {"type": "function_call_output", "call_id": told["output"][-1]["call_id"], "output": "sun"}
    with saying(monkeypatch, "Sunny."):
        status, told = ask(live, input=[USER, *told["output"], output], tools=[WEATHER])
    assert (status, told["output"][0]["content"][0]["text"]) == (200, "Sunny.")


def test_a_reasoning_that_is_cut(live, template, monkeypatch):
    with saying(monkeypatch, "<think>Hm, so and so"):
        events, last = streamed(live, max_output_tokens=12)
    assert built(events) == last["output"]
    assert [item["type"] for item in last["output"]] == ["reasoning", "message"]
    assert {item["status"] for item in last["output"]} == {"incomplete"}


def test_a_schema_holds_the_text(live, template):
    wanted = {"type": "json_schema", "name": "x", "schema": CITY, "strict": True}
    _, told = ask(live, text={"format": wanted})
    assert json.loads(told["output"][0]["content"][0]["text"])["city"] in {"Paris", "Rome"}
    assert told["text"] == {"format": wanted, "verbosity": None}


def test_hints_reach_the_template_and_an_answer_at_the_end_is_not_continued(live, template):
    plain = ask(live, max_output_tokens=1)[1]["usage"]["input_tokens"]
    assert ask(live, max_output_tokens=1, reasoning={"effort": "low"})[1]["usage"]["input_tokens"] > plain
    assert ask(live, max_output_tokens=1, text={"verbosity": "low"})[1]["usage"]["input_tokens"] > plain
    ended = ask(live, max_output_tokens=1, input=[USER, {"role": "assistant", "content": "so"}])[1]["usage"]["input_tokens"]
    assert ended > plain + len("</>")


def test_reasoning_tokens_are_counted_without_marks():
    parser = AnswerParser(AnswerFormat(form=None, reasoning=reasoning_of("<think>")))
    flags = []
    for text in ("<think>", "\nSo", " it is", "</think>", "\nYes"):
        parser.feed(text)
        flags.append(parser.is_reasoning)
    assert flags == [False, True, True, False, False]
