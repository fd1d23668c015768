"""Tools in the library and the engine: choices held by grammar, templates without a place for tools, reasoning."""

import asyncio
import json
import random

import pytest
from helpers.gbnf_matcher import Grammar
from helpers.public_templates import rows, text_of
from helpers.scripted import saying

from llamafu import AsyncLlamafu, Engine, Llamafu
from llamafu._native.model import Model
from llamafu.errors import GrammarError, LlamafuError
from llamafu.generation.answer import AnswerBuilder
from llamafu.generation.completion import Piece
from llamafu.generation.grammar.gbnf import parse
from llamafu.generation.options import Options
from llamafu.generation.tools.answer_format import AnswerFormat, AnswerParser
from llamafu.generation.tools.answer_grammar import CallRules, answer_grammar
from llamafu.generation.tools.family import FAMILIES, GENERIC, UNKNOWN, family_of
from llamafu.generation.tools.reasoning_marks import reasoning_of
from llamafu.generation.tools.tool import callable_tools

USER = {"role": "user", "content": "hi"}
CITIES = {"enum": ["Paris", "Rome"], "type": "string"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": CITIES, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
        },
    },
}
NOW = {"type": "function", "function": {"name": "now", "description": "The time"}}
NAMED = {"type": "function", "function": {"name": "weather"}}
TURNS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}[{{ c.function.name }} {{ c.function.arguments | tojson }}]{% endfor %}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
PLAIN = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
SHOWN = "{% for t in tools or [] %}{{ t.function.name }} {% endfor %}"
HERMES = SHOWN + "{# <tool_call> #}" + TURNS
THINKING = "{# <think></think> <tool_call> #}" + SHOWN + TURNS
OPENED = THINKING.replace("<assistant>", "<assistant>{% if enable_thinking != false %}<think>\n{% endif %}")


@pytest.fixture
def template(monkeypatch):
    """Give every model a template."""

    def give(text):
        monkeypatch.setattr(Model, "chat_template", lambda self: text)

    return give


@pytest.fixture(scope="module")
def llm(real, tiny_model):
    with Llamafu(tiny_model, n_ctx=1536, library=real.path) as llm:
        yield llm


@pytest.fixture(scope="module")
def engine(real, tiny_model):
    with Engine(tiny_model, n_ctx=4096, library=real.path) as engine:
        yield engine


def prompt_of(llm, messages, **options):
    return llm.detokenize(llm.tokenize_chat(messages, **options), special=True).removeprefix("<s>")


def check(completion, names=("weather",)):
    """The answer is one call or more of these, with arguments that fit."""
    assert completion.finish_reason == "tool_calls"
    assert (completion.text, completion.reasoning) == ("", "")
    for call in completion.tool_calls:
        assert call.name in names
        arguments = json.loads(call.arguments)
        if call.name == "weather":
            assert arguments["city"] in CITIES["enum"]
            assert arguments["days"] in range(1, 10)
        else:
            assert arguments == {}
    return completion.tool_calls


# -- choices --------------------------------------------------------------------------------------------------------


