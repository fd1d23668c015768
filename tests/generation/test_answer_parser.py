"""Answers as models of every family write them: text, reasoning and calls, whole and cut anywhere."""

import json

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from llamafu.generation.completion import Piece, joined
from llamafu.generation.tools.answer_format import AnswerFormat, AnswerParser
from llamafu.generation.tools.family import FAMILIES, GENERIC, UNKNOWN
from llamafu.generation.tools.reader import Marks
from llamafu.generation.tools.reasoning_marks import ReasoningMarks, reasoning_of
from llamafu.generation.tools.tool import callable_tools

TOOLS = callable_tools(
    [
        {
            "type": "function",
            "function": {
                "name": "weather",
                "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
            },
        },
        {"type": "function", "function": {"name": "now"}},
    ]
)
ON_A_BUSY_MACHINE = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
THINK = ReasoningMarks("<think>", "</think>")
PARIS = '{"city": "Paris", "days": 2}'
NOW, WEATHER = ("now", "{}"), ("weather", PARIS)
BAR = "\N{FULLWIDTH VERTICAL LINE}"


def deepseek(*words):
    return f"<{BAR}{chr(0x2581).join(words)}{BAR}>"


BEGIN, END, SEP = deepseek("tool", "call", "begin"), deepseek("tool", "call", "end"), deepseek("tool", "sep")
ALL, ALL_END = deepseek("tool", "calls", "begin"), deepseek("tool", "calls", "end")
HEAD = "<|start|>assistant"
D = f"<{BAR}DSML{BAR}"
DSML = (
    f'{D}invoke name="weather">\n{D}parameter name="city" string="true">Paris</{D[1:]}parameter>\n'
    f'{D}parameter name="days" string="false">2</{D[1:]}parameter>\n</{D[1:]}invoke>'
)
GLM = "<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>days</arg_key>\n<arg_value>2</arg_value>"
OPEN = ":opensource"
Q = '<|"|>'

