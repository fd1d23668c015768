"""Chats as transformers' own reading of chat templates has them, from tools to JSON."""

import pytest
from helpers.public_templates import Told
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from llamafu.generation import chat_template
from llamafu.generation.chat_options import ChatOptions

MESSAGES = [
    {"role": "system", "content": "Answer <b>briefly</b> & 'well'."},
    {"role": "user", "content": "Wie spät ist es? \U0001f551"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "now", "arguments": {"zone": "CET", "as": "<é>"}}}],
    },
    {"role": "tool", "tool_call_id": "1", "content": "12:00"},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "now",
            "description": "The time, as in 'now' & <here>",
            "parameters": {"type": "object", "properties": {"zone": {"type": "string"}, "as": {"enum": ["é", "24"]}}},
        },
    }
]
PLAIN = [message for message in MESSAGES if message["role"] not in {"assistant", "tool"}]
TEMPLATES = {  # with what each has a place for: the rest is refused here, and left out by transformers
    "plain": ("{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}", PLAIN, None),
    "json": (
        "{{ tools | tojson }}{{ messages | tojson(indent=2) }}{{ tools | tojson(ensure_ascii=true, sort_keys=true) }}",
        MESSAGES,
        TOOLS,
    ),
    "separated": ("{{ tools[0] | tojson(separators=(',', ':')) }}", PLAIN, TOOLS),
    "calls": (
        """{%- for m in messages %}
    {%- for call in m.tool_calls or [] %}
{{ '<tool_call>' }}{{ call.function.name }}({{ call.function.arguments | tojson }}){{ '</tool_call>' }}
    {%- endfor %}
{{ m.role | title }}: {{ m.content | trim }}
{%- endfor %}
{%- if add_generation_prompt %}Assistant:{% endif %}""",
        MESSAGES,
        None,
    ),
    "loops": (
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
        PLAIN,
        None,
    ),
    "generation": ("{% for m in messages %}{% generation %}{{ m.role }}{% endgeneration %}\n  {% endfor %}", PLAIN, None),
    "namespace": (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        PLAIN,
        None,
    ),
}


ENDS = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_are_those_of_transformers(name):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **ENDS)
    template, messages, tools = TEMPLATES[name]
    theirs = tokenizer.apply_chat_template(
        messages, tools=tools, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    assert chat_template.render(Told(template), messages, ChatOptions(tools=tools)).text == theirs


def test_an_answer_is_continued_where_transformers_continues_it():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **ENDS)
    for name in ("plain", "calls"):
        template = TEMPLATES[name][0]
        last = [*PLAIN, {"role": "assistant", "content": "I say"}]
        theirs = tokenizer.apply_chat_template(last, chat_template=template, tokenize=False, continue_final_message=True)
        assert chat_template.render(Told(template), last).text == theirs
