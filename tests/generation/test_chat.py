"""Chat templates: what they are given, and what becomes of their complaints, in process and over HTTP."""

import httpx
import pytest
from helpers.serving import API, serving

from llamafu import Engine, Llamafu
from llamafu._native.model import Model
from llamafu.errors import ErrorCode, LlamafuError

USER = {"role": "user", "content": "hi"}
CALL = {"id": "1", "type": "function", "function": {"name": "now", "arguments": "{}"}}


def called(**function):
    return {"role": "assistant", "tool_calls": [{"function": function}]}


COMPLAINTS = [
    ("{{ '%(x)s' % messages[0] }}", {}, "KeyError: 'x'"),
    ("{{ messages[0].content + 1 }}", {}, "TypeError: "),
    ("{{ 1 // (messages | length - 1) }}", {}, "ZeroDivisionError: "),
    ("{{ messages[0].tool_calls | first | int('x') }}", {}, "refuses these messages: "),
    ("{{ tools[0].function.parameters.properties.a.b.c }}", {"tools": [{}]}, "'dict object' has no attribute 'function'"),
    ("{{ '{x}'.format(*tools) }}", {"tools": [{}]}, "KeyError: 'x'"),
    ("{{ range(10 ** 9) }}", {}, "OverflowError: Range too big"),
    ("{{ messages.extend(messages) }}", {}, "access to attribute 'extend'"),
    ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", {}, "RecursionError: "),
    ("{{ raise_exception('roles must\n alternate') }}", {}, "refuses these messages: roles must alternate"),
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


@pytest.fixture(scope="module")
def strict_url(real, tiny_model):
    """A server that refuses tools where the template has no place for them."""
    with Engine(tiny_model, n_ctx=256, library=real.path) as engine, serving(engine, no_generic_tools=True) as url:
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
        ({"messages": [USER, {"role": "assistant", "tool_calls": [{}]}]}, "messages[1].tool_calls[0].function is missing"),
        (
            {
                "messages": [
                    USER,
                    {"role": "assistant", "tool_calls": [{"type": 0, "function": {"name": "f", "arguments": "{}"}}]},
                ]
            },
            "messages[1].tool_calls[0].type is 0; give 'function'",
        ),
        (
            {
                "messages": [
                    USER,
                    {"role": "assistant", "tool_calls": [{"id": 7, "function": {"name": "f", "arguments": "{}"}}]},
                ]
            },
            "messages[1].tool_calls[0].id is 7; give a string",
        ),
        ({"messages": [USER, called(name=3)]}, "messages[1].tool_calls[0].function.name is 3; give the name of a function"),
        ({"messages": [USER, called(name="f", arguments=[1])]}, "messages[1].tool_calls[0].function.arguments is [1]; give"),
        ({"messages": [{**USER, "contents": "x"}]}, "messages[0].contents is not a field; did you mean 'content'?"),
        ({"messages": [{**USER, "content": ["x"]}]}, "messages[0].content[0] is 'x'; give an object"),
        ({"messages": [{"role": "user"}]}, "messages[0].content is missing; give a string, or a list of text parts"),
        ({"messages": []}, "messages is empty; give at least one"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages is what the chat itself gives"),
        ({"add_generation_prompt": True, "continue_final_message": True}, "give one of them"),
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


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (
            '"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"a": 1e400}}]}]',
            "tool_calls[0].arguments",
        ),
        ('"messages": [{"role": "user", "content": "a"}], "tools": [{"function": {"name": "f", "a": [-1e999]}}]', "tools"),
    ],
)
def test_numbers_without_an_end_are_named(url, body, field):
    told = httpx.post(f"{url}/v1/chat/completions", content=f"{{{body}}}", headers={"X-Api-Key": API})
    assert told.status_code == 400
    assert f"{field} has a number that is NaN, infinite or beyond 1.8e308" in told.json()["message"]


def test_what_contains_itself_is_named(llm):
    message, arguments, tool = dict(USER), {"a": 1}, {"function": {"name": "f"}}
    message["self"], arguments["b"], tool["function"]["c"] = [message], arguments, tool
    deep = 10_000
    nested = []
    for _ in range(deep):
        nested = [nested]
    for messages, options, told in (
        ([message], {}, r"messages\[0\] contains itself"),
        ([USER, called(name="f", arguments=arguments)], {}, r"messages\[1\]\..*arguments contains itself"),
        ([USER, called(name="f", arguments={"a": nested})], {}, r"messages\[1\]\..*arguments is nested too deep"),
        ([{**USER, "x": nested}], {}, r"messages\[0\] contains itself, or is nested too deep"),
        ([USER], {"tools": [tool]}, "tools contains itself"),
    ):
        with pytest.raises(TypeError, match=told):
            llm.chat(messages, **options)


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


