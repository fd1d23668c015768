"""Model families: how each writes calls and reasoning, and by which texts of a chat template it is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llamafu.generation.tools.deepseek_form import SEPARATOR, DeepSeekForm
from llamafu.generation.tools.gemma_form import GemmaForm
from llamafu.generation.tools.harmony_form import HarmonyForm
from llamafu.generation.tools.json_form import JsonForm
from llamafu.generation.tools.named_form import MistralForm, RecipientForm, TaggedForm
from llamafu.generation.tools.parameter_form import ParameterForm
from llamafu.generation.tools.reasoning_marks import ReasoningMarks

if TYPE_CHECKING:
    from llamafu.generation.tools.form import Form


@dataclass(frozen=True, slots=True)
class Family:
    """One way of writing calls.

    signs: texts that are all in the chat templates of this family.
    foreign: texts of which none is there: others write something else between the same marks.
    form: how its calls are read and written.
    id_length: characters of a call's id, where the templates ask for a number of them; 0 where they do not.
    """

    name: str
    signs: tuple[str, ...]
    form: Form
    id_length: int = 0
    foreign: tuple[str, ...] = ()

    def wrote(self, template: str) -> bool:
        """Whether a chat template is one of this family."""
        return all(sign in template for sign in self.signs) and not any(sign in template for sign in self.foreign)


_TOOL_CALL = JsonForm(
    marks=("<tool_call>",),
    closing="</tool_call>",
    head="<tool_call>\n",
    between="\n",
    tail="\n</tool_call>",
    wraps_each=True,
)
GENERIC = Family("generic", (), _TOOL_CALL)
"""For templates without a place for tools: the form is told in a system message."""
_ANY_JSON = JsonForm(
    marks=_TOOL_CALL.marks,
    closing=_TOOL_CALL.closing,
    is_bare=True,
    head=_TOOL_CALL.head,
    between=_TOOL_CALL.between,
    tail=_TOOL_CALL.tail,
    wraps_each=True,
)
UNKNOWN = Family("unknown", (), _ANY_JSON)
"""For templates that show tools and belong to no family of the table: Hermes's form, and an object alone, are read."""
_GRANITE = JsonForm(marks=("<|tool_call|>",), head="<|tool_call|>[", between=", ", tail="]")
_PHI = JsonForm(
    marks=("<|tool_call|>", "functools"),
    inner_marks=("<|/tool_call|>",),
    closing="<|/tool_call|>",
    head="<|tool_call|>[",
    between=", ",
    tail="]<|/tool_call|>",
)
_LLAMA_3 = JsonForm(marks=("<|python_tag|>",), arguments_key="parameters", is_bare=True, after_text=None)
_COMMAND_R7B = JsonForm(
    marks=("<|START_ACTION|>",),
    inner_marks=("<|END_ACTION|>",),
    closing="<|END_ACTION|>",
    name_key="tool_name",
    arguments_key="parameters",
    head="<|START_ACTION|>[\n",
    between=",\n",
    tail="\n]<|END_ACTION|>",
)
_COMMAND_R = JsonForm(
    marks=("Action:```json", "Action: ```json", "Action:\n```json"),
    closing="```",
    name_key="tool_name",
    arguments_key="parameters",
    head="Action:\n```json\n[\n",
    between=",\n",
    tail="\n]\n```",
)
_MISTRAL_2025 = MistralForm(is_named=True, head="[TOOL_CALLS]", between="[TOOL_CALLS]", tail="")
_GEMMA_4 = GemmaForm(marks=("<|tool_call>",), inner_marks=("<tool_call|>", '<|"|>'))
_FUNCTION_GEMMA = GemmaForm(marks=("<start_function_call>",), inner_marks=("<end_function_call>", "<escape>"))

FAMILIES = (
    Family("gpt-oss", ("<|channel|>", "<|message|>"), HarmonyForm()),
    Family("Qwen3-Coder", ("<function=", "<parameter="), ParameterForm()),
    Family("Functionary 3.2", (">>>", "recipient"), RecipientForm()),
    Family("Functionary 3.1", ("<function=", "<|start_header_id|>"), TaggedForm()),
    Family("DeepSeek R1", (SEPARATOR, "```json"), DeepSeekForm(is_fenced=True)),
    Family("DeepSeek V3.1", (SEPARATOR,), DeepSeekForm()),
    Family("Command R7B", ("<|START_ACTION|>",), _COMMAND_R7B),
    Family("Command R", ("Action:", "tool_name"), _COMMAND_R),
    Family("Mistral 2025", ("[TOOL_CALLS]", "[ARGS]"), _MISTRAL_2025, id_length=9),
    Family("Mistral", ("[TOOL_CALLS]",), MistralForm(), id_length=9),
    Family("Gemma 4", ("<|tool_call>", '<|"|>'), _GEMMA_4),
    Family("FunctionGemma", ("<start_function_call>",), _FUNCTION_GEMMA),
    Family("Phi-4", ("<|tool|>", "<|/tool|>"), _PHI),
    Family("Granite", ("<|tool_call|>",), _GRANITE),
    Family("Hermes", ("<tool_call>",), _TOOL_CALL, foreign=("<arg_key>", "<tool_calls>", "<invoke name=")),
    Family("Llama 3", ("<|start_header_id|>", '"parameters"'), _LLAMA_3),
)
"""Every family, the more particular ones first: the first one that a template shows the signs of is its family."""

_REASONING = (
    ReasoningMarks("[THINK]", "[/THINK]"),
    ReasoningMarks("<|START_THINKING|>", "<|END_THINKING|>", ("<|START_RESPONSE|>", "<|END_RESPONSE|>")),
    ReasoningMarks("<|channel>thought", "<channel|>"),
    ReasoningMarks("<seed:think>", "</seed:think>"),
    ReasoningMarks("<think>", "</think>"),
)
_GRANITE_RESPONSE = ("<response>", "</response>")


def family_of(template: str) -> Family | None:
    """Return the family of a chat template, None for none of the table."""
    return next((family for family in FAMILIES if family.wrote(template)), None)


def reasoning_of(template: str) -> ReasoningMarks | None:
    """Return the marks of the reasoning that a chat template knows, None where it knows none."""
    found = next((marks for marks in _REASONING if marks.opening in template or marks.closing in template), None)
    if found is not None and all(mark in template for mark in _GRANITE_RESPONSE):
        return ReasoningMarks(found.opening, found.closing, _GRANITE_RESPONSE)
    return found