# fmt: off
# Of each family: an answer, then the text and the calls in it.
ANSWERS = {
    "Hermes": [
        (f'<tool_call>\n{{"name": "weather", "arguments": {PARIS}}}\n</tool_call>', "", [WEATHER]),
        (f'Let me see.\n<tool_call>{{"arguments": {PARIS}, "name": "weather"}}</tool_call>', "Let me see.", [WEATHER]),
        (
            '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>\n<tool_call>\n{"name": "now"}\n</tool_call>',
            "",
            [NOW, NOW],
        ),
        ('<tool_call>{"name": "now", "arguments": "{}"}</tool_call>', "", [NOW]),
        ('<tool_call>[{"name": "now", "arguments": {}}, {"name": "now", "arguments": null}]</tool_call>', "", [NOW, NOW]),
        (
            '<tool_call>{"name": "weather", "arguments": {"city": "a\\"}</tool_call>{["}}</tool_call>',
            "",
            [("weather", '{"city": "a\\"}</tool_call>{["}')],
        ),
        ('<tool_call>{"name": "now", "arguments": {}}', "", [NOW]),  # it ended with the end of the text
        ('<tool_call>{"name": "now", "arguments": {}</tool_call>', "", [NOW]),  # a brace is missing
        ('<tool_call>\n{"name": "now", "arguments": {}}}\n</tool_call>\nSo.', "So.", [NOW]),  # there is one too many
        ('<tool_call>[{"name": "now", "arguments": {}}]} }\n</tool_call>', "", [NOW]),
        ('<tool_call>{"name": "now", "arguments": {}}} }So.', "} }So.", [NOW]),  # no mark follows: it is text
        ('<tool_call>{"name": "now", "arguments": {},}</tool_call>', "", [NOW]),
        ('<tool_call>{"name": "now", "arguments": ""}</tool_call>', "", [NOW]),
    ],
    "Qwen3-Coder": [
        (
            (
                "I'll look.\n\n<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n"
                "<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>"
            ),
            "I'll look.",
            [WEATHER],
        ),
        ("<function=now>\n</function>", "", [NOW]),
        (
            (
                "<tool_call>\n<function=weather>\n<parameter=city>\n12\n3 <b>\n</parameter>\n<parameter=x>\nTrue\n"
                '</parameter>\n<parameter=y>\n{"a": [1]}\n</parameter>\n</function>\n</tool_call>'
            ),
            "",
            [("weather", '{"city": "12\\n3 <b>", "x": true, "y": {"a": [1]}}')],
        ),
    ],
    "Functionary 3.1": [
        (f"<function=weather>{PARIS}</function>", "", [WEATHER]),
        (f"Both: <function=now>{{}}</function><function=weather>{PARIS}</function>", "Both:", [NOW, WEATHER]),
    ],
    "Functionary 3.2": [
        (f"weather\n{PARIS}", "", [WEATHER]),
        (f"all\nI look. >>> x\n>>>weather\n{PARIS}>>>now\n{{}}", "I look. >>> x", [WEATHER, NOW]),
        ("all\nHello", "Hello", []),
        (">>>now\n{}", "", [NOW]),  # the prompt ends with this mark
    ],
    "DeepSeek V3.1": [
        (f"{ALL}{BEGIN}weather{SEP}{PARIS}{END}{ALL_END}", "", [WEATHER]),
        (f"Well. {ALL}{BEGIN}now{SEP}{{}}{END}{BEGIN}weather{SEP}{PARIS}{END}{ALL_END}", "Well.", [NOW, WEATHER]),
    ],
    "DeepSeek R1": [
        (f"{ALL}{BEGIN}function{SEP}weather\n```json\n{PARIS}\n```{END}{ALL_END}", "", [WEATHER]),
        (
            f"{ALL}{BEGIN}function{SEP}now\n```json\n{{}}\n```{END}\n{BEGIN}function{SEP}now\n```json\n{{}}\n```{END}{ALL_END}",
            "",
            [NOW, NOW],
        ),
    ],
    "Command R7B": [
        (
            '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "weather", "parameters": ' + PARIS + "},\n"
            '    {"tool_call_id": "1", "tool_name": "now", "parameters": {}}\n]<|END_ACTION|>',
            "",
            [WEATHER, NOW],
        ),
        (f'<|START_ACTION|>[{{"tool_name": "weather", "parameters": {PARIS}}}]<|END_ACTION|>', "", [WEATHER]),
    ],
    "Command R": [
        (f'Action: ```json\n[\n    {{\n "tool_name": "weather",\n "parameters": {PARIS}\n    }}\n]```', "", [WEATHER]),
        ('Action:\n```json\n[\n  {"tool_name": "now", "parameters": {}}\n]\n```', "", [NOW]),
    ],
    "Mistral": [
        (f'[TOOL_CALLS][{{"name": "weather", "arguments": {PARIS}, "id": "abcdefghi"}}]', "", [WEATHER]),
        ('[TOOL_CALLS] [{"name": "now", "arguments": {}}, {"name": "now", "arguments": {}}]', "", [NOW, NOW]),
    ],
    "Mistral 2025": [
        (f"[TOOL_CALLS]weather[ARGS]{PARIS}", "", [WEATHER]),
        (f"Two.[TOOL_CALLS]now[CALL_ID]abcdefghi[ARGS]{{}}[TOOL_CALLS]weather[ARGS]{PARIS}", "Two.", [NOW, WEATHER]),
    ],
    "Gemma 4": [
        (f"<|tool_call>call:weather{{city:{Q}Paris{Q},days:2}}<tool_call|>", "", [WEATHER]),
        (
            (
                f'<|tool_call>call:weather{{city:{Q}a}}"b{Q},at:[1,{{{Q}k{Q}:null}},[]],o:{{}}}}<tool_call|>'
                "<|tool_call>call:now{}"
            ),
            "",
            [("weather", '{"city": "a}\\"b", "at": [1, {"k": null}, []], "o": {}}'), NOW],
        ),
    ],
    "FunctionGemma": [
        ("<start_function_call>call:weather{city:<escape>Paris<escape>,days:2}<end_function_call>", "", [WEATHER]),
    ],
    "Phi-4": [
        (f'<|tool_call|>[{{"name": "weather", "arguments": {PARIS}}}]<|/tool_call|>', "", [WEATHER]),
        ('<|tool_call|>{"name": "now", "arguments": {}}<|/tool_call|>', "", [NOW]),
        ('functools[{"name": "now", "arguments": {}}]', "", [NOW]),
        ("import functools", "import functools", []),
    ],
    "Granite": [
        (f'<|tool_call|>[{{"name": "weather", "arguments": {PARIS}}}]', "", [WEATHER]),
        ('<|tool_call|>[{"name": "now", "arguments": {}}, {"name": "now"}]', "", [NOW, NOW]),
        (f'<tool_call>[{{"name": "weather", "arguments": {PARIS}}}]', "", [WEATHER]),  # Granite 3.1's
    ],
    "Llama 3": [
        (f'{{"name": "weather", "parameters": {PARIS}}}', "", [WEATHER]),
        (f'<|python_tag|>{{"type": "x", "name": "weather", "parameters": {PARIS}}}; {{"name": "now"}}', "", [WEATHER, NOW]),
        ('{"name": "Ann", "parameters": {}}', '{"name": "Ann", "parameters": {}}', []),  # JSON that was asked for
        ('{"parameters": {}, "name": "Ann"}', '{"parameters": {}, "name": "Ann"}', []),
    ],
    "gpt-oss": [
        (f"<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{PARIS}<|call|>", "", [WEATHER]),
        (f"to=functions.weather<|channel|>commentary json<|message|>{PARIS}", "", [WEATHER]),
        (f"<|channel|>commentary to=weather <|constrain|>json<|message|>{PARIS}<|call|>", "", [WEATHER]),
        ("<|channel|>commentary to=assistant<|message|>Hi<|end|>", "Hi", []),  # no tool's name
        ("<|channel|>final<|message|>Hello<|return|>", "Hello", []),
        (f"<|channel|>final<|message|>a<|end|>{HEAD}<|channel|>commentary to=functions.now<|message|>{{}}<|call|>", "a", [NOW]),
        ("Hello", "Hello", []),
    ],
    "Seed-OSS": [
        (
            ("<seed:tool_call>\n<function=weather>\n<parameter=city>Paris</parameter>\n<parameter=days>2</parameter>\n"
            "</function>\n</seed:tool_call>"),
            "",
            [WEATHER],
        ),
        ("Now.\n<seed:tool_call>\n<function=now>\n</function>\n</seed:tool_call>\n", "Now.", [NOW]),
        (
            "<seed:tool_call>\n<function=weather>\n<parameter=city>\n a\n</parameter>\n</function>\n</seed:tool_call>",
            "",
            [("weather", '{"city": "\\n a\\n"}')],
        ),
    ],
    "DeepSeek V3.2": [
        (f"{D}function_calls>\n{DSML}\n</{D[1:]}function_calls>", "", [WEATHER]),
        (f'Well.\n\n{D}function_calls>{DSML}\n{D}invoke name="now">\n</{D[1:]}invoke>', "Well.", [WEATHER, NOW]),
    ],
    "DeepSeek V4": [
        (f"Well.\n\n{D}tool_calls>\n{DSML}\n</{D[1:]}tool_calls>", "Well.", [WEATHER]),
        (
            (f'{D}tool_calls>\n{D}invoke name="f">\n{D}parameter name="x" string="true">1</{D[1:]}parameter>\n'
            f'{D}parameter name="y" string="false">[1</{D[1:]}parameter>\n</{D[1:]}invoke>\n</{D[1:]}tool_calls>'),
            "",
            [("f", '{"x": "1", "y": "[1"}')],
        ),
    ],
    "GLM 4.5": [
        (f"Well.\n<tool_call>weather\n{GLM}\n</tool_call>", "Well.", [WEATHER]),
        ("<tool_call>now\n</tool_call>\n<tool_call>now</tool_call>", "", [NOW, NOW]),
        (
            ("<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>12 <b>\n</arg_value>\n<arg_key>x</arg_key>\n"
            '<arg_value>{"a": null}</arg_value>\n</tool_call>'),
            "",
            [("weather", '{"city": "12 <b>\\n", "x": {"a": null}}')],
        ),
    ],
    "GLM 4.7": [
        (f"<tool_call>weather{GLM.replace(chr(10), '')}</tool_call>", "", [WEATHER]),
        ("<tool_call>now</tool_call>", "", [NOW]),
    ],
    "Hunyuan 3": [
        (
            (f"<tool_calls{OPEN}>\n<tool_call{OPEN}>weather<tool_sep{OPEN}>\n{GLM.replace('>', OPEN + '>')}\n"
            f"</tool_call{OPEN}>\n<tool_call{OPEN}>now<tool_sep{OPEN}>\n</tool_call{OPEN}>\n</tool_calls{OPEN}>"),
            "",
            [WEATHER, NOW],
        ),
        (f"<tool_call{OPEN}>weather<tool_sep{OPEN}>{GLM.replace('>', OPEN + '>')}</tool_call{OPEN}>", "", [WEATHER]),
    ],
    "Hunyuan": [
        (f'<tool_calls>[{{"name": "weather", "arguments": {PARIS}}}]</tool_calls>', "", [WEATHER]),
        ('Two.\n<tool_calls>[{"name": "now", "arguments": {}, "id": "1"}, {"name": "now"}]</tool_calls>', "Two.", [NOW, NOW]),
    ],
    "Kimi K2": [
        (
            ("Well.<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>"
            f"{PARIS}<|tool_call_end|><|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{{}}<|tool_call_end|>"
            "<|tool_calls_section_end|>"),
            "Well.",
            [WEATHER, NOW],
        ),
        (f"<|tool_call_begin|>weather:12<|tool_call_argument_begin|>{PARIS}<|tool_call_end|>", "", [WEATHER]),
    ],
    "MiniMax M2": [
        (
            ('I look.\n<minimax:tool_call>\n<invoke name="weather">\n<parameter name="city">Paris</parameter>\n'
            '<parameter name="days">2</parameter>\n</invoke>\n</minimax:tool_call>'),
            "I look.",
            [WEATHER],
        ),
        ('<minimax:tool_call><invoke name="now">\n</invoke>\n<invoke name="now"></invoke></minimax:tool_call>', "", [NOW, NOW]),
    ],
    "MiniMax M1": [
        (f'<tool_calls>\n{{"name": "weather", "arguments": {PARIS}}}\n</tool_calls>', "", [WEATHER]),
        ('<tool_calls>\n{"name": "now", "arguments": {}}\n{"name": "now"}\n</tool_calls>', "", [NOW, NOW]),
    ],
    "LFM2": [
        ('<|tool_call_start|>[weather(city="Paris", days=2)]<|tool_call_end|>', "", [WEATHER]),
        ("Two. <|tool_call_start|>[now(), weather(city='Paris', days=2)]<|tool_call_end|>", "Two.", [NOW, WEATHER]),
        (
            "<|tool_call_start|>[weather(city='It\\'s \"so\"', x=[True, None, {'k': \"v\"}], y=-1.5)]<|tool_call_end|>",
            "",
            [("weather", '{"city": "It\'s \\"so\\"", "x": [true, null, {"k": "v"}], "y": -1.5}')],
        ),
        (
            "<|tool_call_start|>[weather(city='what's \\u00e9, \\ud83d\\ude00 \\ud800\\n')]",
            "",
            [("weather", '{"city": "what\'s \\\\u00e9, \\\\ud83d\\\\ude00 \\\\ud800\\\\n"}')],
        ),
        (
            '<|tool_call_start|>[weather(city="\\u00e9\\ud83d\\ude00\\n\\\\")]<|tool_call_end|>',
            "",
            [("weather", '{"city": "é\U0001f600\\n\\\\"}')],
        ),
    ],
    "Nemotron": [
        (f'<TOOLCALL>[{{"name": "weather", "arguments": {PARIS}}}, {{"name": "now"}}]</TOOLCALL>', "", [WEATHER, NOW]),
        (f'<TOOLCALL>[{{"name": "weather", "arguments": {PARIS}}}]</TOOLCALL>', "", [WEATHER]),
    ],
    "Jamba": [
        (f'<tool_calls>[\n{{"name": "weather", "arguments": {PARIS}}}\n]</tool_calls>', "", [WEATHER]),
        ('Two.<tool_calls>[\n{"name": "now", "arguments": {}},\n{"name": "now"}\n]</tool_calls>', "Two.", [NOW, NOW]),
    ],
    "InternLM": [
        (f'<|action_start|><|plugin|>\n{{"name": "weather", "parameters": {PARIS}}}<|action_end|>', "", [WEATHER]),
        ('So:<|action_start|><|plugin|>\n{"name": "now", "arguments": {}}<|action_end|>\n', "So:", [NOW]),
    ],
    "Apertus": [
        (f'<|tools_prefix|>[{{"weather": {PARIS}}}]<|tools_suffix|>', "", [WEATHER]),
        ('So:<|tools_prefix|>[{"now": {}}, {"now": {}}]<|tools_suffix|>', "So:", [NOW, NOW]),
    ],
    "GigaChat": [
        (f'I look.<|function_call|>{{"name": "weather", "arguments": {PARIS}}}', "I look.", [WEATHER]),
    ],
}  # fmt: skip
MALFORMED = {
    "Hermes": [
        "<tool_call>",
        "<tool_call>\nnothing\n</tool_call>",
        '<tool_call>{"nme": "now", "arguments": {}}</tool_call>',
        '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "now" "arguments": {}}</tool_call>',
        '<tool_call>{"name": "now", "arguments": 3}</tool_call>',
        "<tool_call>{'name': 'now'}</tool_call>",
        '<tool_call>{"name": "no',
        '<tool_call>{"arguments": {"a": ]}, "name": "now"}</tool_call>',
        "a < b <tool_cal",
    ],
    "Qwen3-Coder": ["<tool_call>\nnow\n</tool_call>", "<function=now", "<function=a b>\n</function>", "<function=now>\nx"],
    "Functionary 3.1": ["<function=now>x</function>", "<function=now", "<function=>{}</function>"],
    "Functionary 3.2": ["nowhere\n{}", "now\nsoon", "weather"],
    "DeepSeek V3.1": [f"{ALL}now", f"{BEGIN}now{{}}{END}", f"{BEGIN}now{SEP}soon{END}"],
    "DeepSeek R1": [f"{BEGIN}function{SEP}now\n{{}}{END}", f"{BEGIN}function{SEP}now\n```json\nx\n```"],
    "Command R7B": ['<|START_ACTION|>[{"name": "now", "parameters": {}}]<|END_ACTION|>', "<|START_ACTION|>[]"],
    "Command R": ["Action: ```json\nnothing\n```", "Action: go"],
    "Mistral": ["[TOOL_CALLS][]", "[TOOL_CALLS] now", "[TOOL_CALLS]", '[TOOL_CALLS]["now"]'],
    "Mistral 2025": ["[TOOL_CALLS]now", "[TOOL_CALLS]now[ARGS]", "[TOOL_CALLS]a b[ARGS]{}", "[ARGS]{}"],
    "Gemma 4": ["<|tool_call>now{}<tool_call|>", "<|tool_call>call:now", "<|tool_call>call:{}"],
    "FunctionGemma": ["<start_function_call>now", "<start_function_call>call:now<end_function_call>"],
    "Phi-4": ["<|tool_call|>now<|/tool_call|>", "functools[now]"],
    "Granite": ["<|tool_call|>[]", '<|tool_call|>{"arguments": {}}'],
    "Llama 3": ['{"a": 1}', "<|python_tag|>print(1)", '{"name": "now", "parameters": 3}', "{now}", '{"name": "no'],
    "gpt-oss": ["<|channel|>" + "x" * 300, "<|channel|>final", "<|start|>assistant to=functions.now"],
    "Seed-OSS": ["<seed:tool_call>\nnow\n</seed:tool_call>", "<function=now>x</function>", "<tool_call>now</tool_call>"],
    "DeepSeek V3.2": [f"{D}function_calls>\nnow", f'{D}invoke name="now">x', f'{D}invoke name="a b">\n</{D[1:]}invoke>'],
    "DeepSeek V4": [f"{D}tool_calls>", f'{D}invoke name="now', f"{D}function_calls>", f"{D}tool_calls>{D}tool_calls>"],
    "GLM 4.5": ["<tool_call>now", "<tool_call>\n</tool_call>", "<tool_call>now then</tool_call>", '<tool_call>{"name": "now"}'],
    "GLM 4.7": ["<tool_call>now<arg_ke", "<tool_call></tool_call>", "<arg_key>x</arg_key>"],
    "Hunyuan 3": [f"<tool_calls{OPEN}>\nnow", f"<tool_call{OPEN}>now</tool_call{OPEN}>", "<tool_call>now</tool_call>"],
    "Hunyuan": ["<tool_calls>[]</tool_calls>", "<tool_calls>now</tool_calls>", '<tool_calls>[{"name": 1}]</tool_calls>'],
    "Kimi K2": [
        "<|tool_calls_section_begin|>now",
        "<|tool_call_begin|>functions.now:0{}<|tool_call_end|>",
        "<|tool_call_begin|>functions.now:0<|tool_call_argument_begin|>soon<|tool_call_end|>",
        "<|tool_call_begin|>:0<|tool_call_argument_begin|>{}<|tool_call_end|>",
    ],
    "MiniMax M2": ["<minimax:tool_call>now</minimax:tool_call>", '<invoke name="now', '<invoke name="now">now</invoke>'],
    "MiniMax M1": ["<tool_calls>\n</tool_calls>", "<tool_calls>\nnow", '<tool_calls>{"arguments": {}}</tool_calls>'],
    "LFM2": [
        "<|tool_call_start|>[]<|tool_call_end|>",
        "<|tool_call_start|>now<|tool_call_end|>",
        "<|tool_call_start|>[now(1)]<|tool_call_end|>",
        "<|tool_call_start|>[now it is(x=1)]",
        "<|tool_call_start|>[now(x y=1)]",
    ],
    "Nemotron": ["<TOOLCALL>[]</TOOLCALL>", "<TOOLCALL>now</TOOLCALL>"],
    "Jamba": ["<tool_calls>[\n]</tool_calls>", "<tool_calls>\nnow\n</tool_calls>"],
    "InternLM": ["<|action_start|><|plugin|>\nnow<|action_end|>", "<|action_start|><|interpreter|>\nnow()<|action_end|>"],
    "Apertus": ["<|tools_prefix|>[]<|tools_suffix|>", '<|tools_prefix|>[{"now": 3}]', '<|tools_prefix|>[{"": {}}]'],
    "GigaChat": ["<|function_call|>now", '<|function_call|>{"arguments": {}}'],
}
# fmt: on
FORMS = {family.name: family for family in FAMILIES}