# -- tools, their calls, and what a template is given -------------------------------------------------------------

CHATML = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
EACH = "{% for m in messages %}<{{ m.role }}>{% for c in m.tool_calls or [] %}[FORM]{% endfor %}{{ m.content }}{% endfor %}"
FORMS = {
    "{{ c.function.arguments | tojson }}": '{"a": 1, "é": "x"}',
    "{{ c.function.arguments }}": '{"a": 1, "é": "x"}',
    "{{ 'x' + c.function.arguments }}": 'x{"a": 1, "é": "x"}',
    "{{ c.function | tojson }}": '{"name": "f", "arguments": {"a": 1, "é": "x"}}',
    "{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}": (
        '{"name": "f", "arguments": {"a": 1, "é": "x"}}'
    ),
    "{% for k, v in c.function.arguments | items %}<{{ k }}={{ v }}>{% endfor %}": "<a=1><é=x>",
    "{% for k in c.function.arguments %}<{{ k }}={{ c.function.arguments[k] }}>{% endfor %}": "<a=1><é=x>",
    "{% set a = c.function.arguments %}{% if a is string %}{{ a }}{% else %}{{ a | tojson }}{% endif %}": '{"a": 1, "é": "x"}',
    # both are taken: objects are what it was written and tried with
    "{% set a = c.function.arguments %}{% if a is string %}{{ a }}{% else %}object {{ a | tojson }}{% endif %}": (
        'object {"a": 1, "é": "x"}'
    ),
}


def prompt_of(llm, messages, **options):
    return llm.detokenize(llm.tokenize_chat(messages, **options), special=True).removeprefix("<s>")


def asked(url, **body):
    """The number of tokens of a prompt over HTTP, or the message that refuses it."""
    told = ask(url, **body)
    return told.json()["usage"]["prompt_tokens"] if told.status_code == 200 else (told.status_code, told.json()["message"])


@pytest.mark.parametrize("arguments", ['{"a": 1, "é": "x"}', {"a": 1, "é": "x"}], ids=["text", "object"])
@pytest.mark.parametrize("form", FORMS)
def test_a_template_gets_the_form_of_arguments_that_it_takes(llm, url, template, form, arguments):
    template(EACH.replace("FORM", form))
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [USER, {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "12"}]
    wanted = f"<user>hi<assistant>[{FORMS[form]}]<tool>12"
    assert prompt_of(llm, messages) == wanted
    assert asked(url, messages=messages) == len(llm.tokenize(wanted))


def test_arguments_that_a_template_cannot_take_are_named(llm, template):
    template(EACH.replace("FORM", "{% for k, v in c.function.arguments | items %}{{ k }}{{ v }}{% endfor %}"))
    with pytest.raises(LlamafuError, match=r"^messages\[1\]\.tool_calls\[0\]\.function\.arguments is '\{', which is not"):
        llm.chat([USER, called(name="f", arguments="{")])
    for arguments in ('{"a": NaN}', '{"a": [1e400]}', '{"a": -Infinity}'):
        with pytest.raises(LlamafuError, match=r"arguments is '.*', which is not the JSON of an object"):
            llm.chat([USER, called(name="f", arguments=arguments)])
    assert prompt_of(llm, [USER, called(name="f", arguments=""), USER]) == "<user>hi<assistant>[]<user>hi"
    older = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"k": 1}'}}
    flat = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"k": 1}}]}
    for call in (older, flat):
        assert prompt_of(llm, [USER, call, USER]) == "<user>hi<assistant>[k1]<user>hi"


def test_a_template_for_tools_alone(llm, template, monkeypatch):
    """One that refuses chats without tools is tried with them; some models have it beside their own."""
    template("no tools here")
    text = "{% for t in tools %}[{{ t.function.name }}]{% endfor %}" + EACH.replace(
        "FORM", "{{ c.function.arguments | tojson }}"
    )
    monkeypatch.setattr(Model, "metadata", lambda self, key: text if key == "tokenizer.chat_template.tool_use" else None)
    call = called(name="now", arguments='{"a": 1}')
    assert (
        prompt_of(llm, [USER, call, {"role": "tool", "content": "12"}], tools=[TOOL])
        == '[now]<user>hi<assistant>[{"a": 1}]<tool>12'
    )
    assert prompt_of(llm, [USER]) == "no tools here"


