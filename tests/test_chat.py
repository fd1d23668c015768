"""Chat templates: what they are given, and what becomes of their complaints, in process and over HTTP."""

import httpx
import pytest
from serving import API, serving

from llamafu import Engine, Llamafu
from llamafu._native.model import Model
from llamafu.errors import ErrorCode, LlamafuError

USER = {"role": "user", "content": "hi"}
CALL = {"id": "1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
TOOLS = """{% for message in messages %}{% for call in message.tool_calls or [] %}
{{ call.function.name + ': ' }}{% for name, value in call.function.arguments.items() %}{{ name ~ value }}{% endfor %}
{% endfor %}{{ message.content }}{% endfor %}"""
COMPLAINTS = [
    ("{{ '%(x)s' % messages[0] }}", {}, "KeyError: 'x'"),
    ("{{ messages[0].content + 1 }}", {}, "TypeError: "),
    ("{{ 1 // (messages | length - 1) }}", {}, "ZeroDivisionError: "),
    ("{{ messages[0].tool_calls | first | int('x') }}", {}, "refuses these messages: "),
    ("{{ tools[0].function.parameters.properties.a.b.c }}", {"tools": [{}]}, "'dict object' has no attribute 'function'"),
    ("{{ '{x}'.format(*tools) }}", {"tools": [{}]}, "KeyError: 'x'"),
    ("{{ range(10 ** 9) }}", {}, "OverflowError: Range too big"),
    ("{{ messages.append(1) }}", {}, "access to attribute 'append'"),
    ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", {}, "RecursionError: "),
    ("{{ raise_exception('roles must\n alternate') }}", {}, "refuses these messages: roles must alternate"),
    (TOOLS, {"messages": [USER, {"role": "assistant", "tool_calls": [CALL]}]}, "'str object' has no attribute 'items'"),
    (TOOLS, {"messages": [USER, {"role": "assistant", "tool_calls": [{}]}]}, "'dict object' has no attribute 'function'"),
    (
        TOOLS,
        {"messages": [USER, {"role": "assistant", "tool_calls": [{"function": {"name": 3, "arguments": {}}}]}]},
        "TypeError: ",
    ),
]


@pytest.fixture
def template(monkeypatch):
    """Give every model a template."""

    def give(text):
        monkeypatch.setattr(Model, "chat_template", lambda self: text)

    return give


@pytest.fixture(scope="module")
def llm(real, tiny_model):
    with Llamafu(tiny_model, n_ctx=128, library=real.path) as llm:
        yield llm


@pytest.fixture(scope="module")
def url(real, tiny_model):
    with Engine(tiny_model, n_ctx=256, library=real.path) as engine, serving(engine) as url:
        yield url


def ask(url, **body):
    return httpx.post(
        f"{url}/v1/chat/completions", json={"messages": [USER], "max_tokens": 1, **body}, headers={"X-Api-Key": API}
    )


@pytest.mark.parametrize(("text", "body", "complaint"), COMPLAINTS)
def test_a_template_that_complains_is_a_bad_request(url, template, text, body, complaint):
    template(text)
    for stream in (False, True):
        told = ask(url, stream=stream, **body)
        assert (told.status_code, told.json()["error"]["code"]) == (400, "invalid_request"), told.text
        assert told.json()["message"].startswith("the model's chat template refuses these messages: ")
        assert complaint in told.json()["message"]
        assert "\n" not in told.json()["message"]
    messages = body.get("messages", [USER])
    if "tools" not in body:
        told = httpx.post(f"{url}/v1/token/encode", json={"text": messages}, headers={"X-Api-Key": API})
        assert (told.status_code, complaint in told.json()["message"]) == (400, True)


@pytest.mark.parametrize(("text", "body", "complaint"), [each for each in COMPLAINTS if "tools" not in each[1]])
def test_a_template_that_complains_is_one_error_of_the_library(llm, template, text, body, complaint):
    template(text)
    messages = [{"content": "", **message} for message in body.get("messages", [USER])]
    with pytest.raises(LlamafuError, match="the model's chat template refuses these messages: ") as caught:
        llm.chat(messages, max_tokens=1)
    assert caught.value.code == ErrorCode.INVALID_PARAM
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"messages": [{"role": "assistant", "tool_calls": "x"}]}, "messages[0].tool_calls is 'x'"),
        ({"messages": [{"role": "assistant", "tool_calls": [3]}]}, "messages[0].tool_calls[0] is 3"),
        ({"messages": [{"role": "tool", "tool_call_id": 3, "content": "x"}]}, "messages[0].tool_call_id is 3"),
        ({"messages": [{"role": 3}]}, "messages[0].role is 3"),
        ({"messages": [{}]}, "messages[0].role is missing"),
        ({"messages": ["x"]}, "messages[0] is 'x'"),
        ({"messages": {"role": "user"}}, "messages is"),
        ({"tools": {"type": "function"}}, "tools is"),
        ({"tools": ["x"]}, "tools[0] is 'x'"),
        ({"tool_choice": {"type": "function"}}, "tool_choice is"),
    ],
)
def test_odd_shapes_are_named(url, body, field):
    told = ask(url, **body)
    assert (told.status_code, told.json()["error"]["code"]) == (400, "invalid_request"), told.text
    assert field in told.json()["message"]


def test_odd_tools_reach_a_template_that_does_not_mind(url, template):
    template("{{ tools | tojson }}{{ messages | tojson }}")
    for tools in ([{}], [{"type": None}], [{"function": {"parameters": []}}], [{"a": [[[]]]}]):
        assert ask(url, tools=tools).status_code == 200


def test_json_is_written_as_templates_expect_it(llm, template):
    """Not made safe for HTML, not sorted; `ensure_ascii` and the others are those of Python."""
    messages = [{"role": "user", "content": "<é'&>"}]
    for text, prompt in (
        ("{{ messages[0] | tojson }}", """{"role": "user", "content": "<é'&>"}"""),
        ("{{ messages[0].content | tojson(ensure_ascii=true) }}", '"<\\u00e9\'&>"'),
        ("{{ messages[0] | tojson(indent=1, sort_keys=true) }}", """{\n "content": "<é'&>",\n "role": "user"\n}"""),
        ("{{ [1, 2] | tojson(separators=(',', ':')) }}", "[1,2]"),
        ("{% generation %}{{ messages[0].role }}{% endgeneration %}!", "user!"),
    ):
        template(text)
        assert llm.chat(messages, max_tokens=1).usage.prompt_tokens == len(llm.tokenize(prompt)), text


def test_without_jinja_nothing_is_left_out(llm, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    messages = [USER, {"role": "assistant", "content": "", "tool_calls": [CALL], "name": "x"}]
    with pytest.raises(LlamafuError, match=r"^only the model's own template can show it: name, tool_calls; install jinja2"):
        llm.chat(messages)
