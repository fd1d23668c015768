"""Builds tiny random Hugging Face models and their GGUF files, for the comparisons with torch.

The GGUF file is written from the model's own tensors: what llama.cpp's converter does to them is done here again, by
index and not by reshaping, so that a mistake in one is not repeated in the other. Needs torch and transformers.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import torch
from tiny_model import MERGES, TINY, add_vocabulary
from transformers import AutoConfig, AutoModelForCausalLM

if TYPE_CHECKING:
    from pathlib import Path

HIDDEN, WIDE, HEADS, KV_HEADS, HEAD, EXPERTS = 64, 96, 4, 2, 16, 4
_COMMON = {
    "vocab_size": TINY.n_vocab,
    "hidden_size": HIDDEN,
    "intermediate_size": WIDE,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "tie_word_embeddings": False,
}
_GEMMA = {"head_dim": HEAD, "query_pre_attn_scalar": HEAD, "sliding_window": 128, "tie_word_embeddings": True}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": True}),
    "mistral": ("llama", {"sliding_window": None}),
    "mixtral": ("llama", {"num_local_experts": EXPERTS, "num_experts_per_tok": 2, "sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": HEAD}),
    "qwen3_moe": (
        "qwen3moe",
        {
            "head_dim": HEAD,
            "num_experts": EXPERTS,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": WIDE,
            "norm_topk_prob": True,
        },
    ),
    "gemma2": ("gemma2", _GEMMA),
    "gemma3_text": ("gemma3", {**_GEMMA, "num_hidden_layers": 6}),  # the sixth layer is the first that sees everything
    "phi3": ("phi3", {"sliding_window": None}),
    "granite": (
        "granite",
        {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.7, "attention_multiplier": 0.2},
    ),
}
"""GGUF's architecture and the settings of its own, by transformers' model type."""


def make_model(kind: str, *, seed: int = 1) -> torch.nn.Module:
    """Build a model of `kind`, one of MODELS; its activations are of the order of one, unlike those of a fresh model."""
    config = AutoConfig.for_model(kind, **(_COMMON | MODELS[kind][1]))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    stream = torch.Generator().manual_seed(seed)
    gemma = kind.startswith("gemma")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            random = torch.randn(parameter.shape, generator=stream)
            if "post_feedforward" in name:
                # ggml looks GELU up in a table of F16 values: what comes from there is kept small beside the tolerance.
                parameter.copy_(0.04 * random - 0.8)
            elif "norm" in name:
                parameter.copy_(0.2 * random + (0 if gemma else 1))
            elif name.endswith(".bias"):
                parameter.copy_(0.2 * random)
            elif "embed_tokens" in name:
                parameter.copy_(random / HIDDEN**0.5 if config.tie_word_embeddings else random)
            else:
                parameter.copy_(random / parameter.shape[-1] ** 0.5)
    return model


def write_gguf(model: torch.nn.Module, path: Path, *, fused: bool = False) -> None:
    """Write the F32 GGUF file of a model that `make_model` made, with q, k and v in one tensor when `fused`."""
    config = model.config
    kind = config.model_type
    architecture = MODELS[kind][0]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("model")
    writer.add_name("tiny")  # libllama looks for tokens of Phi-3 where the name says phi3
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _add_sizes(writer, config)
    add_vocabulary(writer, MERGES)
    known = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(known, config.num_hidden_layers)
    tensors: dict[str, np.ndarray] = {}
    for name, tensor in model.state_dict().items():
        if config.tie_word_embeddings and name == "lm_head.weight":
            continue
        for module, values in _split(name, tensor.numpy()):
            stem, _, suffix = module.rpartition(".")
            target = names.get_name(stem)
            tensors[f"{target}.{suffix}"] = np.ascontiguousarray(_changed(kind, target, values))
    for name, values in (_fused(tensors, config.num_hidden_layers) if fused else tensors).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _fused(tensors: dict[str, np.ndarray], layers: int) -> dict[str, np.ndarray]:
    rest = dict(tensors)
    for layer, suffix in product(range(layers), ("weight", "bias")):
        found = [rest.pop(name) for part in "qkv" if (name := f"blk.{layer}.attn_{part}.{suffix}") in rest]
        if found:
            rest[f"blk.{layer}.attn_qkv.{suffix}"] = np.concatenate(found)
    return rest


def _add_sizes(writer: gguf.GGUFWriter, config: Any) -> None:
    kind = config.model_type
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if kind in ("mixtral", "qwen3_moe"):
        writer.add_expert_count(EXPERTS)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(WIDE)
    if kind.startswith("gemma"):
        writer.add_sliding_window(config.sliding_window)
    if kind == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if kind == "phi3":
        writer.add_sliding_window(0)
        writer.add_rope_scaling_orig_ctx_len(config.max_position_embeddings)
    if kind == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)


def _split(name: str, values: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Take the parameter of all experts' gates and ups apart; every other tensor stays as it is."""
    if name.endswith(".experts.gate_up_proj"):
        stem = name.removesuffix("gate_up_proj")
        return [(f"{stem}gate_proj.weight", values[:, :WIDE]), (f"{stem}up_proj.weight", values[:, WIDE:])]
    return [(f"{name}.weight" if name.endswith(".experts.down_proj") else name, values)]


def _changed(kind: str, target: str, values: np.ndarray) -> np.ndarray:
    """Bring a tensor into the form that llama.cpp's graph of this architecture wants."""
    if kind.startswith("gemma") and "norm" in target:
        return values + np.float32(1)
    heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(target.rpartition(".")[2])
    if heads is None or MODELS[kind][0] not in ("llama", "granite"):
        return values
    changed = np.empty_like(values)
    for row in range(values.shape[0]):
        head, place = divmod(row, HEAD)
        half, i = divmod(place, HEAD // 2)
        changed[head * HEAD + 2 * i + half] = values[row]
    return changed
