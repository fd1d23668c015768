"""Chats as transformers' own reading of chat templates has them, from tools to JSON."""

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from llamafu import chat

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
TEMPLATES = {
    "plain": "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}",
    "json": "{{ tools | tojson }}{{ messages | tojson(indent=2) }}{{ tools | tojson(ensure_ascii=true, sort_keys=true) }}",
    "separated": "{{ tools[0] | tojson(separators=(',', ':')) }}",
    "calls": """{%- for m in messages %}
    {%- for call in m.tool_calls or [] %}
{{ '<tool_call>' }}{{ call.function.name }}({{ call.function.arguments | tojson }}){{ '</tool_call>' }}
    {%- endfor %}
{{ m.role | title }}: {{ m.content | trim }}
{%- endfor %}
{%- if add_generation_prompt %}Assistant:{% endif %}""",
    "loops": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.role }}{% endgeneration %}\n  {% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
}


class Told:
    """A model as far as `render` looks at it."""

    bos, eos, adds_bos = 0, 1, True

    def __init__(self, template):
        self.template = template

    def chat_template(self):
        return self.template

    def piece(self, token, *, special):
        assert special
        return [b"<s>", b"</s>"][token]


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_are_those_of_transformers(name):
    ends = {"bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **ends)
    template = TEMPLATES[name]
    theirs = tokenizer.apply_chat_template(
        MESSAGES, tools=TOOLS, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    assert chat.render(Told(template), MESSAGES, tools=TOOLS) == theirs
