"""The forms of all families, with their marks."""

from __future__ import annotations

from dataclasses import replace

from llamafu.generation.tools.element_form import ElementForm
from llamafu.generation.tools.gemma_form import GemmaForm
from llamafu.generation.tools.json_form import JsonForm, KeyedForm
from llamafu.generation.tools.named_form import MistralForm
from llamafu.generation.tools.section_form import SectionForm


def _fullwidth(*words: str) -> str:
    """Return a mark in DeepSeek's spelling: between two fullwidth bars, with a low block for each space."""
    bar, space = "\N{FULLWIDTH VERTICAL LINE}", "\N{LOWER ONE EIGHTH BLOCK}"
    return f"<{bar}{space.join(words)}{bar}>"


def _listed(opening: str, closing: str, *others: str) -> JsonForm:
    """Return the form of a list of JSON objects after `opening`, or one of the others, which a mark may end."""
    return JsonForm(
        marks=(opening, *others),
        inner_marks=(closing,) if closing else (),
        closing=closing,
        head=f"{opening}[",
        between=", ",
        tail=f"]{closing}",
    )


def _gemma(opening: str, closing: str, quote: str) -> GemmaForm:
    return GemmaForm(marks=(opening,), inner_marks=(closing, quote), quotes=(quote,))


def _dsml(block: str) -> ElementForm:
    """Return the form of calls in a block of that name, as DeepSeek's models since V3.2 write them."""
    dsml = "\N{FULLWIDTH VERTICAL LINE}DSML\N{FULLWIDTH VERTICAL LINE}"
    head, tail = f"<{dsml}{block}>", f"</{dsml}{block}>"
    return ElementForm(
        marks=(head, f'<{dsml}invoke name="'),
        inner_marks=(dsml,),
        name_begin=f'<{dsml}invoke name="',
        name_end='">',
        key_begin=f'<{dsml}parameter name="',
        key_end='" string="false">',
        text_key_end='" string="true">',
        value_end=f"</{dsml}parameter>",
        end=f"</{dsml}invoke>",
        all_end=tail,
        head=f"{head}\n",
        tail=f"\n{tail}",
    )


def _pairs(suffix: str) -> ElementForm:
    """Return the form of calls with an element for each key and for each value, as GLM's models write them.

    `suffix` is in each mark, as Hunyuan's have it.
    """
    names = ("tool_call", "arg_key", "arg_value")
    (begin, end), (key_begin, key_end), (value_begin, value_end) = ((f"<{x}{suffix}>", f"</{x}{suffix}>") for x in names)
    return ElementForm(
        marks=(begin,),
        inner_marks=(end, key_begin, key_end, value_begin, value_end),
        name_begin=begin,
        key_begin=key_begin,
        key_end=key_end,
        value_begin=value_begin,
        value_end=value_end,
        end=end,
    )


