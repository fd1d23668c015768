"""The architecture and tensor sizes of a base model from its `config.json`, as the GGUF model made of it would have them."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from llamafu.adapters.gguf.base_model import BaseModel, ModelFileNotFoundError, read_base
from llamafu.adapters.peft.safetensors import unique
from llamafu.errors import ErrorCode, ModelLoadError
from llamafu.hub.local import local_model

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from llamafu.adapters.gguf.container import Scalar

CONFIG = "config.json"
_LARGEST = 10_000_000  # bytes of a config.json
_MOST = 1 << 24  # of any number in it, far above any model's
_MOST_LAYERS = 1 << 12


class _ModelType(NamedTuple):
    """One of transformers' model types: its GGUF architecture, and the defaults of fields that its config may leave out."""

    architecture: str
    """GGUF's name."""
    tied: bool = False
    """Whether the output matrix is the token embedding unless the config says otherwise."""
    head: int | None = None
    """Size of a head unless the config has it; None for hidden_size / num_attention_heads."""
    fused: bool = False
    """Whether q, k and v are one matrix, and gate and up another."""
    experts: str = ""
    """The field with the width of an expert; empty for models without experts."""


MODEL_TYPES = {
    "llama": _ModelType("llama"),
    "mistral": _ModelType("llama"),
    "mixtral": _ModelType("llama", experts="intermediate_size"),
    "qwen2": _ModelType("qwen2"),
    "qwen3": _ModelType("qwen3", head=128),
    "qwen3_moe": _ModelType("qwen3moe", experts="moe_intermediate_size"),
    "gemma2": _ModelType("gemma2", tied=True, head=256),
    "gemma3_text": _ModelType("gemma3", tied=True, head=256),
    "phi3": _ModelType("phi3", fused=True),
    "granite": _ModelType("granite"),
}
"""What can be read, by transformers' `model_type`."""


class _MultimodalType(NamedTuple):
    """A model type that has the decoder's configuration in a field of its own, `text_config`."""

    decoder: str
    """The decoder's type."""
    defaults: Mapping[str, int]
    """Fields of the decoder's configuration that are left out where they are transformers' defaults."""


MULTIMODAL_TYPES = {
    "gemma3": _MultimodalType(
        "gemma3_text", {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262_208}
    )
}
"""Multimodal models that can be read, by transformers' `model_type`."""


def read_any_base(path: str | os.PathLike[str]) -> BaseModel:
    """Read the header of a GGUF model, or for a folder or a file that ends in .json, a `config.json` in place of one.

    Raises:
        ModelFileNotFoundError: the file is missing (a ModelLoadError and a FileNotFoundError).
        ModelLoadError: it cannot be read, is damaged, no base model, or of a type not known here.

    """
    path = local_model(path)
    if path.is_dir():
        path /= CONFIG
    return _read_config(path) if path.suffix == ".json" else read_base(path)


