"""Tiny vocabularies of the kinds that are not byte-level BPE: one function each, which writes `count` tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf import TokenType

if TYPE_CHECKING:
    from collections.abc import Callable

    from gguf import GGUFWriter

_PIECES = ("▁hello", "▁world", "▁the", "hello", "▁he", "ll", "▁t", "he", "▁", "h", "e", "l", "o", "w", "r", "d", "t")
_CONTROLS = ("<unk>", "<s>", "</s>")


def _write(writer: GGUFWriter, model: str, tokens: list[str], types: list[TokenType], count: int) -> None:
    tokens += [f"filler{i}" for i in range(count - len(tokens))]
    types += [TokenType.NORMAL] * (count - len(types))
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(count)])
    writer.add_token_types(types)


def add_spm(writer: GGUFWriter, count: int, *, model: str = "llama", byte_tokens: bool = True, adds_bos: bool = True) -> None:
    """SentencePiece BPE (Llama 2, Mistral): all bytes, some pieces; "▁" stands for a space."""
    tokens, types = list(_CONTROLS), [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
    if byte_tokens:
        tokens += [f"<0x{byte:02X}>" for byte in range(256)]
        types += [TokenType.BYTE] * 256
    else:
        tokens += ["\n"]
    _write(writer, model, [*tokens, *_PIECES], [*types, *[TokenType.NORMAL] * (len(_PIECES) + (not byte_tokens))], count)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(adds_bos)
    writer.add_add_space_prefix(value=True)


def add_ugm(writer: GGUFWriter, count: int) -> None:
    """SentencePiece's unigram model (T5)."""
    add_spm(writer, count, model="t5")


def add_plamo2(writer: GGUFWriter, count: int) -> None:
    """PLaMo 2's."""
    add_spm(writer, count, model="plamo2")


def add_wpm(writer: GGUFWriter, count: int) -> None:
    """WordPiece (BERT): words begin with "▁"."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_PIECES]
    types = [TokenType.CONTROL, TokenType.UNKNOWN, *[TokenType.CONTROL] * 3, *[TokenType.NORMAL] * len(_PIECES)]
    _write(writer, "bert", tokens, types, count)
    writer.add_unk_token_id(1)
    writer.add_sep_token_id(3)
    writer.add_bos_token_id(2)


def add_rwkv(writer: GGUFWriter, count: int) -> None:
    """RWKV's: a trie of byte strings."""
    tokens = ["<s>", *(f"\\x{byte:02x}" for byte in range(256)), "hello", " world"]
    _write(writer, "rwkv", tokens, [TokenType.CONTROL, *[TokenType.NORMAL] * (len(tokens) - 1)], count)


KINDS: dict[str, Callable[[GGUFWriter, int], None]] = {
    "spm": add_spm,
    "ugm": add_ugm,
    "wpm": add_wpm,
    "rwkv": add_rwkv,
    "plamo2": add_plamo2,
}

PRE_TOKENIZERS: tuple[tuple[str, ...], ...] = (
    ("gpt-2", "phi-2", "jina-es", "jina-de", "gigachat", "jina-v2-es", "jina-v2-de", "a.x-4.0", "mellum", "modern-bert"),
    ("mpt", "olmo", "jais", "trillion", "granite-docling", "roberta-bpe", "jina-v1-en", "jina-v2-code", "exaone4"),
    ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
    ("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "stablelm2", "megrez", "hunyuan", "solar-open"),
    ("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"),
    ("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"),
    ("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"),
    ("gemma4", "granite-embed-multi-311m"),
    ("dbrx", "smaug-bpe"),
    ("chatglm-bpe", "glm4", "glm5"),
    ("poro-chat", "bloom", "gpt3-finnish"),
    ("tiny_aya", "cohere2moe"),
    ("bailingmoe", "bailingmoe2", "llada-moe"),
    *((name,) for name in ("default", "kimi-k2", "minicpm5", "deepseek-llm", "deepseek-coder", "spark2_5", "youtu", "falcon")),
    *((name,) for name in ("jais-2", "mmbert", "sarvam-moe", "whitespace", "qwen35", "viking", "tekken", "exaone-moe")),
    *((name,) for name in ("chameleon", "granite-embed-multi-97m", "superbpe", "seed-coder", "ufakzeka", "grok-2")),
    *((name,) for name in ("afmoe", "laguna")),
)
"""Every name of `tokenizer.ggml.pre` that libllama knows for byte-level BPE; those of a row have the same patterns."""