def test_a_call_that_has_to_be_is_one(llm, engine, template):
    """The model's weights are random: only the grammar makes it call."""
    template(HERMES)
    for chat in (llm.chat, engine.chat):
        assert len(check(chat([USER], tools=[NOW, WEATHER], tool_choice=NAMED, seed=1, max_tokens=200))) == 1
        options = {"tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 200}
        for seed in range(2):
            assert len(check(chat([USER], tools=[NOW, WEATHER], seed=seed, **options), ("now", "weather"))) == 1


def test_a_stream_adds_up_to_the_completion(llm, engine, template, real, tiny_model):
    template(HERMES)
    options = {"tools": [NOW, WEATHER], "tool_choice": NAMED, "temperature": 0, "max_tokens": 200}
    stream = llm.stream_chat([USER], **options)
    pieces = list(stream)
    check(stream.completion)
    deltas = [delta for piece in pieces for delta in piece.tool_calls]
    assert (deltas[0].name, deltas[0].id) == ("weather", stream.completion.tool_calls[0].id)
    assert len(deltas) > 3
    assert "".join(delta.arguments for delta in deltas) == stream.completion.tool_calls[0].arguments
    others = [delta for piece in engine.stream_chat([USER], **options) for delta in piece.tool_calls]
    assert "".join(delta.arguments for delta in others) == stream.completion.tool_calls[0].arguments

    async def asynchronous():
        async with AsyncLlamafu(tiny_model, n_ctx=512, library=real.path) as other:
            return await other.chat([USER], **options), [piece async for piece in engine.astream_chat([USER], **options)]

    completion, streamed = asyncio.run(asynchronous())
    assert completion.tool_calls[0].arguments == stream.completion.tool_calls[0].arguments
    found = [delta.arguments for piece in streamed for delta in piece.tool_calls]
    assert "".join(found) == stream.completion.tool_calls[0].arguments


def test_calls_by_the_model_s_own_will(llm, engine, template, monkeypatch):
    template(HERMES)
    said = 'I look.\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    with saying(monkeypatch, said):
        for chat in (llm.chat, engine.chat):
            completion = chat([USER], tools=[NOW])
            assert (completion.text, completion.finish_reason) == ("I look.", "tool_calls")
            assert [(call.name, call.arguments) for call in completion.tool_calls] == [("now", "{}")]
            assert chat([USER], tools=[NOW], stop=["\n{"]).finish_reason == "stop"
            cut = chat([USER], tools=[NOW], max_tokens=40)
            assert (cut.finish_reason, cut.tool_calls) == ("length", ())
            for plain in (chat([USER]), chat([USER], tools=[NOW], tool_choice="none")):
                assert (plain.text, plain.tool_calls, plain.finish_reason) == (said, (), "stop")


def test_some_of_the_tools(llm, template, monkeypatch):
    """Allowed are several; the others stay in the prompt, and are never called."""
    template(HERMES)
    other = {"type": "function", "function": {"name": "other"}}
    names = [{"type": "function", "function": {"name": name}} for name in ("now", "weather")]
    some = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": names}}
    options = {"tools": [other, NOW, WEATHER], "parallel_tool_calls": False, "max_tokens": 200}
    called = {check(llm.chat([USER], tool_choice=some, seed=seed, **options), ("now", "weather"))[0].name for seed in range(4)}
    assert called <= {"now", "weather"}
    assert "other now weather" in prompt_of(llm, [USER], tools=options["tools"], tool_choice=some)
    auto = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": names[:1]}}
    _, gbnf = grammar_of(GENERIC, options["tools"], CallRules(choice=auto))
    assert '"other' not in gbnf
    for text, is_legal in (("Hi", True), ("<tool_call>", False)):
        assert Grammar(gbnf).matches(text) is is_legal
    assert Grammar(gbnf).matches('<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>')
    assert not Grammar(gbnf).matches('<tool_call>\n{"name": "other", "arguments": {}}\n</tool_call>')
    assert llm.chat([USER], tools=[NOW], tool_choice=auto, regex="ab").text == "ab"


def test_choices_that_cannot_be(llm, template):
    template(HERMES)
    for choice, tools, told in (
        ("always", [NOW], "tool_choice is 'always'; give 'auto', 'none', 'required' or"),
        ({"type": "function"}, [NOW], "tool_choice is {'type': 'function'}; give"),
        ("required", None, "tool_choice is 'required', but there is no tool with a name"),
        (NAMED, [NOW], "tool_choice names 'weather', which is none of the tools ('now')"),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}},
            [NOW],
            "tool_choice names 'weather', which is none of the tools ('now')",
        ),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "any", "tools": [NAMED]}}, [NOW], "tool_choice is {"),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}, [NOW], "tool_choice is {"),
        ({"type": "allowed_tools", "tools": [NAMED]}, [NOW], "tool_choice is {"),
    ):
        with pytest.raises(ValueError, match="^tool_choice") as caught:
            llm.chat([USER], tools=tools, tool_choice=choice)
        assert told in str(caught.value)
    with pytest.raises(TypeError, match="parallel_tool_calls is 1; give True or False"):
        llm.chat([USER], parallel_tool_calls=1)
    with pytest.raises(ValueError, match="grammar and tool_choice='required' were both given"):
        llm.chat([USER], tools=[NOW], tool_choice="required", grammar='root ::= "a"')
    unheld = {"type": "function", "function": {"name": "f", "strict": True, "parameters": {"not": {}}}}
    with pytest.raises(GrammarError, match=r"^tools\[1\]\.function\.parameters: JSON schema: #/not: keyword 'not'"):
        llm.chat([USER], tools=[NOW, unheld])
    loose = {"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}
    llm.chat([USER], tools=[loose], parallel_tool_calls=False, max_tokens=1)
    with pytest.raises(GrammarError, match=r"^tools\[0\]\.function\.parameters"):
        llm.chat([USER], tools=[loose], tool_choice="required")


@pytest.mark.parametrize(
    ("tool", "told"),
    [
        ({"type": "web_search"}, r"tools\[1\]\.type is 'web_search'; give 'function': your program runs it"),
        ({"type": "custom", "custom": {"name": "x"}}, r"tools\[1\]\.type is 'custom'; give 'function'"),
        ({"type": "function", "function": {"name": ""}}, r"tools\[1\]\.function\.name is ''; give the name"),
        ({"type": "function", "function": "now"}, r"tools\[1\]\.function is 'now'; give an object with name"),
        ({"name": 5, "parameters": {"type": "object"}}, r"tools\[1\]\.name is 5; give the name"),
    ],
)
def test_what_is_no_function_is_refused(llm, template, tool, told):
    """It would be told to the model, and could never be called."""
    template(HERMES)
    with pytest.raises(TypeError, match=f"^{told}"):
        llm.chat([USER], tools=[NOW, tool])


@pytest.mark.parametrize("name", ['say "hi"', "a\\b", "two\nlines", "tab\there", "größe"])
@pytest.mark.parametrize(
    "text", [HERMES, HERMES.replace("name }}", "name | tojson }}"), PLAIN], ids=["as it is", "JSON", "generic"]
)
def test_names_that_json_writes_otherwise(llm, template, name, text):
    template(text)
    odd = {"type": "function", "function": {"name": name, "parameters": {"type": "object", "additionalProperties": False}}}
    (call,) = llm.chat([USER], tools=[odd], tool_choice="required", parallel_tool_calls=False, max_tokens=200).tool_calls
    assert (call.name, json.loads(call.arguments)) == (name, {})


@pytest.mark.parametrize("kind", ["array", "string", ["string", "null"]], ids=str)
def test_arguments_are_an_object(llm, template, kind):
    """A grammar for anything else would hold the answer to what no reader takes for a call."""
    template(HERMES)
    odd = {"type": "function", "function": {"name": "f", "parameters": {"type": kind}}}
    with pytest.raises(GrammarError, match=r"^tools\[0\]\.function\.parameters: JSON schema: #/type is .* are an object"):
        llm.chat([USER], tools=[odd], tool_choice="required")
    odd["function"]["parameters"] = {"type": ["null", "object"], "properties": {"a": {"const": 1}}, "required": ["a"]}
    odd["function"]["parameters"]["additionalProperties"] = False
    (call,) = llm.chat([USER], tools=[odd], tool_choice="required", parallel_tool_calls=False, max_tokens=200).tool_calls
    assert json.loads(call.arguments) == {"a": 1}


def test_an_answer_of_a_schema_or_a_call(llm, template):
    """With both, it is one of the two; with a grammar of the caller's it is text."""
    template(HERMES)
    options = {"tools": [NOW], "json_schema": {"enum": ["yes", "no"]}, "max_tokens": 60}
    for schema, told in (
        ("{", "JSON schema: not JSON"),
        ([], r"json_schema: \[\] is no schema"),
        ({"not": 1}, "JSON schema: #/not"),
    ):
        with pytest.raises(GrammarError, match=told):
            llm.chat([USER], tools=[NOW], json_schema=schema)
    kinds = set()
    for seed in range(6):
        completion = llm.chat([USER], seed=seed, **options)
        kinds.add(completion.finish_reason)
        assert completion.tool_calls or json.loads(completion.text) in {"yes", "no"}
    assert kinds <= {"stop", "tool_calls"}
    text = '<tool_call>{"name": "now"}</tool_call>'
    completion = llm.chat([USER], tools=[NOW], grammar=f"root ::= {json.dumps(text)}", max_tokens=60)
    assert (completion.text, completion.tool_calls) == (text, ())


# -- grammars of every family ---------------------------------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "kind": {"enum": ["a", "b"]},
        "at": {"type": "array", "items": {"type": "boolean"}},
    },
    "required": ["city"],
}
FULL = {"type": "function", "function": {"name": "full", "parameters": SCHEMA}}
TOKENS = {1: b"<s>"}


