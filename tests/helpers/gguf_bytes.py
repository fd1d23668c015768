"""GGUF files built byte by byte, so that a test can put exactly one thing wrong."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

U8, I32, U32, F32, BOOL, STRING, ARRAY, U64, F64 = 0, 5, 4, 6, 7, 8, 9, 10, 12
_FORMATS = {U8: "B", 1: "b", I32: "i", U32: "I", F32: "f", BOOL: "B", U64: "Q", F64: "d"}
GGML_F32, GGML_F16, GGML_BF16, GGML_Q8_0 = 0, 1, 30, 8
_WIDTHS = {GGML_F32: 4, GGML_F16: 2, GGML_BF16: 2, 24: 1, 25: 2, 26: 4, 27: 8, 28: 8}


@dataclass(frozen=True)
class Tensor:
    """One tensor; `shape` is in GGUF's order, `offset` (None: where it belongs) is relative to the data section."""

    name: str | bytes
    shape: tuple[int, ...]
    type: int = GGML_F32
    data: bytes | None = None
    offset: int | None = None


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def typed(kind: int, value: object) -> bytes:
    """One metadata value with its type in front; for an array, `value` is (element type, values)."""
    head = struct.pack("<I", kind)
    if kind == ARRAY:
        element, values = value
        body = b"".join(typed(element, item)[4:] for item in values)
        return head + struct.pack("<IQ", element, len(values)) + body
    return head + (text(value) if kind == STRING else struct.pack("<" + _FORMATS[kind], value))


def gguf_bytes(
    metadata: list[tuple[str | bytes, bytes]],
    tensors: list[Tensor],
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    tensor_count: int | None = None,
    key_count: int | None = None,
    alignment: int = 32,
    tail: bytes = b"",
) -> bytes:
    """Build a whole file; metadata values come from `typed`."""
    out = magic + struct.pack(
        "<IQQ",
        version,
        len(tensors) if tensor_count is None else tensor_count,
        len(metadata) if key_count is None else key_count,
    )
    out += b"".join(text(key) + value for key, value in metadata)
    body = b""
    for tensor in tensors:
        data = tensor.data
        if data is None:
            data = bytes(int(np.prod(tensor.shape)) * _WIDTHS.get(tensor.type, 4))
        offset = len(body) if tensor.offset is None else tensor.offset
        dims = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        out += text(tensor.name) + dims + struct.pack("<IQ", tensor.type & 0xFFFFFFFF, offset)
        body += data + bytes(-len(data) % alignment)
    return out + bytes(-len(out) % alignment) * bool(tensors) + body + tail


def floats(*shape: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).standard_normal(shape).astype("<f4").tobytes()


ADAPTER_METADATA = {
    "general.type": typed(STRING, "adapter"),
    "general.architecture": typed(STRING, "llama"),
    "adapter.type": typed(STRING, "lora"),
    "adapter.lora.alpha": typed(F32, 16.0),
}


def pair(target: str, width: int, height: int, rank: int, *, seed: int = 0) -> list[Tensor]:
    """Make the factors of one `height` x `width` matrix."""
    return [
        Tensor(f"{target}.lora_a", (width, rank), data=floats(rank, width, seed=seed)),
        Tensor(f"{target}.lora_b", (rank, height), data=floats(height, rank, seed=seed + 1)),
    ]


def experts(width: int, height: int, rank: int, number: int, *, module: str = "ffn_up_exps") -> list[Tensor]:
    """Make the factors of a stack of `number` experts, all zeros."""
    return [
        Tensor(f"blk.0.{module}.weight.lora_a", (width, rank, number)),
        Tensor(f"blk.0.{module}.weight.lora_b", (rank, height, number)),
    ]


def writer(folder: Path, default: str) -> Callable[..., Path]:
    """Make a function that writes bytes into `folder`, as `default` or another name, and returns the path."""

    def write(data: bytes, name: str = default) -> Path:
        path = folder / name
        path.write_bytes(data)
        return path

    return write


def adapter_tensors() -> list[Tensor]:
    """Two layers of a model 8 wide: rank 4 on attn_q, and on layer 1 rank 2 on ffn_down (16 to 8)."""
    return [
        *pair("blk.0.attn_q.weight", 8, 8, 4),
        *pair("blk.1.attn_q.weight", 8, 8, 4, seed=2),
        *pair("blk.1.ffn_down.weight", 16, 8, 2, seed=4),
    ]


def adapter_bytes(changes: dict[str, bytes | None] | None = None, tensors: list[Tensor] | None = None, **layout) -> bytes:
    """Build a sound adapter, or one with some metadata replaced (None: left out) or other tensors."""
    metadata = {**ADAPTER_METADATA, **(changes or {})}
    entries = [(key, value) for key, value in metadata.items() if value is not None]
    return gguf_bytes(entries, adapter_tensors() if tensors is None else tensors, **layout)


def base_bytes(
    tensors: dict[str, tuple[int, ...]] | None = None,
    changes: dict[str, bytes | None] | None = None,
    vocabulary: int = 32,
) -> bytes:
    """Build the header of a base model that `adapter_bytes()` fits; its tensors are empty claims, as only headers are read."""
    shapes = BASE_SHAPES if tensors is None else tensors
    metadata = {
        "general.architecture": typed(STRING, "llama"),
        "general.name": typed(STRING, "Tiny"),
        "llama.block_count": typed(U32, 2),
        "tokenizer.ggml.tokens": typed(ARRAY, (STRING, [f"token{i}" for i in range(vocabulary)])),
        "tokenizer.ggml.scores": typed(ARRAY, (F32, [0.0] * vocabulary)),
        **(changes or {}),
    }
    entries = [(key, value) for key, value in metadata.items() if value is not None]
    return gguf_bytes(entries, [Tensor(name, shape, data=b"") for name, shape in shapes.items()])


BASE_SHAPES = {
    "token_embd.weight": (8, 32),
    "output.weight": (8, 32),
    **{
        f"blk.{layer}.{module}.weight": shape
        for layer in range(2)
        for module, shape in {
            "attn_norm": (8,),
            "attn_q": (8, 8),
            "attn_k": (8, 4),
            "ffn_up": (8, 16),
            "ffn_down": (16, 8),
            "ffn_up_exps": (8, 16, 3),
        }.items()
    },
}


def replaced(tensors: list[Tensor], index: int, **fields) -> list[Tensor]:
    """Return the same tensors with some fields of one of them changed."""
    return [*tensors[:index], replace(tensors[index], **fields), *tensors[index + 1 :]]