def format_of(name, **more):
    family = FORMS.get(name, GENERIC)
    return AnswerFormat(form=family.form, tools=TOOLS, id_length=family.id_length, **more)


def parsed(answer_format, pieces):
    """Parse pieces; return text, reasoning and calls, which are those that the stream adds up to."""
    parser = AnswerParser(answer_format)
    whole = joined([*(parser.feed(piece) for piece in pieces), parser.finish(), parser.finish()])
    streamed = {}
    for delta in getattr(whole, "tool_calls", ()):
        name, arguments = streamed.get(delta.index, (delta.name, ""))
        assert bool(delta.name) == bool(delta.id) == (delta.index not in streamed)
        streamed[delta.index] = (name, arguments + delta.arguments)
    calls = [(call.name, call.arguments) for call in parser.tool_calls]
    assert list(streamed.values()) == calls
    assert (str(whole), getattr(whole, "reasoning", "")) == (parser.text, parser.reasoning)
    assert len({call.id for call in parser.tool_calls}) == len(calls)
    assert all(len(call.id) == (answer_format.id_length or 29) for call in parser.tool_calls)
    return parser.text, parser.reasoning, calls


def every_cut(answer_format, text):
    """Parse a text whole, character by character and cut in two anywhere; return the one result."""
    result = parsed(answer_format, [text])
    assert parsed(answer_format, text) == result
    for at in range(1, len(text)):
        assert parsed(answer_format, [text[:at], text[at:]]) == result, (text[:at], text[at:])
    return result


