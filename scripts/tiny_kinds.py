"""Builds tiny random GGUF models of the kinds that adapters meet beside plain transformers: experts, hybrids, recurrent ones.

All have the vocabulary and the width of `tiny_model.TINY`, and F32 weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from gguf import GGUFWriter, LlamaFileType
from tiny_model import TINY, Weights, add_vocabulary, finish

if TYPE_CHECKING:
    from pathlib import Path

EXPERTS, EXPERTS_USED = 4, 2
KERNEL = 3  # of the short convolution
POSITIONS = 40
STATE, STEP_RANK, SSM_KERNEL = 8, 4, 4


def write_moe(path: Path, *, seed: int) -> None:
    """Write a llama model of two layers whose feed-forward is four experts, two of which each token uses (as Mixtral)."""
    writer, weights = _writer(path, "llama", "tiny-moe"), Weights(seed)
    _add_attention(writer, TINY.n_head_kv)
    writer.add_rope_dimension_count(TINY.head_dim)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(EXPERTS_USED)
    tensors = _ends(weights, norm="output_norm.weight")
    for layer in range(TINY.n_layer):
        prefix = f"blk.{layer}."
        tensors |= _attention(weights, prefix)
        tensors[f"{prefix}ffn_gate_inp.weight"] = weights.linear((EXPERTS, TINY.n_embd))
        for module in ("ffn_gate", "ffn_up", "ffn_down"):
            stack = [weights.linear(TINY.linear(module)) for _ in range(EXPERTS)]
            tensors[f"{prefix}{module}_exps.weight"] = np.stack(stack)
    _write(writer, tensors)


def write_hybrid(path: Path, *, seed: int) -> None:
    """Write an LFM2 model: a layer with a gated short convolution, one with attention, one with a convolution."""
    heads_kv = [0, TINY.n_head_kv, 0]  # 0 makes a layer a convolution
    writer, weights = _writer(path, "lfm2", "tiny-hybrid"), Weights(seed)
    _add_attention(writer, heads_kv)
    writer.add_shortconv_l_cache(KERNEL)
    tensors = _ends(weights, norm="token_embd_norm.weight")
    for layer, heads in enumerate(heads_kv):
        prefix = f"blk.{layer}."
        if heads:
            tensors |= _attention(weights, prefix)
            tensors[f"{prefix}attn_q_norm.weight"] = weights.norm(TINY.head_dim)
            tensors[f"{prefix}attn_k_norm.weight"] = weights.norm(TINY.head_dim)
        else:
            tensors[f"{prefix}attn_norm.weight"] = weights.norm(TINY.n_embd)
            tensors[f"{prefix}ffn_norm.weight"] = weights.norm(TINY.n_embd)
            tensors[f"{prefix}shortconv.conv.weight"] = weights.linear((TINY.n_embd, KERNEL))
            tensors[f"{prefix}shortconv.in_proj.weight"] = weights.linear((3 * TINY.n_embd, TINY.n_embd))
            tensors[f"{prefix}shortconv.out_proj.weight"] = weights.linear((TINY.n_embd, TINY.n_embd))
        for module in ("ffn_gate", "ffn_up", "ffn_down"):
            tensors[f"{prefix}{module}.weight"] = weights.linear(TINY.linear(module))
    _write(writer, tensors, layers=len(heads_kv))


def write_recurrent(path: Path, *, seed: int) -> None:
    """Write a Mamba model of two layers: no attention, a state of fixed size."""
    writer, weights = _writer(path, "mamba", "tiny-recurrent"), Weights(seed)
    inner = 2 * TINY.n_embd
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_ssm_conv_kernel(SSM_KERNEL)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(STATE)
    writer.add_ssm_time_step_rank(STEP_RANK)
    tensors = _ends(weights, norm="output_norm.weight")
    for layer in range(TINY.n_layer):
        prefix = f"blk.{layer}."
        tensors[f"{prefix}attn_norm.weight"] = weights.norm(TINY.n_embd)
        tensors[f"{prefix}ssm_in.weight"] = weights.linear((2 * inner, TINY.n_embd))
        tensors[f"{prefix}ssm_conv1d.weight"] = weights.linear((inner, SSM_KERNEL))
        tensors[f"{prefix}ssm_conv1d.bias"] = weights.uniform((inner,), 0.2)
        tensors[f"{prefix}ssm_x.weight"] = weights.linear((STEP_RANK + 2 * STATE, inner))
        tensors[f"{prefix}ssm_dt.weight"] = weights.linear((inner, STEP_RANK))
        tensors[f"{prefix}ssm_dt.bias"] = weights.uniform((inner,), 0.2)
        tensors[f"{prefix}ssm_a"] = -weights.norm(inner * STATE).reshape(inner, STATE)  # negative: the state fades
        tensors[f"{prefix}ssm_d"] = weights.norm(inner)
        tensors[f"{prefix}ssm_out.weight"] = weights.linear((TINY.n_embd, inner))
    _write(writer, tensors)


def write_positions(path: Path, *, seed: int) -> None:
    """Write a GPT-2 model of two layers: positions are learned, and there are `POSITIONS` of them."""
    writer, weights = GGUFWriter(path, "gpt2"), Weights(seed)
    _add_facts(writer, "tiny-positions", POSITIONS)
    writer.add_layer_norm_eps(1e-5)
    writer.add_feed_forward_length(TINY.n_ff)
    writer.add_head_count(TINY.n_head)
    wide = TINY.n_embd
    tensors = _ends(weights, norm="output_norm.weight") | {"position_embd.weight": weights.linear((POSITIONS, wide))}
    tensors["output_norm.bias"] = weights.uniform((wide,), 0.1)
    for layer in range(TINY.n_layer):
        prefix = f"blk.{layer}."
        for norm in ("attn_norm", "ffn_norm"):
            tensors[f"{prefix}{norm}.weight"] = weights.norm(wide)
            tensors[f"{prefix}{norm}.bias"] = weights.uniform((wide,), 0.1)
        shapes = {"attn_qkv": (3 * wide, wide), "attn_output": (wide, wide)}
        for module in ("ffn_up", "ffn_down"):
            shapes[module] = TINY.linear(module)
        for module, shape in shapes.items():
            tensors[f"{prefix}{module}.weight"] = weights.linear(shape)
            tensors[f"{prefix}{module}.bias"] = weights.uniform(shape[:1], 0.1)
    _write(writer, tensors)


def _writer(path: Path, arch: str, name: str) -> GGUFWriter:
    writer = GGUFWriter(path, arch)
    _add_facts(writer, name, 512)
    writer.add_layer_norm_rms_eps(1e-5)
    return writer


def _add_facts(writer: GGUFWriter, name: str, context_length: int) -> None:
    writer.add_type("model")
    writer.add_name(name)
    writer.add_context_length(context_length)
    writer.add_embedding_length(TINY.n_embd)
    writer.add_vocab_size(TINY.n_vocab)
    writer.add_file_type(LlamaFileType.ALL_F32)
    add_vocabulary(writer, TINY.merges)


def _add_attention(writer: GGUFWriter, heads_kv: int | list[int]) -> None:
    writer.add_feed_forward_length(TINY.n_ff)
    writer.add_head_count(TINY.n_head)
    writer.add_head_count_kv(heads_kv)
    writer.add_rope_freq_base(10000.0)


def _ends(weights: Weights, *, norm: str) -> dict[str, np.ndarray]:
    return {
        "token_embd.weight": weights.linear((TINY.n_vocab, TINY.n_embd), 2.0),
        norm: weights.norm(TINY.n_embd),
        "output.weight": weights.linear((TINY.n_vocab, TINY.n_embd), 2.0),
    }


def _attention(weights: Weights, prefix: str) -> dict[str, np.ndarray]:
    tensors = {f"{prefix}{name}.weight": weights.norm(TINY.n_embd) for name in ("attn_norm", "ffn_norm")}
    for module in ("attn_q", "attn_k", "attn_v", "attn_output"):
        tensors[f"{prefix}{module}.weight"] = weights.linear(TINY.linear(module))
    return tensors


def _write(writer: GGUFWriter, tensors: dict[str, np.ndarray], layers: int = TINY.n_layer) -> None:
    writer.add_block_count(layers)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    finish(writer)