def _read_config(path: Path) -> BaseModel:
    try:
        config = json.loads(_text(path), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        message = f"{path}: no sound JSON: {error}"
        raise ModelLoadError(message) from error
    kind, inner = _decoder(config) if isinstance(config, dict) else (None, {})
    if kind is None:
        found = f"its model_type is {str(config.get('model_type'))[:80]!r}" if isinstance(config, dict) else "no JSON object"
        message = f"{path}: {found}; known are {', '.join(MODEL_TYPES)}. Give the GGUF model instead"
        raise ModelLoadError(message)
    try:
        return _base_model(path, kind, inner)
    except ValueError as error:
        message = f"{path}: {error}"
        raise ModelLoadError(message) from None


def _decoder(config: dict[str, Any]) -> tuple[_ModelType | None, Mapping[str, Any]]:
    """Return the type of the model's decoder, None where it is not known, and the decoder's configuration."""
    inner = config.get("text_config")
    if str(config.get("model_type")) in MULTIMODAL_TYPES and isinstance(inner, dict):
        kind = MULTIMODAL_TYPES[str(config["model_type"])]
        return MODEL_TYPES[kind.decoder], {**kind.defaults, "_name_or_path": config.get("_name_or_path"), **inner}
    return MODEL_TYPES.get(str(config.get("model_type"))), config


def _text(path: Path) -> str:
    try:
        if not path.is_file():
            problem = "is no file" if os.path.lexists(path) else "is not there"
            message = f"{path} {problem}; give a GGUF model, or the {CONFIG} of a Hugging Face model or the folder that has it"
            raise ModelFileNotFoundError(message)
        if path.stat().st_size > _LARGEST:
            message = f"{path} has {path.stat().st_size} bytes; at most {_LARGEST} are read"
            raise ModelLoadError(message)
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        if isinstance(error, ModelFileNotFoundError):
            raise
        message = f"{path}: it cannot be read: {error.strerror}"
        raise ModelLoadError(message, code=ErrorCode.FILE_READ_FAILED) from error


def _base_model(path: Path, kind: _ModelType, config: Mapping[str, Any]) -> BaseModel:
    """Compute the shapes of all tensors; raises ValueError naming a field that is missing or no sound number."""
    hidden = _size(config, "hidden_size")
    heads = _size(config, "num_attention_heads")
    kv_heads = _size(config, "num_key_value_heads", heads)
    head = _size(config, "head_dim", kind.head or hidden // heads or 1)
    if config.get("head_dim") is None and kind.head is None and hidden % heads:
        message = f"num_attention_heads is {heads}, which does not divide hidden_size, {hidden}, and there is no head_dim"
        raise ValueError(message)
    vocabulary = _size(config, "vocab_size")
    layers = _size(config, "num_hidden_layers")
    if layers > _MOST_LAYERS:
        message = f"num_hidden_layers is {layers}; at most {_MOST_LAYERS} are read"
        raise ValueError(message)
    tied = config.get("tie_word_embeddings", kind.tied)
    if not isinstance(tied, bool):
        message = f"tie_word_embeddings is {tied!r:.80}; it must be true or false"
        raise ValueError(message)  # noqa: TRY004 - a wrong file, not a wrong call
    tensors: dict[str, tuple[int, ...]] = {"token_embd.weight": (hidden, vocabulary)}
    if not tied:
        tensors["output.weight"] = (hidden, vocabulary)
    for layer in range(layers):
        shapes = _attention(kind, hidden, heads * head, kv_heads * head) | _feed_forward(kind, config, hidden, layer)
        tensors |= {f"blk.{layer}.{module}.weight": shape for module, shape in shapes.items()}
    prefix = kind.architecture
    metadata: dict[str, Scalar] = {
        "general.architecture": prefix,
        f"{prefix}.block_count": layers,
        f"{prefix}.embedding_length": hidden,
        f"{prefix}.attention.head_count": heads,
        f"{prefix}.attention.head_count_kv": kv_heads,
    }
    if kind.experts:
        metadata[f"{prefix}.expert_count"] = _experts(config)
    name = config.get("_name_or_path")
    return BaseModel(path, name if isinstance(name, str) and name else path.name, prefix, tensors, metadata)


def _attention(kind: _ModelType, hidden: int, q: int, kv: int) -> dict[str, tuple[int, ...]]:
    projections = {"attn_qkv": q + 2 * kv} if kind.fused else {"attn_q": q, "attn_k": kv, "attn_v": kv}
    return {"attn_output": (q, hidden), **{name: (hidden, size) for name, size in projections.items()}}


def _feed_forward(kind: _ModelType, config: Mapping[str, Any], hidden: int, layer: int) -> dict[str, tuple[int, ...]]:
    if kind.experts and _is_sparse(config, layer):
        wide, count = _size(config, kind.experts), _experts(config)
        up = (hidden, wide, count)
        return {"ffn_gate_inp": (hidden, count), "ffn_gate_exps": up, "ffn_up_exps": up, "ffn_down_exps": (wide, hidden, count)}
    wide = _size(config, "intermediate_size")
    if kind.fused:
        return {"ffn_up": (hidden, 2 * wide), "ffn_down": (wide, hidden)}
    return {"ffn_gate": (hidden, wide), "ffn_up": (hidden, wide), "ffn_down": (wide, hidden)}


def _is_sparse(config: Mapping[str, Any], layer: int) -> bool:
    """Whether this layer has experts; a qwen3_moe model may have layers without."""
    dense = config.get("mlp_only_layers") or []
    if not isinstance(dense, list):
        message = f"mlp_only_layers is {str(dense)[:80]!r}; it must be a list of layers"
        raise ValueError(message)  # noqa: TRY004 - a wrong file, not a wrong call
    return layer not in dense and (layer + 1) % _size(config, "decoder_sparse_step", 1) == 0


def _experts(config: Mapping[str, Any]) -> int:
    return _size(config, "num_local_experts" if "num_local_experts" in config else "num_experts")


def _size(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None and default is not None:
        return default
    if type(value) is not int or not 0 < value <= _MOST:
        message = f"{key} is {str(value)[:80]!r}; it must be a whole number from 1 to {_MOST}"
        raise ValueError(message)
    return value
