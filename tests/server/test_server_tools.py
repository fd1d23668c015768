"""Tools and reasoning over HTTP, as OpenAI's clients send and read them, with a real engine behind."""

import json

import httpx
import pytest
from helpers.scripted import saying
from helpers.serving import API, serving

from llamafu import Engine
from llamafu._native.model import Model
from llamafu.client import TabbyClient

USER = {"role": "user", "content": "hi"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
NAMED = {"type": "function", "function": {"name": "weather"}}
TURNS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}[{{ c.function.name }} {{ c.function.arguments | tojson }}]{% endfor %}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{{ reasoning_effort }}{% endif %}"
)
HERMES = "{# <tool_call> <think> #}{% for t in tools or [] %}{{ t.function.name }} {% endfor %}" + TURNS
PLAIN = TURNS.replace(
    "{% for c in m.tool_calls or [] %}[{{ c.function.name }} {{ c.function.arguments | tojson }}]{% endfor %}", ""
)


@pytest.fixture(scope="module")
def url(real, tiny_model):
    with Engine(tiny_model, n_ctx=2048, library=real.path) as engine, serving(engine) as url:
        yield url


@pytest.fixture(autouse=True)
def template(monkeypatch):
    """Give every model a template."""

    def give(text):
        monkeypatch.setattr(Model, "chat_template", lambda self: text)

    give(HERMES)
    return give


def ask(url, **body):
    answer = httpx.post(
        f"{url}/v1/chat/completions",
        json={"messages": [USER], "max_tokens": 300, **body},
        headers={"X-Api-Key": API},
        timeout=60,
    )
    return answer.status_code, answer.json()


def streamed(url, **body):
    """The chunks of a stream, and what they add up to as OpenAI's clients add them: message and finish_reason."""
    given = {"messages": [USER], "max_tokens": 300, "stream": True, **body}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=given, headers={"X-Api-Key": API}, timeout=60) as answer:
        assert answer.status_code == 200
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert events.pop() == "[DONE]"
    chunks = [json.loads(event) for event in events]
    message, calls, reason = {"content": "", "reasoning_content": ""}, {}, None
    for chunk in chunks:
        (choice,) = chunk["choices"]
        delta = choice["delta"]
        reason = choice["finish_reason"] or reason
        for name in ("content", "reasoning_content"):
            message[name] += delta.get(name) or ""
        for part in delta.get("tool_calls", []):
            if part["index"] not in calls:
                assert part["type"] == "function"
                calls[part["index"]] = {"id": part["id"], **part["function"]}
            else:
                assert part.keys() == {"index", "function"}
                calls[part["index"]]["arguments"] += part["function"]["arguments"]
    return chunks, {**message, "tool_calls": list(calls.values())}, reason


def test_a_forced_call(url):
    status, told = ask(url, tools=[WEATHER], tool_choice=NAMED)
    assert status == 200
    (choice,) = told["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"].keys() == {"role", "content", "tool_calls"}
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert call["type"] == "function"
    assert call["id"].startswith("call_")
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"])["city"] in {"Paris", "Rome"}