@pytest.mark.parametrize("stream", [False, True])
def test_tools_without_a_place_are_refused(llm, url, strict_url, template, stream):
    """Where the generic form is off. Also by a template that says something else when there are any, or shows only one."""
    second = {"type": "function", "function": {"name": "later"}}
    for text in (
        CHATML,
        CHATML + "{% if tools %}(tools){% endif %}",
        CHATML + "{% if tools %}{{ tools[0] | tojson }}{% endif %}",
    ):
        template(text)
        status, message = asked(strict_url, tools=[TOOL, second], stream=stream)
        assert (status, message.partition(":")[0]) == (400, "tools")
        with pytest.raises(LlamafuError, match="^tools: this model's chat template has no place for them"):
            llm.chat([USER], tools=[TOOL, second], generic_tools=False)
    assert asked(url, tools=[TOOL], tool_choice="none") == asked(url)
    assert asked(url, tools=[]) == asked(url)
    shown = CHATML + "{{ tools | tojson }}"
    template(shown)
    assert prompt_of(llm, [USER], tools=[TOOL]).endswith('[{"type": "function", "function": {"name": "now", "parameters": '
                                                         '{"type": "object", "properties": {}}}}]')  # fmt: skip
    assert asked(url, tools=[TOOL]) > asked(url)


def test_calls_and_results_without_a_place_are_refused(llm, strict_url, template):
    template(
        "{% for m in messages %}{% if m.role in ['user', 'assistant'] %}<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}"
    )
    for message, field in (
        (called(name="f", arguments="{}"), "messages[1].tool_calls"),
        ({"role": "tool", "content": "x"}, "messages[1].content"),
    ):
        status, told = asked(strict_url, messages=[USER, message, USER])
        assert (status, told.partition(":")[0]) == (400, field)
        with pytest.raises(LlamafuError, match="has no place for calls of tools"):
            llm.chat([USER, message], generic_tools=False)


def test_a_message_of_openai_comes_back_as_history(llm, url, template):
    """As `message.model_dump()` writes it; a refusal is what the assistant said."""
    template(CHATML)
    nulls = dict.fromkeys(["refusal", "annotations", "audio", "function_call", "tool_calls"])
    dumped = {"content": "yes", "role": "assistant", **nulls}
    assert prompt_of(llm, [USER, dumped, USER]) == "<user>hi</><assistant>yes</><user>hi</><assistant>"
    assert asked(url, messages=[USER, dumped, USER]) == asked(
        url, messages=[USER, {"role": "assistant", "content": "yes"}, USER]
    )
    refused = {**dumped, "content": None, "refusal": "no"}
    assert prompt_of(llm, [USER, refused, USER]) == "<user>hi</><assistant>no</><user>hi</><assistant>"


def test_parts_are_lines_and_a_template_may_want_them(llm, url, template):
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two", "cache_control": {"type": "ephemeral"}}]
    messages = [{"role": "system", "content": "be"}, {"role": "user", "content": parts}, {"role": "assistant", "content": "so"}]
    typed = "{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}"
    for shown in ("{{ m.content }}", typed):
        text = "{% for m in messages %}<{{ m.role }}>" + shown + "{% endfor %}"
        template(text)
        assert prompt_of(llm, messages) == "<system>be<user>one\ntwo<assistant>so", text
        assert asked(url, messages=messages) == len(llm.tokenize("<system>be<user>one\ntwo<assistant>so"))


def test_a_developer_is_a_system_where_there_is_none(llm, template):
    messages = [{"role": "developer", "content": "be"}, USER]
    template(CHATML)
    assert prompt_of(llm, messages) == "<system>be</><user>hi</><assistant>"
    template(CHATML + "{# 'developer' #}")
    assert prompt_of(llm, messages) == "<developer>be</><user>hi</><assistant>"
    template(CHATML + "{# <|developer_start|> #}")  # a mark of that name, as Apertus has
    assert prompt_of(llm, messages) == "<system>be</><user>hi</><assistant>"


def test_variables_reach_the_template(llm, url, template):
    template(CHATML + "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}")
    wanted = "<user>hi</><assistant><think></think>"
    assert prompt_of(llm, [USER], chat_template_kwargs={"enable_thinking": False}) == wanted
    for name in ("chat_template_kwargs", "template_vars"):
        assert asked(url, **{name: {"enable_thinking": False}}) == len(llm.tokenize(wanted))
    assert asked(url, chat_template_kwargs={"enable_thinking": None}) == asked(url)
    assert prompt_of(llm, [USER], chat_template="{{ messages[0].content }}!") == "hi!"
    for name in ("messages", "bos_token", "add_generation_prompt"):
        with pytest.raises(TypeError, match=rf"^chat_template_kwargs\.{name} is"):
            llm.chat([USER], chat_template_kwargs={name: 1})