def test_every_family_has_its_answers():
    assert set(ANSWERS) == set(MALFORMED) == set(FORMS)


@pytest.mark.parametrize("name", ANSWERS)
def test_calls_are_found(name):
    for text, said, calls in ANSWERS[name]:
        assert every_cut(format_of(name), text) == (said, "", calls), text


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_call_stays_text(name):
    for text in MALFORMED[name]:
        assert every_cut(format_of(name), text) == (text, "", []), text
        if name not in {"Functionary 3.2", "Llama 3", "gpt-oss"}:
            assert every_cut(format_of(name), f"Well:\n {text} .\n") == (f"Well:\n {text} .\n", "", [])


@pytest.mark.parametrize("name", ANSWERS)
def test_no_part_of_a_mark_is_shown(name):
    """Text never has a piece of a call in it, at any moment."""
    for text, said, _ in ANSWERS[name]:
        parser = AnswerParser(format_of(name))
        shown = ""
        for character in text:
            shown += parser.feed(character)
            assert said.startswith(shown), (text, shown)


@pytest.mark.parametrize("name", ANSWERS)
def test_arguments_come_as_they_are_written(name):
    """The name before the arguments, and these in many pieces, long before the end."""
    text, _, calls = next(each for each in ANSWERS[name] if each[2] and each[2][0] == WEATHER and each[2][-1] != NOW)
    parser = AnswerParser(format_of(name))
    deltas = [delta for character in text for delta in getattr(parser.feed(character), "tool_calls", ())]
    assert (deltas[0].name, deltas[0].arguments) == ("weather", "")
    assert len(deltas) >= 3
    assert "".join(delta.arguments for delta in deltas[:2]) != calls[0][1]