@pytest.mark.parametrize("choice", [NAMED, "required"])
def test_a_forced_call_in_a_stream(url, choice):
    chunks, message, reason = streamed(url, tools=[WEATHER], tool_choice=choice, parallel_tool_calls=False, temperature=0)
    assert reason == "tool_calls"
    assert (message["content"], message["reasoning_content"]) == ("", "")
    (call,) = message["tool_calls"]
    assert json.loads(call["arguments"])["city"] in {"Paris", "Rome"}
    parts = [part for chunk in chunks for part in chunk["choices"][0]["delta"].get("tool_calls", [])]
    assert (parts[0]["function"]["name"], parts[0]["function"]["arguments"]) == ("weather", "")
    assert len(parts) > 3
    whole = ask(url, tools=[WEATHER], tool_choice=choice, parallel_tool_calls=False, temperature=0)[1]
    assert whole["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] == call["arguments"]


def test_a_model_that_calls_and_gets_the_result(url, monkeypatch):
    """The whole way of an agent: a call with text and reasoning before it, its result, the answer."""
    said = '<think>\nHm.\n</think>\nI look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    with saying(monkeypatch, f'{said}\n<tool_call>{{"name": "weather", "arguments": {{}}}}</tool_call>'):
        _, message, reason = streamed(url, tools=[WEATHER])
        assert reason == "tool_calls"
        assert (message["content"], message["reasoning_content"]) == ("I look.", "Hm.")
        assert [call["arguments"] for call in message["tool_calls"]] == ['{"city": "Rome"}', "{}"]
        whole = ask(url, tools=[WEATHER])[1]["choices"][0]
        assert (whole["message"]["content"], whole["message"]["reasoning_content"]) == ("I look.", "Hm.")
        assert [call["function"]["arguments"] for call in whole["message"]["tool_calls"]] == ['{"city": "Rome"}', "{}"]
        assert len({call["id"] for call in whole["message"]["tool_calls"]}) == 2
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "sun"} for call in whole["message"]["tool_calls"]]
    with saying(monkeypatch, "Sunny."):
        status, told = ask(url, messages=[USER, whole["message"], *results], tools=[WEATHER])
        assert (status, told["choices"][0]["message"]["content"]) == (200, "Sunny.")
        assert told["choices"][0]["finish_reason"] == "stop"
        with TabbyClient(url, api_key=API) as client:
            answer = client.chat.create([USER, whole["message"], *results], tools=[WEATHER], tool_choice="auto")
            assert answer.text == "Sunny."


def test_the_client_of_this_package(url, monkeypatch):
    with (
        saying(monkeypatch, '<think>Hm.</think>Yes.<tool_call>{"name": "weather", "arguments": {}}</tool_call>'),
        TabbyClient(url, api_key=API) as client,
    ):
        message = client.chat.create([USER], tools=[WEATHER], parallel_tool_calls=True).choices[0].message
        assert (message.content, message.reasoning) == ("Yes.", "Hm.")
        assert message.tool_calls[0]["function"] == {"name": "weather", "arguments": "{}"}
        chunks = list(client.chat.stream([USER], tools=[WEATHER]))
        assert "".join(chunk.text for chunk in chunks) == "Yes."


def test_openai_s_older_form(url, monkeypatch):
    """Home Assistant's Extended OpenAI Conversation sends it by default: one call at most, and no id."""
    functions = [WEATHER["function"], {"name": "now"}]
    asked = {"functions": functions, "function_call": {"name": "weather"}, "temperature": 0}
    status, told = ask(url, **asked)
    (choice,) = told["choices"]
    assert (status, choice["finish_reason"]) == (200, "function_call")
    assert choice["message"].keys() == {"role", "content", "function_call"}
    assert choice["message"]["function_call"]["name"] == "weather"
    assert json.loads(choice["message"]["function_call"]["arguments"])["city"] in {"Paris", "Rome"}
    chunks, _, reason = streamed(url, **asked)
    parts = [part for chunk in chunks if (part := chunk["choices"][0]["delta"].get("function_call"))]
    assert (reason, parts[0]["name"], len(parts) > 3) == ("function_call", "weather", True)
    assert not any("name" in part for part in parts[1:])
    assert "".join(part["arguments"] for part in parts) == choice["message"]["function_call"]["arguments"]
    result = {"role": "function", "name": "weather", "content": "sun"}
    with saying(monkeypatch, "Sunny."):
        status, told = ask(url, messages=[USER, choice["message"], result], functions=functions, function_call="auto")
    assert (status, told["choices"][0]["message"]["content"]) == (200, "Sunny.")
    assert told["choices"][0]["finish_reason"] == "stop"


def test_half_a_mark_is_never_shown(url, monkeypatch):
    for said in ("a <tool_cal", "a <tool_call> b", "<think"):
        with saying(monkeypatch, said):
            chunks, message, reason = streamed(url, tools=[{"function": {"name": "f"}}])
            assert (message["content"], message["tool_calls"], reason) == (said, [], "stop")
    with saying(monkeypatch, 'a <tool_call>{"name": "f"}</tool_call>'):
        chunks, message, _ = streamed(url, tools=[{"function": {"name": "f"}}])
        assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks if "<" in json.dumps(chunk)] == []
        assert message["content"] == "a"


