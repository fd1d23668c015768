"""Calls through the chat templates of public models, as llama.cpp's source tree has them: what they write is read again."""

import json

import pytest

from llamafu.errors import LlamafuError
from llamafu.generation import chat_template
from llamafu.generation.chat_options import ChatOptions
from llamafu.generation.tools.answer_format import AnswerFormat, AnswerParser
from llamafu.generation.tools.family import family_of, reasoning_of
from llamafu.generation.tools.tool import callable_tools

FAMILIES = {
    "Bielik-11B-v3.0-Instruct": "Hermes",
    "CohereForAI-c4ai-command-r-plus-tool_use": "Command R",
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": "Command R7B",
    "Mistral-Small-3.2-24B-Instruct-2506": "Mistral 2025",
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": "Qwen3-Coder",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": "Hermes",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": "Hermes",
    "Qwen-QwQ-32B": "Hermes",
    "Qwen-Qwen2.5-7B-Instruct": "Hermes",
    "Qwen-Qwen3-0.6B": "Hermes",
    "Qwen3-Coder": "Qwen3-Coder",
    "Qwen3.5-4B": "Qwen3-Coder",
    "google-gemma-4-31B-it": "Gemma 4",
    "ibm-granite-granite-4.0": "Hermes",
    "meetkai-functionary-medium-v3.1": "Functionary 3.1",
    "meetkai-functionary-medium-v3.2": "Functionary 3.2",
    "meta-llama-Llama-3.1-8B-Instruct": "Llama 3",
    "meta-llama-Llama-3.2-3B-Instruct": "Llama 3",
    "meta-llama-Llama-3.3-70B-Instruct": "Llama 3",
    "mistralai-Ministral-3-14B-Reasoning-2512": "Mistral 2025",
    "mistralai-Mistral-Nemo-Instruct-2407": "Mistral",
    "openai-gpt-oss-120b": "gpt-oss",
    "unsloth-mistral-Devstral-Small-2507": "Mistral 2025",
}
ARGUMENTS = {"city": "Paris", "days": 2}
PROPERTIES = {"city": {"type": "string", "description": "c"}, "days": {"type": "integer", "description": "d"}}
PARAMETERS = {"type": "object", "properties": PROPERTIES, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "The weather", "parameters": PARAMETERS}}]
USER = {"role": "user", "content": "hi"}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}],
}
RESULT = {"role": "tool", "tool_call_id": "abcdefghi", "name": "weather", "content": "sunny today"}


class Told:
    """A model as far as `render` looks at it."""

    bos, eos, adds_bos = 0, 1, True

    def __init__(self, template):
        self.template = template

    def chat_template(self):
        return self.template

    def metadata(self, key):
        assert key == "tokenizer.chat_template.tool_use"

    def token_bytes(self, token, *, special):
        assert special
        return [b"<s>", b"</s>"][token]


@pytest.fixture
def template(upstream, name):
    path = upstream / "models" / "templates" / f"{name}.jinja"
    if not path.exists():
        pytest.skip(f"this source tree has no {path.name}")
    return path.read_text("utf-8")


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_template_writes_is_read(template, name):
    family, marks = family_of(template), reasoning_of(template)
    assert family.name == FAMILIES[name]
    prompt = chat_template.render(Told(template), [USER], ChatOptions(tools=TOOLS))
    assert not prompt.is_generic
    shown = chat_template.render(Told(template), [USER, CALL], ChatOptions(tools=TOOLS, add_generation_prompt=False)).text
    at = next((i for i, (one, other) in enumerate(zip(shown, prompt.text, strict=False)) if one != other), len(prompt.text))
    inside = [found for mark in family.form.marks if (found := shown.find(mark, max(0, at - len(mark)))) >= 0]
    parser = AnswerParser(AnswerFormat(form=family.form, tools=callable_tools(TOOLS), reasoning=marks))
    parser.feed(shown[min([at, *inside]) :])
    parser.finish()
    assert [(call.name, json.loads(call.arguments)) for call in parser.tool_calls] == [("weather", ARGUMENTS)]
    back = chat_template.render(Told(template), [USER, CALL, RESULT], ChatOptions(tools=TOOLS))
    assert "sunny today" in back.text
    assert not back.is_generic


@pytest.mark.parametrize("name", ["google-gemma-2-2b-it", "microsoft-Phi-3.5-mini-instruct", "HuggingFaceTB-SmolLM3-3B"])
def test_templates_without_a_place_are_told_of_tools(template, name):
    rendered = chat_template.render(Told(template), [USER, CALL, RESULT, USER], ChatOptions(tools=TOOLS))
    assert rendered.is_generic
    assert '{"name": "weather", "arguments": {"city": "Paris", "days": 2}}' in rendered.text
    with pytest.raises(LlamafuError, match="has no place|must alternate"):
        chat_template.render(Told(template), [USER, CALL, RESULT], ChatOptions(tools=TOOLS, generic_tools=False))
