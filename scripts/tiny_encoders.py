"""Builds tiny random GGUF models that turn texts into vectors: encoders, which have no memory, and what they differ in.

All are as wide as `tiny_model.TINY`, have F32 weights and two layers, and read 96 tokens at most.
"""

from __future__ import annotations

import string
from typing import TYPE_CHECKING

from gguf import GGUFWriter, LlamaFileType, PoolingType, TokenType
from tiny_model import TINY, Weights, add_vocabulary, finish

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

LONGEST = 96
BUCKETS = 8  # of T5's relative positions
PAD, UNK, CLS, SEP, MASK = range(5)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# In WordPiece as GGUF has it: what begins a word is marked, what goes on with it is not.
_SIGNS = tuple(string.ascii_lowercase + string.digits)
WORDS = (
    *SPECIAL,
    *(f"▁{sign}" for sign in (*_SIGNS, *string.punctuation)),
    *_SIGNS,
    *("▁the", "▁ship", "▁sea", "▁on", "▁tax", "▁law", "▁boat", "▁water", "ing", "er", "ed"),
)


def write_bert(path: Path, *, seed: int, pooling: PoolingType | None = PoolingType.MEAN, name: str = "tiny-bert") -> None:
    """Write a BERT model: learned positions, biases, norms after each half of a layer, GELU; `pooling` None says nothing.

    With `PoolingType.RANK` it has a head of one score, and puts pairs as `[CLS] query [SEP] document [SEP]`.
    """
    writer, weights = _writer(path, "bert", name, pooling), Weights(seed)
    _add_words(writer)
    wide = TINY.n_embd
    tensors = _begin(weights) | {"position_embd.weight": weights.linear((LONGEST, wide), 1.0)}
    for layer in range(TINY.n_layer):
        prefix = f"blk.{layer}."
        for module in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensors |= _linear(weights, f"{prefix}{module}", (wide, wide))
        tensors |= _norm(weights, f"{prefix}attn_output_norm") | _norm(weights, f"{prefix}layer_output_norm")
        for module in ("ffn_up", "ffn_down"):
            tensors |= _linear(weights, f"{prefix}{module}", TINY.linear(module))
    if pooling == PoolingType.RANK:
        writer.add_eos_token_id(SEP)
        writer.add_add_eos_token(value=True)
        writer.add_add_sep_token(value=False)
        tensors |= _linear(weights, "cls", (wide, wide)) | _linear(weights, "cls.output", (1, wide))
    _write(writer, tensors)


def write_nomic(path: Path, *, seed: int, pooling: PoolingType = PoolingType.MEAN) -> None:
    """Write a Nomic BERT model: rotated positions, q, k and v in one matrix, no biases, SwiGLU."""
    writer, weights = _writer(path, "nomic-bert", "tiny-nomic", pooling), Weights(seed)
    writer.add_rope_freq_base(1000.0)
    _add_words(writer)
    wide = TINY.n_embd
    tensors = _begin(weights)
    for layer in range(TINY.n_layer):
        prefix = f"blk.{layer}."
        tensors[f"{prefix}attn_qkv.weight"] = weights.linear((3 * wide, wide))
        tensors[f"{prefix}attn_output.weight"] = weights.linear((wide, wide))
        tensors |= _norm(weights, f"{prefix}attn_output_norm") | _norm(weights, f"{prefix}layer_output_norm")
        for module in ("ffn_gate", "ffn_up", "ffn_down"):
            tensors[f"{prefix}{module}.weight"] = weights.linear(TINY.linear(module))
    _write(writer, tensors)


def write_t5(path: Path, *, seed: int, decodes: bool) -> None:
    """Write a T5 model's encoder; `decodes` adds a decoder (as T5 has one, and the encoder of Sentence-T5 none)."""
    arch = "t5" if decodes else "t5encoder"
    writer, weights = (
        _writer(path, arch, f"tiny-{arch}", None if decodes else PoolingType.MEAN, norm_epsilon=None),
        Weights(seed),
    )
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_relative_attn_buckets_count(BUCKETS)
    writer.add_key_length(TINY.head_dim)
    writer.add_value_length(TINY.head_dim)
    add_vocabulary(writer, TINY.merges)
    if decodes:
        writer.add_decoder_start_token_id(0)
        writer.add_decoder_block_count(TINY.n_layer)
    wide, tensors = TINY.n_embd, {"token_embd.weight": weights.linear((TINY.n_vocab, TINY.n_embd), 2.0)}
    for side in ("enc", "dec") if decodes else ("enc",):
        tensors[f"{side}.output_norm.weight"] = weights.norm(wide)
        for layer in range(TINY.n_layer):
            prefix = f"{side}.blk.{layer}."
            attentions = ("attn", "cross_attn") if side == "dec" else ("attn",)
            for attention in attentions:
                tensors[f"{prefix}{attention}_norm.weight"] = weights.norm(wide)
                for part in "qkvo":
                    tensors[f"{prefix}{attention}_{part}.weight"] = weights.linear((wide, wide))
            if not layer:
                tensors[f"{prefix}attn_rel_b.weight"] = weights.uniform((BUCKETS, TINY.n_head), 0.5)
            tensors[f"{prefix}ffn_norm.weight"] = weights.norm(wide)
            for module in ("ffn_up", "ffn_down"):
                tensors[f"{prefix}{module}.weight"] = weights.linear(TINY.linear(module))
    _write(writer, tensors)


def _writer(path: Path, arch: str, name: str, pooling: PoolingType | None, norm_epsilon: float | None = 1e-12) -> GGUFWriter:
    writer = GGUFWriter(path, arch)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_context_length(LONGEST)
    writer.add_embedding_length(TINY.n_embd)
    writer.add_block_count(TINY.n_layer)
    writer.add_feed_forward_length(TINY.n_ff)
    writer.add_head_count(TINY.n_head)
    writer.add_causal_attention(value=False)
    if norm_epsilon is not None:
        writer.add_layer_norm_eps(norm_epsilon)
    if pooling is not None:
        writer.add_pooling_type(pooling)
    writer.add_file_type(LlamaFileType.ALL_F32)
    return writer


def _add_words(writer: GGUFWriter) -> None:
    """Write a WordPiece vocabulary."""
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(WORDS)
    writer.add_token_types([TokenType.CONTROL] * len(SPECIAL) + [TokenType.NORMAL] * (len(WORDS) - len(SPECIAL)))
    writer.add_token_type_count(2)
    writer.add_pad_token_id(PAD)
    writer.add_unk_token_id(UNK)
    writer.add_bos_token_id(CLS)
    writer.add_sep_token_id(SEP)
    writer.add_mask_token_id(MASK)


def _begin(weights: Weights) -> dict[str, np.ndarray]:
    return {
        "token_embd.weight": weights.linear((len(WORDS), TINY.n_embd), 4.0),
        "token_types.weight": weights.linear((2, TINY.n_embd), 1.0),
        **_norm(weights, "token_embd_norm"),
    }


def _norm(weights: Weights, name: str) -> dict[str, np.ndarray]:
    return {f"{name}.weight": weights.norm(TINY.n_embd), f"{name}.bias": weights.uniform((TINY.n_embd,), 0.2)}


def _linear(weights: Weights, name: str, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    return {f"{name}.weight": weights.linear(shape), f"{name}.bias": weights.uniform(shape[:1], 0.2)}


def _write(writer: GGUFWriter, tensors: dict[str, np.ndarray]) -> None:
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    finish(writer)