def test_log_probabilities_beside_calls(url):
    chunks, message, _ = streamed(url, tools=[WEATHER], tool_choice=NAMED, logprobs=True)
    told = [entry for chunk in chunks if (found := chunk["choices"][0]["logprobs"]) for entry in found["content"]]
    assert message["tool_calls"]
    assert "".join(entry["token"] for entry in told).startswith("<tool_call>")
    whole = ask(url, tools=[WEATHER], tool_choice=NAMED, logprobs=True)[1]["choices"][0]
    assert "".join(entry["token"] for entry in whole["logprobs"]["content"]).startswith("<tool_call>")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"tool_choice": "required"}, "tool_choice is 'required', but there is no tool with a name; give tools, or leave"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice names 'f', which"),
        ({"tools": [WEATHER], "tool_choice": "any"}, "tool_choice is 'any'; give 'auto', 'none', 'required' or"),
        ({"functions": [{"name": "f"}], "tools": [WEATHER]}, "functions was given beside tools or tool_choice; give tools"),
        (
            {"functions": [{"name": "f"}], "function_call": "any"},
            "function_call is 'any'; give 'auto', 'none' or {'name': ...}",
        ),
        ({"function_call": {"name": "f"}}, "function_call names a function, but there are no functions; give them, or tools"),
        ({"functions": [{"name": "f"}], "function_call": {"name": "g"}}, "tool_choice names 'g', which is none of the tools"),
        ({"tools": [WEATHER], "parallel_tool_calls": "no"}, "parallel_tool_calls is 'no'; it should be a valid boolean"),
        ({"tools": [WEATHER], "tool_choice": NAMED, "grammar": 'root ::= "a"'}, "grammar and tool_choice="),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}], "tool_choice": "required"},
            "tools[0].function.parameters: JSON schema: #/not: keyword 'not' is not supported",
        ),
    ],
)
def test_what_cannot_be(url, body, told):
    status, answer = ask(url, **body)
    assert (status, answer["message"][: len(told)]) == (400, told)


def test_templates_without_a_place_for_tools(url, template, monkeypatch):
    template(PLAIN)
    status, told = ask(url, tools=[WEATHER], tool_choice=NAMED)
    assert (status, told["choices"][0]["finish_reason"]) == (200, "tool_calls")
    assert told["usage"]["prompt_tokens"] > ask(url)[1]["usage"]["prompt_tokens"] + 100  # they are told
    with saying(monkeypatch, "Sunny."):
        results = [told["choices"][0]["message"], {"role": "tool", "content": "sun"}]
        assert ask(url, messages=[USER, *results], tools=[WEATHER])[1]["choices"][0]["message"]["content"] == "Sunny."


def test_how_hard_to_think_reaches_the_template(url):
    plain = ask(url, max_tokens=1)[1]["usage"]["prompt_tokens"]
    assert ask(url, max_tokens=1, reasoning_effort="low")[1]["usage"]["prompt_tokens"] > plain


def test_a_budget_of_reasoning(url, template):
    """The model thinks until its tokens are used up; with a budget it comes to an answer."""
    template("{# <think> #}" + TURNS.replace("<assistant>", "<assistant><think>"))
    options = {"temperature": 0, "max_tokens": 60, "ignore_eos": True}
    _, told = ask(url, **options)
    assert told["choices"][0]["message"]["content"] == ""
    status, told = ask(url, reasoning_budget=5, **options)
    assert status == 200
    message = told["choices"][0]["message"]
    assert message["reasoning_content"]
    assert message["content"]
    _, whole, _ = streamed(url, reasoning_budget=5, **options)
    assert (whole["content"], whole["reasoning_content"]) == (message["content"], message["reasoning_content"])
    with TabbyClient(url, api_key=API) as client:
        answer = client.chat.create([USER], reasoning_budget=5, **options)
        assert (answer.text, answer.choices[0].message.reasoning) == (message["content"], message["reasoning_content"])
    status, told = ask(url, reasoning_budget=-2)
    assert (status, told["error"]["param"]) == (400, "reasoning_budget")
    refused = httpx.post(f"{url}/v1/completions", json={"prompt": "a", "reasoning_budget": 1}, headers={"X-Api-Key": API})
    assert refused.status_code == 400
    assert "the marks of reasoning are known by a chat's template" in refused.json()["detail"]