ALTERNATING = "{% if messages[-1].role != 'user' %}{{ raise_exception('the last is a user') }}{% endif %}" + CHATML
TRIMMING = CHATML.replace("m.content", "m.content | trim")


@pytest.mark.parametrize("text", [CHATML, TRIMMING, ALTERNATING])
def test_an_assistant_s_last_message_is_continued(llm, url, template, text):
    template(text)
    messages = [USER, {"role": "assistant", "content": "I say </> "}]
    open_end = "<user>hi</><assistant>I say </> "
    for options in ({}, {"continue_final_message": True}, {"add_generation_prompt": False}):
        assert prompt_of(llm, messages, **options) == open_end
        for stream in (False, True):
            assert ask(url, messages=messages, stream=stream, **options).status_code == 200
        assert asked(url, messages=messages, **options) == len(llm.tokenize(open_end))
    tokens = llm.chat(messages, temperature=0, max_tokens=4).tokens
    assert tokens == llm.complete(open_end, temperature=0, max_tokens=4).tokens
    assert prompt_of(llm, [USER, {"role": "assistant", "content": None}]) == "<user>hi</><assistant>"
    if text == CHATML:
        closed = open_end + "</>"
        assert prompt_of(llm, messages, add_generation_prompt=False, continue_final_message=False) == closed
        for options in ({"add_generation_prompt": True}, {"continue_final_message": False}):
            assert prompt_of(llm, messages, **options) == closed + "<assistant>"
        assert prompt_of(llm, [USER], add_generation_prompt=False) == "<user>hi</>"


def test_what_cannot_be_continued_is_said(llm, url, template):
    template(EACH.replace("FORM", "{{ c.function.arguments | tojson }}"))
    call = called(name="f", arguments="{}")
    for last, told in ((USER, r"messages\[1\] has the role 'user'"), (call, r"messages\[1\] calls tools")):
        with pytest.raises(LlamafuError, match=told):
            llm.chat([USER, last], continue_final_message=True)
    status, message = asked(url, continue_final_message=True)
    assert (status, "messages[0] has the role 'user'" in message) == (400, True)


def test_continuing_without_jinja(llm, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    messages = [USER, {"role": "assistant", "content": "so"}]
    with pytest.warns(UserWarning, match="install jinja2"):
        shown = llm.detokenize(llm.tokenize_chat(messages), special=True)
    assert shown.endswith("<|im_start|>assistant\nso")


def test_every_chat_of_an_engine_takes_the_same(real, tiny_model, template):
    import asyncio

    template(CHATML + "{{ tools | tojson }}{{ x }}")
    options = {"tools": [TOOL], "chat_template_kwargs": {"x": "y"}, "temperature": 0, "max_tokens": 2}

    async def awaited(engine):
        pieces = [piece async for piece in engine.astream_chat([USER], **options)]
        return (await engine.achat([USER], **options)).text, "".join(pieces)

    with Engine(tiny_model, n_ctx=512, library=real.path) as engine, Llamafu(tiny_model, library=real.path) as llm:
        wanted = llm.chat([USER], **options)
        assert "".join(llm.stream_chat([USER], **options)) == wanted.text
        assert engine.chat([USER], **options).usage.prompt_tokens == wanted.usage.prompt_tokens
        assert "".join(engine.stream_chat([USER], **options)) == wanted.text
        assert asyncio.run(awaited(engine)) == (wanted.text, wanted.text)
        for one in (llm.chat, engine.chat):
            with pytest.raises(TypeError, match="unknown option 'chat_template_kwarg'; did you mean 'chat_template_kwargs'"):
                one([USER], chat_template_kwarg={})
            with pytest.raises(TypeError, match=r"tools\[0\] is <built-in .*; give an object, such as FunctionTools"):
                one([USER], tools=[len])


@pytest.mark.parametrize(("text", "told"), [("", "empty prompt"), (" \n", "empty prompt"), ("{{ '' }}", "empty prompt")])
def test_a_template_that_says_nothing(llm, url, template, text, told):
    template(text)
    with pytest.raises(LlamafuError, match=told):
        llm.chat([USER])
    status, message = asked(url)
    assert (status, told in message) == (400, True)


FOR_EVER = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}"


def test_a_template_that_does_not_end_is_one_error(url, template, monkeypatch):
    monkeypatch.setattr("llamafu.generation.jinja_template.SECONDS", 0.2)
    template(FOR_EVER)
    status, message = asked(url)
    assert (status, "ran for more than 0.2 s" in message) == (400, True)
    template(CHATML)
    assert ask(url).status_code == 200