class Walk:
    """A random walk through a grammar's own rules: one text that it allows."""

    def __init__(self, gbnf, choose):
        self.grammar = parse(gbnf, lambda text: None)
        self.choose = choose
        self.left = 4000

    def text(self):
        return self.rule(self.grammar.root, 0)

    def rule(self, number, depth):
        alternatives = self.grammar.rules[number]
        items = alternatives[self.choose(len(alternatives)) if depth < 60 else 0]
        return "".join(self.item(item, depth) for item in items)

    def item(self, item, depth):
        kind, value, low, high = item
        self.left -= 1
        most = low if depth > 40 or self.left < 0 else (low + 3 if high is None else min(high, low + 3))
        count = low + self.choose(most - low + 1)
        if kind == 0:
            ranges = self.grammar.classes[value]
            return "".join(chr(ranges[self.choose(len(ranges))][0]) for _ in range(count))
        return "".join(self.rule(value, depth + 1) for _ in range(count))


def dice(seed):
    return random.Random(seed).randrange  # noqa: S311 - nothing secret


def grammar_of(family, tools, rules, schema=None):
    answer_format = AnswerFormat(form=family.form, tools=callable_tools(tools))
    return answer_format, answer_grammar(answer_format, tools, rules, schema)


@pytest.mark.parametrize("family", [*FAMILIES, GENERIC, UNKNOWN], ids=lambda family: family.name)
@pytest.mark.parametrize("seed", range(4))
def test_what_a_grammar_allows_is_read_as_a_call(family, seed):
    """Each family's grammar writes what its reader reads: calls of the tools, and nothing else."""
    answer_format, gbnf = grammar_of(family, [FULL, NOW], CallRules(choice="required"))
    parser = AnswerParser(answer_format)
    parser.feed(text := Walk(gbnf, dice(seed)).text())
    parser.finish()
    assert parser.tool_calls, text
    assert (parser.text, parser.reasoning) == ("", ""), text
    for call in parser.tool_calls:
        arguments = json.loads(call.arguments)
        assert call.name in {"full", "now"}
        assert set(arguments) <= (set(SCHEMA["properties"]) if call.name == "full" else set())
        if call.name == "full":
            assert isinstance(arguments["city"], str)
            assert isinstance(arguments.get("days", 0), int)
            assert arguments.get("kind", "a") in {"a", "b"}
            assert all(isinstance(each, bool) for each in arguments.get("at", []))