def test_what_began_as_a_call_stays_one():
    """Its name is told already; its arguments are what was written, up to the mark that ends it."""
    hermes = format_of("Hermes")
    assert every_cut(hermes, '<tool_call>{"name": "now", "arguments": {"a": ]}}</tool_call> and') == (
        "and",
        "",
        [("now", '{"a": ]}}')],
    )
    assert every_cut(hermes, '<tool_call>{"name": "now", "arguments": {"a": "b') == ("", "", [("now", '{"a": "b')])
    assert every_cut(hermes, '<tool_call>[{"name": "now", "arguments": {}}, 3]</tool_call>') == (
        ", 3]</tool_call>",
        "",
        [NOW],
    )
    deep = "<|tool_call>call:now{a:" + "[" * 3000
    name, arguments = every_cut(format_of("Gemma 4"), deep[:200])[2][0]
    assert (name, arguments[:8]) == ("now", '{"a": [[')
    assert parsed(format_of("Gemma 4"), [deep])[2][0][0] == "now"


def test_a_name_alone_is_enough_only_where_there_is_a_mark():
    unknown = AnswerFormat(form=UNKNOWN.form, tools=TOOLS)
    assert every_cut(unknown, ' {"name": "now", "arguments": {}}') == ("", "", [NOW])
    assert every_cut(unknown, '{"name": "never", "arguments": {}}')[2] == []
    assert every_cut(unknown, '<tool_call>{"name": "never", "arguments": {}}</tool_call>')[2] == [("never", "{}")]


