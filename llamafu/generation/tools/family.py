"""Model families: how each writes calls, and by which texts of a chat template it is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llamafu.generation.tools import family_forms as forms
from llamafu.generation.tools.harmony_form import HarmonyForm
from llamafu.generation.tools.named_form import MistralForm, RecipientForm, TaggedForm
from llamafu.generation.tools.python_form import PythonForm

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


GENERIC = Family("generic", (), forms.HERMES)
"""For templates without a place for tools: the form is told in a system message."""
UNKNOWN = Family("unknown", (), forms.ANY_JSON)
"""For templates that show tools and belong to no family of the table: Hermes's form, and an object alone, are read."""

FAMILIES = (
    Family("gpt-oss", ("<|channel|>", "<|message|>"), HarmonyForm()),
    Family("Seed-OSS", ("<seed:tool_call>",), forms.SEED_OSS),
    Family("Qwen3-Coder", ("<function=", "<parameter="), forms.QWEN3_CODER),
    Family("Functionary 3.2", (">>>", "recipient"), RecipientForm()),
    Family("Functionary 3.1", ("<function=", "<|start_header_id|>"), TaggedForm()),
    Family("DeepSeek R1", (forms.SEPARATOR, "```json"), forms.DEEPSEEK_R1),
    Family("DeepSeek V3.1", (forms.SEPARATOR,), forms.DEEPSEEK),
    Family("DeepSeek V3.2", ("DSML", "function_calls>"), forms.DEEPSEEK_V3_2),
    Family("DeepSeek V4", ("DSML", "tool_calls>"), forms.DEEPSEEK_V4),
    Family("Command R7B", ("<|START_ACTION|>",), forms.COMMAND_R7B),
    Family("Command R", ("Action:", "tool_name"), forms.COMMAND_R),
    Family("Mistral 2025", ("[TOOL_CALLS]", "[ARGS]"), forms.MISTRAL_2025, id_length=9),
    Family("Mistral", ("[TOOL_CALLS]",), MistralForm(), id_length=9),
    Family("Gemma 4", ("<|tool_call>", '<|"|>'), forms.GEMMA_4),
    Family("FunctionGemma", ("<start_function_call>",), forms.FUNCTION_GEMMA),
    Family("Phi-4", ("<|tool|>", "<|/tool|>"), forms.PHI_4),
    Family("Granite", ("<|tool_call|>",), forms.GRANITE),
    Family("GLM 4.7", ("<tool_call>", "</arg_key><arg_value>"), forms.GLM_4_7),
    Family("GLM 4.5", ("<tool_call>", "<arg_key>"), forms.GLM_4_5),
    Family("Hunyuan 3", ("<arg_key{}>", "':opensource'"), forms.HUNYUAN_3),
    Family("Hunyuan", ("<tool_calls>[",), forms.HUNYUAN),
    Family("Jamba", ('"<tool_calls>"', "<tool_definitions>"), forms.JAMBA),
    Family("Kimi K2", ("<|tool_call_argument_begin|>",), forms.KIMI_K2),
    Family("MiniMax M2", ("<minimax:tool_call>",), forms.MINIMAX_M2),
    Family("MiniMax M1", ("<tool_calls>", "<beginning_of_sentence>"), forms.MINIMAX_M1),
    Family("LFM2", ("List of tools: ", "<|im_start|>"), PythonForm()),
    Family("Nemotron", ("<TOOLCALL>",), forms.NEMOTRON),
    Family("InternLM", ("<|action_start|><|plugin|>",), forms.INTERNLM),
    Family("Apertus", ("<|tools_prefix|>",), forms.APERTUS),
    Family("GigaChat", ("<|function_call|>",), forms.GIGACHAT),
    Family("Hermes", ("<tool_call>",), forms.HERMES, foreign=("<arg_key>", "<tool_calls>", "<invoke name=")),
    Family("Llama 3", ("<|start_header_id|>", '"parameters"'), forms.LLAMA_3),
)
"""Every family, the more particular ones first: the first one that a template shows the signs of is its family."""


def family_of(template: str) -> Family | None:
    """Return the family of a chat template, None for none of the table."""
    return next((family for family in FAMILIES if family.wrote(template)), None)