@pytest.mark.parametrize("family", [*FAMILIES, GENERIC, UNKNOWN], ids=lambda family: family.name)
@pytest.mark.parametrize("seed", range(4))
def test_where_calls_are_optional_there_is_one_at_most(family, seed):
    answer_format, gbnf = grammar_of(family, [FULL, NOW], CallRules(parallel=False))
    parser = AnswerParser(answer_format)
    parser.feed(text := Walk(gbnf, dice(seed)).text())
    parser.finish()
    assert len(parser.tool_calls) <= 1, text
    for call in parser.tool_calls:
        json.loads(call.arguments)


@pytest.mark.parametrize("family", [*FAMILIES, GENERIC, UNKNOWN], ids=lambda family: family.name)
@pytest.mark.parametrize("parameters", [
    {"type": "object", "properties": {"a": {"type": "string", "minLength": 2, "not": {}}}, "required": ["a"]},
    {"type": "object", "required": ["b"], "not": {}},
    {"$ref": "#/$defs/a", "$defs": {"a": {"type": "object", "not": {}}}},
])  # fmt: skip
def test_what_cannot_be_held(family, parameters):
    """A call that has to be, and a strict one, are refused by name; one that may be is held to its marks."""
    odd = {"type": "function", "function": {"name": "odd", "parameters": parameters}}
    strict = {"type": "function", "function": {**odd["function"], "strict": True}}
    for tools, rules in (([NOW, odd], CallRules(choice="required")), ([NOW, strict], CallRules())):
        with pytest.raises(GrammarError, match=r"^tools\[1\]\.function\.parameters"):
            grammar_of(family, tools, rules)
    answer_format, gbnf = grammar_of(family, [NOW, odd], CallRules(parallel=False))
    for seed in range(6):
        parser = AnswerParser(answer_format)
        parser.feed(Walk(gbnf, dice(seed)).text())
        parser.finish()
        assert len(parser.tool_calls) <= 1