REASONED = [
    ("<think>\nHm.\n\nYes.\n</think>\n\nHello ", False, ("Hello ", "Hm.\n\nYes.", [])),
    ("\n <think>Hm.</think>Hello", False, ("Hello", "Hm.", [])),
    ("<think>\n\n</think>\n\nHello", False, ("Hello", "", [])),
    ("Hm.\n</think>\n\nHello", True, ("Hello", "Hm.", [])),
    ("<think>Hm.</think>Hello", True, ("Hello", "Hm.", [])),
    ("Hm. I ", True, ("", "Hm. I", [])),
    ("<think>Hm.", False, ("", "Hm.", [])),
    ("Use <think> and </think>.", False, ("Use <think> and </think>.", "", [])),
    ("<thin", False, ("<thin", "", [])),
    (" Hello \n", False, (" Hello \n", "", [])),
    ("", False, ("", "", [])),
    ('<think>a <tool_call> b</think>\n<tool_call>{"name": "now"}</tool_call>\n', False, ("", "a <tool_call> b", [NOW])),
]


@pytest.mark.parametrize(("text", "is_thinking", "result"), REASONED)
def test_reasoning_is_parted(text, is_thinking, result):
    assert every_cut(format_of("Hermes", reasoning=THINK, is_thinking=is_thinking), text) == result


def test_reasoning_of_other_families():
    harmony = f"<|channel|>analysis<|message|>Hm. <|end|>{HEAD}<|channel|>final<|message|> Hello<|return|>"
    assert every_cut(format_of("gpt-oss"), harmony) == ("Hello", "Hm.", [])
    both = f"<|channel|>analysis<|message|>Hm.<|end|>{HEAD} to=functions.now<|channel|>commentary json<|message|>{{}}<|call|>"
    assert every_cut(format_of("gpt-oss"), both) == ("", "Hm.", [NOW])
    marks = ReasoningMarks("<|START_THINKING|>", "<|END_THINKING|>", ("<|START_RESPONSE|>", "<|END_RESPONSE|>"))
    said = "<|START_THINKING|>Hm.<|END_THINKING|><|START_RESPONSE|>Hello<|END_RESPONSE|>"
    assert every_cut(format_of("Command R7B", reasoning=marks), said) == ("Hello", "Hm.", [])
    thought = ReasoningMarks("<|channel>thought", "<channel|>")
    assert every_cut(format_of("Gemma 4", reasoning=thought), "<|channel>thought\nHm.\n<channel|>Hello") == ("Hello", "Hm.", [])
    assert every_cut(AnswerFormat(form=None, reasoning=THINK), "<think>Hm.</think><tool_call>") == ("<tool_call>", "Hm.", [])


