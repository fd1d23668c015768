"""PEFT folders with random factors, and what they change."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tiny_model import Weights

from llamafu.adapters import BaseModel, read_adapter

HIDDEN, KV, WIDE, HEADS, KV_HEADS = 64, 32, 96, 4, 2


SIZES = {  # PEFT's name: (GGUF's name, in, out)
    "self_attn.q_proj": ("attn_q", HIDDEN, HIDDEN),
    "self_attn.k_proj": ("attn_k", HIDDEN, KV),
    "self_attn.v_proj": ("attn_v", HIDDEN, KV),
    "self_attn.o_proj": ("attn_output", HIDDEN, HIDDEN),
    "mlp.gate_proj": ("ffn_gate", HIDDEN, WIDE),
    "mlp.up_proj": ("ffn_up", HIDDEN, WIDE),
    "mlp.down_proj": ("ffn_down", WIDE, HIDDEN),
}


CODES = {"float32": "F32", "float16": "F16", "uint16": "BF16"}


def safetensors_bytes(arrays):
    header, data = {}, b""
    for name, array in arrays.items():
        raw = array.tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": CODES[array.dtype.name], "shape": list(array.shape), "data_offsets": offsets}
        data += raw
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    return len(text).to_bytes(8, "little") + text + data


def arrays_of(ranks=lambda _module: 4, modules=SIZES, layers=2, seed=1):
    """Random factors by PEFT's names; `ranks` gives a module's rank from its full name."""
    stream, arrays = Weights(seed), {}
    for layer in range(layers):
        for module in modules:
            _, n_in, n_out = SIZES[module]
            full = f"model.layers.{layer}.{module}"
            rank = ranks(full)
            arrays[f"base_model.model.{full}.lora_A.weight"] = stream.uniform((rank, n_in), 1.0)
            arrays[f"base_model.model.{full}.lora_B.weight"] = stream.uniform((n_out, rank), 1.0)
    return arrays


def write_folder(folder, arrays, **config):
    folder.mkdir()
    whole = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "some/tiny-model", **config}
    (folder / "adapter_config.json").write_text(json.dumps(whole))
    (folder / "adapter_model.safetensors").write_bytes(safetensors_bytes(arrays))
    return folder


def base_of(architecture="llama"):
    tensors = {f"blk.{layer}.{name}.weight": (n_in, n_out) for layer in range(2) for name, n_in, n_out in SIZES.values()}
    heads = {f"{architecture}.attention.head_count": HEADS, f"{architecture}.attention.head_count_kv": KV_HEADS}
    return BaseModel(Path("base.gguf"), "base", architecture, tensors, heads)


def reordered(matrix, heads):
    """Write row i of each half of a head to row 2 i, or 2 i + 1: by index, not by reshaping as the converter does."""
    size = matrix.shape[0] // heads
    out = np.empty_like(matrix)
    for row in range(matrix.shape[0]):
        head, place = divmod(row, size)
        half, i = divmod(place, size // 2)
        out[head * size + 2 * i + half] = matrix[row]
    return out


def changes(path):
    """Return dW of each base tensor as libllama computes it: alpha / rank * B A."""
    file = read_adapter(path)
    strengths = {tensor.name: tensor.strength for tensor in file.info.tensors}
    return {name: strengths[name] * file.matrix(pair.b).astype("f8") @ file.matrix(pair.a) for name, pair in file.pairs.items()}


def check_changes(path, arrays, strength, *, permuted=True):
    """Compare every dW with PEFT's formula; `strength` gives that of a full module name."""
    found = changes(path)
    assert len(found) == len(arrays) // 2
    for name, delta in found.items():
        _, layer, kind, _ = name.split(".")
        module = next(peft for peft, (gguf, *_) in SIZES.items() if gguf == kind)
        full = f"model.layers.{layer}.{module}"
        a, b = (arrays[f"base_model.model.{full}.lora_{side}.weight"].astype("f8") for side in "AB")
        expected = strength(full) * b @ a
        if permuted and kind in ("attn_q", "attn_k"):
            expected = reordered(expected, HEADS if kind == "attn_q" else KV_HEADS)
        np.testing.assert_allclose(delta, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def with_tensor(name, array):
    return arrays_of() | {f"base_model.model.model.{name}": np.asarray(array, "f4")}


def tiny_factors(size):
    """Factors whose A is of size 1 and whose B are of this size, as adapters are at the beginning of their training."""
    arrays = arrays_of()
    return {key: array * np.float32(size) if "lora_B" in key else array for key, array in arrays.items()}