def test_all_tools_together_are_bounded(monkeypatch):
    """Each schema by itself may take as many steps as one alone, but not a thousand of them."""
    monkeypatch.setattr("llamafu.generation.grammar.schema.MOST_STEPS", 10_000)
    part = {f"p{i}": {"type": "string"} for i in range(6)}
    heavy = {"type": "object", "allOf": [{"properties": {**part, f"x{i}": {}}} for i in range(6)]}
    grammar_of(GENERIC, [{"type": "function", "function": {"name": "f", "parameters": heavy}}], CallRules(choice="required"))
    tools = [{"type": "function", "function": {"name": f"f{i}", "parameters": heavy}} for i in range(1000)]
    with pytest.raises(GrammarError, match=r"^tools\[\d+\]\.function\.parameters: JSON schema: "):
        grammar_of(GENERIC, tools, CallRules(choice="required"))


def test_what_needs_no_grammar_has_none():
    for family in FAMILIES:
        assert grammar_of(family, [FULL, NOW], CallRules())[1] is None
        assert grammar_of(family, [], CallRules())[1] is None
        strict = {"type": "function", "function": {"name": "f", "strict": True, "parameters": SCHEMA}}
        assert grammar_of(family, [strict], CallRules())[1] is not None


def test_marks_that_are_control_tokens(llm, template, monkeypatch):
    """They write nothing: the grammar asks for the token, and the reader is told its text."""
    template("{# [TOOL_CALLS] #}" + SHOWN + TURNS)
    single = Model.single_token
    bos = llm._session.instance.model.bos
    monkeypatch.setattr(Model, "single_token", lambda self, text: bos if text == "[TOOL_CALLS]" else single(self, text))
    completion = llm.chat([USER], tools=[NOW, WEATHER], tool_choice=NAMED, max_tokens=200)
    (call,) = check(completion)
    assert completion.tokens[0] == bos
    assert len(call.id) == 9
    builder = AnswerBuilder(Options(), capacity=9, answer_format=AnswerFormat(form=GENERIC.form, spelled={7: b"<tool_call>"}))
    assert builder.add_token(7, None, b"") == ""
    assert builder.add_token(8, None, b'{"name": "x"}').tool_calls[0].name == "x"


# -- templates ------------------------------------------------------------------------------------------------------


def test_tools_without_a_place_are_told_in_a_message(llm, template):
    history = [
        USER,
        {
            "role": "assistant",
            "content": "Well.",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "now", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "12:00"},
        {"role": "user", "content": "and?"},
    ]
    template(PLAIN)
    check(llm.chat([USER], tools=[NOW, WEATHER], tool_choice=NAMED, max_tokens=200))
    told = prompt_of(llm, history, tools=[NOW, WEATHER])
    assert told.startswith("<system>You may call these functions.")
    assert json.dumps({"name": "weather", **{key: WEATHER["function"][key] for key in ("description", "parameters")}}) in told
    assert told.endswith(
        '<user>hi</><assistant>Well.\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call></>'
        "<user><tool_response>\n12:00\n</tool_response>\nand?</><assistant>"
    )
    assert prompt_of(llm, [{"role": "system", "content": "Be brief."}, USER], tools=[NOW]).startswith(
        "<system>Be brief.\n\nYou may"
    )
    assert "<tool_response>" in prompt_of(llm, history, tools=[NOW], tool_choice="none")
    for options in ({}, {"tools": [NOW]}):
        with pytest.raises(LlamafuError, match="has no place for"):
            llm.chat(history, generic_tools=False, **options)


def test_a_template_that_refuses_system_messages_tells_the_user(llm, template):
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    for text in (refusing + PLAIN, PLAIN.replace("messages %}", "messages if m.role != 'system' %}")):
        template(text)
        assert prompt_of(llm, [USER], tools=[NOW]).startswith("<user>You may call these functions.")
        assert prompt_of(llm, [USER], tools=[NOW]).endswith("\n\nhi</><assistant>")
    template("{{ messages | length }}")
    with pytest.raises(LlamafuError, match="has no place for them"):
        llm.chat([USER], tools=[NOW])
    alternating = (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles alternate') }}"
        "{% endif %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    )
    template(alternating)
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "now", "arguments": "{}"}}]}
    history = [USER, call, {"role": "tool", "content": "12:00"}]
    assert "<tool_response>\n12:00" in prompt_of(llm, history, tools=[NOW])
    for options in ({"generic_tools": False}, {"chat_template": "{# <tool_call> #}" + alternating}):
        with pytest.raises(LlamafuError, match="roles alternate"):
            llm.chat(history, tools=[NOW], **options)
    with pytest.raises(LlamafuError, match="roles alternate"):
        llm.chat([USER, USER])