PARTS = [
    *("<tool_call>", "</tool_call>", "<think>", "</think>", '{"name": "now", "arguments": {', "}", '"', "\\", "[", " ", "x"),
    *("[TOOL_CALLS]", "now[ARGS]", "<function=now>", "<parameter=a>", "</parameter>", "</function>", BEGIN, "now", SEP, END),
    *("<|channel|>", "<|message|>", "final", "to=functions.now", "<|end|>", "<|tool_call>call:now{", Q, ":", ",", ">>>", "\n"),
    *("<|START_ACTION|>", '{"tool_name": "now", "parameters": {', "<|tool_call|>", "Action:\n```json", "```", "]"),
    *("<arg_key>", "a</arg_key>", "<arg_value>", "</arg_value>", f"{D}tool_calls>", f'{D}invoke name="', 'now">'),
    *("<|tool_call_start|>", "[now(", "a=", "'", ")", "True", "<|tool_call_begin|>", "functions.now:0", '<invoke name="'),
    *("<|tool_call_argument_begin|>", "<|tools_prefix|>", '[{"now": {}', "<seed:tool_call>", "<TOOLCALL>", "<|function_call|>"),
]


@ON_A_BUSY_MACHINE
@given(st.sampled_from(list(ANSWERS)), st.lists(st.sampled_from(PARTS), max_size=12), st.data())
def test_no_cut_changes_anything(name, parts, data):
    """Whatever is written: the same result, nothing twice, and text as it was where no call was found."""
    text = "".join(parts)
    answer_format = format_of(name, reasoning=THINK, is_thinking=data.draw(st.booleans()))
    result = parsed(answer_format, [text])
    at = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:end] for start, end in zip([0, *at], [*at, len(text)], strict=True)]
    assert parsed(answer_format, pieces) == result
    assert parsed(answer_format, text) == result
    said, thought, calls = result
    if not calls and not thought and name not in {"gpt-oss", "Functionary 3.2"} and not text.lstrip().startswith("<think>"):
        assert said == text or answer_format.is_thinking


