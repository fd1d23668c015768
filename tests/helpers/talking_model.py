"""A GGUF model that says what a script says, and adapters that change the script: for clients, whose requests are the test.

Its layer hands the last token's embedding on, in which each token has a dimension of its own; the output matrix names the next
token for it. The template begins an answer by `<begin>`, after a tool's result by `<answer>`; an adapter turns `<begin>` into
another mark, with a script of its own. Where a grammar holds an answer, brackets and quotes are closed as soon as they may be.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from gguf import GGUFWriter, LlamaFileType, TokenType
from tiny_model import byte_text, finish

if TYPE_CHECKING:
    from pathlib import Path

SAID = {
    "<begin>": ("I hear", " you", " well."),
    "<answer>": ("It is", " sunny", " in Tokyo."),
    "<pirate>": ("Arrr", ", I hear", " you!"),
    "<caller>": ("<tool_call>\n", '{"name": "weather",', ' "arguments": {"city":', ' "Tokyo"}}', "\n</tool_call>"),
}
"""What follows each mark. Without an adapter answers begin at the first; the last two are what the adapters make of it."""
BASE, PIRATE, ANSWER = ("".join(SAID[mark]) for mark in ("<begin>", "<pirate>", "<answer>"))
WIDTH = 320
"""Numbers of a vector."""
ADAPTERS = ("pirate", "caller")
TEMPLATE = (
    "{# <tool_call> #}{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}[{{ c.function.name }} {{ c.function.arguments | tojson }}]{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if messages[-1].role == 'tool' %}<answer>{% else %}<begin>{% endif %}{% endif %}"
)
_CONTROL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", *SAID)
_END = "<|im_end|>"
_CLOSING = ((_END, 0.3), ('"', 0.25), ("}", 0.2), ("]", 0.15))
"""What is liked after any token, in this order, and how much beside what a script says."""
_FF = 32


def write_talking_model(folder: Path) -> Path:
    """Write `smol.gguf` and a folder `adapters` into `folder`; return the model's path."""
    tokens = _vocabulary()
    path = folder / "smol.gguf"
    writer = GGUFWriter(path, "llama")
    _add_head(writer, tokens)
    for name, values in _weights(tokens).items():
        writer.add_tensor(name, values.astype(np.float32))
    finish(writer)
    (folder / "adapters").mkdir()
    for name in ADAPTERS:
        _write_adapter(folder / "adapters" / f"{name}.gguf", tokens["<begin>"], tokens[f"<{name}>"])
    return path


def _vocabulary() -> dict[str, int]:
    """Every token's text with its number."""
    pieces = [byte_text(piece.encode()) for said in SAID.values() for piece in said]
    return {text: index for index, text in enumerate([*_CONTROL, *(byte_text(bytes([byte])) for byte in range(256)), *pieces])}


def _add_head(writer: GGUFWriter, tokens: dict[str, int]) -> None:
    writer.add_type("model")
    writer.add_name("talking")
    writer.add_context_length(32768)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(_FF)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_rope_dimension_count(WIDTH // 4)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(list(tokens))
    writer.add_token_types([TokenType.CONTROL] * len(_CONTROL) + [TokenType.NORMAL] * (len(tokens) - len(_CONTROL)))
    writer.add_token_merges(["Ġ t"])  # there has to be one
    writer.add_bos_token_id(tokens["<s>"])
    writer.add_eos_token_id(tokens[_END])
    writer.add_add_bos_token(value=False)
    writer.add_add_space_prefix(value=False)
    writer.add_chat_template(TEMPLATE)


def _weights(tokens: dict[str, int]) -> dict[str, np.ndarray]:
    zeros = np.zeros((WIDTH, WIDTH))
    marked = np.zeros((_FF, WIDTH))
    marked[0, tokens["<begin>"]] = 1  # what an adapter of ffn_down adds its change to: the square of `<begin>`
    output = np.zeros((len(tokens), WIDTH))
    for text, liked in _CLOSING:
        output[tokens[text]] = liked
    for mark, said in SAID.items():
        chain = [mark, *(byte_text(piece.encode()) for piece in said), _END]
        for before, after in pairwise(chain):
            output[tokens[after], tokens[before]] = 1
    ones = np.ones(WIDTH)
    return {
        "token_embd.weight": np.eye(len(tokens), WIDTH),
        "blk.0.attn_norm.weight": ones,
        **{f"blk.0.attn_{name}.weight": zeros for name in ("q", "k", "output")},
        "blk.0.attn_v.weight": np.eye(WIDTH),  # values that are all zero have no scale to compare attention on
        "blk.0.ffn_norm.weight": ones,
        "blk.0.ffn_gate.weight": marked,
        "blk.0.ffn_up.weight": marked,
        "blk.0.ffn_down.weight": np.zeros((WIDTH, _FF)),
        "output_norm.weight": ones,
        "output.weight": output,
    }


def _write_adapter(path: Path, before: int, after: int) -> None:
    writer = GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_name(path.stem)
    writer.add_float32("adapter.lora.alpha", 1.0)
    a, b = np.zeros((1, _FF), np.float32), np.zeros((WIDTH, 1), np.float32)
    a[0, 0] = 1
    b[[before, after], 0] = -1 / WIDTH, 1 / WIDTH  # the norm makes sqrt(WIDTH) of 1, gate and up its square
    writer.add_tensor("blk.0.ffn_down.weight.lora_a", a)
    writer.add_tensor("blk.0.ffn_down.weight.lora_b", b)
    finish(writer)