def test_optional_calls_of_the_generic_form_are_held_too(llm, template, monkeypatch):
    template(PLAIN)
    seen = []
    monkeypatch.setattr("llamafu.model.decode_loop.constrain", lambda model, options: seen.append(options.grammar))
    llm.chat([USER], tools=[NOW], max_tokens=1)
    llm.chat([USER], max_tokens=1)
    assert "further-call" in seen[0]
    assert seen[1] is None


def test_families_are_known_by_their_templates():
    assert family_of("{{ '<tool_call>' }}").name == "Hermes"
    assert family_of("<tool_call> <function= <parameter=").name == "Qwen3-Coder"
    assert family_of('<|start_header_id|> {"name": f, "parameters": p}').name == "Llama 3"
    assert family_of("[TOOL_CALLS]").name == "Mistral"
    assert family_of("[TOOL_CALLS] [ARGS]").name == "Mistral 2025"
    assert family_of(PLAIN) is None
    assert reasoning_of(PLAIN) is None
    assert reasoning_of("x.split('</think>')").opening == "<think>"
    assert reasoning_of("<think> <response></response>").silent == ("<response>", "</response>")
    assert reasoning_of("<think> <response> {{ result }} </response>").silent == ()
    for name, row in rows().items():
        if (template := text_of(name, None)) is not None:
            assert getattr(family_of(template), "name", "") == row["family"], name


# -- reasoning ------------------------------------------------------------------------------------------------------


def test_reasoning_is_not_text(llm, engine, template, monkeypatch):
    template(THINKING)
    with saying(monkeypatch, "<think>\nHm.\n</think>\n\nHello"):
        for chat in (llm.chat, engine.chat):
            completion = chat([USER])
            assert (completion.text, completion.reasoning, completion.finish_reason) == ("Hello", "Hm.", "stop")
        for stream in (llm.stream_chat([USER]), engine.stream_chat([USER])):
            pieces = list(stream)
            assert "".join(pieces) == "Hello"
            assert "".join(piece.reasoning for piece in pieces if isinstance(piece, Piece)) == "Hm."
        assert llm.complete("x").text == "<think>\nHm.\n</think>\n\nHello"
        template(PLAIN)
        assert llm.chat([USER]).text == "<think>\nHm.\n</think>\n\nHello"


def test_a_prompt_may_end_inside_the_reasoning(llm, template, monkeypatch):
    template(OPENED)
    with saying(monkeypatch, "Hm.</think>Hello"):
        completion = llm.chat([USER])
        assert (completion.text, completion.reasoning) == ("Hello", "Hm.")
        completion = llm.chat([USER], chat_template_kwargs={"enable_thinking": False})
        assert (completion.text, completion.reasoning) == ("Hm.</think>Hello", "")
        completion = llm.chat([USER, {"role": "assistant", "content": "<think>So"}])
        assert (completion.text, completion.reasoning) == ("Hello", "Hm.")


def test_a_schema_or_a_call_follows_the_reasoning(llm, template, monkeypatch):
    """A grammar lets the reasoning end before it begins: what fits the schema is not taken for reasoning."""
    template(OPENED)
    seen = []
    monkeypatch.setattr("llamafu.model.decode_loop.constrain", lambda model, options: seen.append(options.grammar))
    llm.chat([USER], json_schema={"enum": ["yes"]}, max_tokens=1)
    llm.chat([USER], tools=[NOW], tool_choice="required", max_tokens=1)
    for gbnf, end in zip(seen, ('"yes"', "</tool_call>"), strict=True):
        for seed in range(8):
            text = Walk(gbnf, dice(seed)).text()
            assert text.index("</think>") < text.index(end)
    llm.chat([USER], json_schema={"enum": ["yes"]}, max_tokens=1, chat_template_kwargs={"enable_thinking": False})
    assert seen[2] is None  # of the schema itself


def test_gpt_oss_is_shown_its_reasoning(llm, template):
    template("{% for m in messages %}{{ m.role }}:{{ m.thinking }}:{{ m.content }};{% endfor %}")
    for name in ("reasoning_content", "reasoning", "thinking"):
        history = [USER, {"role": "assistant", "content": "a", name: "Hm."}, USER]
        assert prompt_of(llm, history) == "user::hi;assistant:Hm.:a;user::hi;"
        template_text = "{% for m in messages %}{{ m.reasoning_content }}{% endfor %}"
        assert prompt_of(llm, history, chat_template=template_text) == "Hm."