BY_JSON = [
    *("Hermes", "Mistral", "Granite", "Llama 3", "Mistral 2025", "DeepSeek V3.1", "Functionary 3.1", "Hunyuan", "Kimi K2"),
    *("MiniMax M1", "Nemotron", "Apertus", "GigaChat", "Jamba", "InternLM"),
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@ON_A_BUSY_MACHINE
@given(st.sampled_from(BY_JSON), VALUES)
def test_any_arguments_come_through(name, value):
    arguments = json.dumps({"x": value}, ensure_ascii=False)
    written = next(each[0] for each in ANSWERS[name] if each[2] == [WEATHER])
    assert parsed(format_of(name), [written.replace(PARIS, arguments)])[2] == [("weather", arguments)]


@ON_A_BUSY_MACHINE
@given(VALUES)
def test_any_arguments_come_through_as_python_writes_them(value):
    ((name, arguments),) = parsed(format_of("LFM2"), [f"<|tool_call_start|>[weather(x={value!r})]<|tool_call_end|>"])[2]
    assert (name, json.loads(arguments)) == ("weather", {"x": value})


BY_ELEMENTS = ["Qwen3-Coder", "Seed-OSS", "GLM 4.5", "GLM 4.7", "Hunyuan 3", "MiniMax M2", "DeepSeek V3.2", "DeepSeek V4"]


@ON_A_BUSY_MACHINE
@given(st.sampled_from(BY_ELEMENTS), VALUES)
def test_any_arguments_come_through_as_elements(name, value):
    """As templates write them: strings as they are, which a schema or a mark says that they are, the rest as JSON."""
    form = FORMS[name].form
    schema = {"type": "string"} if isinstance(value, str) else {}
    tools = callable_tools([{"name": "f", "parameters": {"properties": {"x": schema}}}])
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    assume(form.value_end not in text)
    key_end = form.text_key_end if form.text_key_end and isinstance(value, str) else form.key_end
    element = f"{form.key_begin}x{key_end}{form.value_begin}{form.pad}{text}{form.pad}{form.value_end}"
    answer = f"{form.head}{form.name_begin}f{form.name_end}{element}{form.end}{form.tail}"
    ((called, arguments),) = parsed(AnswerFormat(form=form, tools=tools), [answer])[2]
    assert (called, json.loads(arguments)) == ("f", {"x": value})


def test_a_string_comes_while_it_is_written():
    """A file that a coding model writes does not wait for its last line."""
    parser = AnswerParser(format_of("Qwen3-Coder"))
    parser.feed("<tool_call>\n<function=weather>\n<parameter=city>\n")
    pieces = [parser.feed(text).tool_calls[0].arguments for text in ("one", "\ntwo", '\n"three"\n')]
    assert pieces == ["one", "\\ntwo", '\\n\\"three\\"']
    parser.finish()
    assert parser.tool_calls[0].arguments == '{"city": "one\\ntwo\\n\\"three\\"'
    assert every_cut(format_of("Qwen3-Coder"), "<function=weather>\n<parameter=city>\n\n\na\n\n</parameter>\n</function>")[
        2
    ] == [("weather", '{"city": "\\n\\na\\n"}')]


def test_reasoning_that_calls_end():
    """Apertus calls within its reasoning, and says nothing more."""
    marks = reasoning_of("<|inner_prefix|>")
    thought = f'<|inner_prefix|>Hm.<|tools_prefix|>[{{"weather": {PARIS}}}]<|tools_suffix|>'
    assert every_cut(format_of("Apertus", reasoning=marks), thought) == ("", "Hm.", [WEATHER])
    assert every_cut(format_of("Apertus", reasoning=marks), "<|inner_prefix|>Hm.<|inner_suffix|>Hi") == ("Hi", "Hm.", [])
    kimi = {"reasoning": THINK, "is_thinking": True, "spelled": {5: b"<|tool_calls_section_begin|>"}}
    called = (
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.now:0<|tool_call_argument_begin|>{}<|tool_call_end|>"
        "<|tool_calls_section_end|>"
    )
    assert every_cut(format_of("Kimi K2", **kimi), f"Hm. {called}") == ("", "Hm.", [NOW])  # the mark is a control token
    assert every_cut(format_of("Kimi K2", **{**kimi, "spelled": {}}), f"Hm. {called}") == ("", f"Hm. {called}", [])
    assert every_cut(format_of("Kimi K2", **kimi), f"Hm.</think>{called}") == ("", "Hm.", [NOW])
    hunyuan = reasoning_of("<think> </think> <answer> </answer>")
    assert every_cut(format_of("Hunyuan", reasoning=hunyuan), "<think>\nHm.\n</think>\n<answer>\nHi</answer>") == (
        "Hi",
        "Hm.",
        [],
    )


def test_what_json_cannot_hold_is_never_made():
    """Numbers that are not finite, and halves of surrogate pairs, which escapes may spell."""
    name = "Qwen3-Coder"
    for value, written in (("NaN", '"NaN"'), ("1e999", '"1e999"'), ('"\\ud800"', '"\\ud800"'), ("12", "12"), ("[1", '"[1"')):
        text = f"<function=now>\n<parameter=x>\n{value}\n</parameter>\n</function>"
        assert every_cut(format_of(name), text)[2] == [("now", f'{{"x": {written}}}')]
    text = '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>'
    assert every_cut(format_of("Hermes"), text) == (text, "", [])


def test_nothing_that_is_written_or_given_is_an_exception():
    """The engine's thread reads answers: lists without an end, and schemas that are none."""
    odd = callable_tools([{"name": "now", "parameters": {"properties": {"x": {"enum": 5}, "y": 3, "z": {"type": []}}}}])
    for key in "xyz":
        text = f"<function=now>\n<parameter={key}>\n{'[' * 100_000}{']' * 100_000}\n</parameter>\n</function>"
        parser = AnswerParser(AnswerFormat(form=FORMS["Qwen3-Coder"].form, tools=odd))
        parser.feed(text)
        parser.finish()
        assert json.loads(parser.tool_calls[0].arguments) == {key: "[" * 100_000 + "]" * 100_000}
    deep = f"<tool_call>{{{'[' * 100_000}{']' * 100_000}: 1}}</tool_call>"
    assert parsed(format_of("Hermes"), [deep]) == (deep, "", [])


def test_a_tool_with_an_odd_name_is_called_by_it():
    odd = AnswerFormat(form=FORMS["Mistral 2025"].form, tools=callable_tools([{"name": "my tool <1>"}]))
    assert every_cut(odd, "[TOOL_CALLS]my tool <1>[ARGS]{}")[2] == [("my tool <1>", "{}")]


def test_marks_do_not_hide_each_other():
    for family in [*FAMILIES, GENERIC, UNKNOWN]:
        for marks in (family.form.marks, family.form.inner_marks):
            for one in marks:
                assert not any(one != other and one in other for other in marks), (family.name, one)
    with pytest.raises(AssertionError):
        assert Marks(["ab", "abc"]).search("abc", 0).group() == "abc"


def test_a_piece_is_true_where_it_brings_something():
    assert not Piece("")
    assert Piece("a")
    assert Piece("", reasoning="a")
    assert joined(["a", "b"]).__class__ is str
    assert joined([Piece("a", reasoning="x"), "b"]).reasoning == "x"