HERMES = JsonForm(
    marks=("<tool_call>",),
    closing="</tool_call>",
    head="<tool_call>\n",
    between="\n",
    tail="\n</tool_call>",
    wraps_each=True,
)
ANY_JSON = replace(HERMES, is_bare=True)
"""Hermes's form, and an object alone."""
LLAMA_3 = JsonForm(marks=("<|python_tag|>",), arguments_key="parameters", is_bare=True, after_text=None)
MINIMAX_M1 = replace(
    HERMES,
    marks=("<tool_calls>",),
    closing="</tool_calls>",
    head="<tool_calls>\n",
    tail="\n</tool_calls>",
    wraps_each=False,
)
COMMAND_R7B = replace(
    _listed("<|START_ACTION|>", "<|END_ACTION|>"),
    name_key="tool_name",
    arguments_key="parameters",
    head="<|START_ACTION|>[\n",
    between=",\n",
    tail="\n]<|END_ACTION|>",
)
COMMAND_R = replace(
    COMMAND_R7B,
    marks=("Action:```json", "Action: ```json", "Action:\n```json"),
    inner_marks=(),
    closing="```",
    head="Action:\n```json\n[\n",
    tail="\n]\n```",
)
APERTUS = KeyedForm(
    marks=("<|tools_prefix|>",),
    inner_marks=("<|tools_suffix|>",),
    closing="<|tools_suffix|>",
    head="<|tools_prefix|>[",
    between=", ",
    tail="]<|tools_suffix|>",
)
GIGACHAT = JsonForm(marks=("<|function_call|>",), head="<|function_call|>")
MISTRAL_2025 = MistralForm(is_named=True, head="[TOOL_CALLS]", between="[TOOL_CALLS]", tail="")
SEPARATOR = _fullwidth("tool", "sep")
"""DeepSeek's mark after a name, which only its templates have."""
DEEPSEEK = SectionForm(
    marks=(_fullwidth("tool", "calls", "begin"), _fullwidth("tool", "call", "begin")),
    inner_marks=(_fullwidth("tool", "calls", "end"), _fullwidth("tool", "call", "end"), SEPARATOR),
    head=_fullwidth("tool", "calls", "begin"),
    tail=_fullwidth("tool", "calls", "end"),
)
KIMI_K2 = SectionForm(
    marks=("<|tool_calls_section_begin|>", "<|tool_call_begin|>"),
    inner_marks=("<|tool_calls_section_end|>", "<|tool_call_end|>", "<|tool_call_argument_begin|>"),
    head="<|tool_calls_section_begin|>",
    tail="<|tool_calls_section_end|>",
    is_numbered=True,
)
QWEN3_CODER = ElementForm(
    marks=("<tool_call>", "<function="),
    name_begin="<function=",
    name_end=">",
    key_begin="<parameter=",
    key_end=">",
    value_end="</parameter>",
    end="</function>",
    all_end="</tool_call>",
    pad="\n",
    head="<tool_call>\n",
    tail="\n</tool_call>",
    wraps_each=True,
)
SEED_OSS = replace(
    QWEN3_CODER,
    marks=("<seed:tool_call>", "<function="),
    inner_marks=("</seed:tool_call>",),
    all_end="</seed:tool_call>",
    pad="",
    head="<seed:tool_call>\n",
    tail="\n</seed:tool_call>",
)
GLM_4_5 = _pairs("")
HUNYUAN_3 = replace(
    _pairs(":opensource"),
    marks=("<tool_calls:opensource>", "<tool_call:opensource>"),
    inner_marks=(*_pairs(":opensource").inner_marks, "</tool_calls:opensource>", "<tool_sep:opensource>"),
    name_end="<tool_sep:opensource>",
    all_end="</tool_calls:opensource>",
    head="<tool_calls:opensource>\n",
    tail="\n</tool_calls:opensource>",
)
MINIMAX_M2 = ElementForm(
    marks=("<minimax:tool_call>", '<invoke name="'),
    inner_marks=("</minimax:tool_call>",),
    name_begin='<invoke name="',
    name_end='">',
    key_begin='<parameter name="',
    key_end='">',
    value_end="</parameter>",
    end="</invoke>",
    all_end="</minimax:tool_call>",
    head="<minimax:tool_call>\n",
    tail="\n</minimax:tool_call>",
)
DEEPSEEK_V3_2 = _dsml("function_calls")
DEEPSEEK_V4 = _dsml("tool_calls")
DEEPSEEK_R1 = replace(DEEPSEEK, is_fenced=True)
GLM_4_7 = replace(GLM_4_5, line="", between="")
GRANITE = _listed("<|tool_call|>", "", "<tool_call>")
PHI_4 = _listed("<|tool_call|>", "<|/tool_call|>", "functools")
NEMOTRON = _listed("<TOOLCALL>", "</TOOLCALL>")
HUNYUAN = _listed("<tool_calls>", "</tool_calls>")
JAMBA = replace(HUNYUAN, head="<tool_calls>[\n", between=",\n", tail="\n]</tool_calls>")
INTERNLM = replace(
    HERMES,
    marks=("<|action_start|><|plugin|>",),
    inner_marks=("<|action_start|>", "<|plugin|>", "<|action_end|>"),
    closing="<|action_end|>",
    arguments_key="parameters",
    head="<|action_start|><|plugin|>\n",
    tail="<|action_end|>",
)
GEMMA_4 = _gemma("<|tool_call>", "<tool_call|>", '<|"|>')
FUNCTION_GEMMA = _gemma("<start_function_call>", "<end_function_call>", "<escape>")
