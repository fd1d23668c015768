"""Adapters that change a vision tower or a projector too, as PEFT trains them: what an adapter of the language model is not."""

from __future__ import annotations

import numpy as np
from gguf import GGUFWriter
from tiny_model import TINY, Weights, finish

from helpers.peft_folders import arrays_of, write_folder

TOWER_SIZES = {  # by GGUF's names: rows, columns of the tiny projectors
    "v.blk.0.attn_q.weight": (32, 32),
    "v.blk.0.ffn_down.weight": (32, 48),
    "mm.0.weight": (64, 32),
}
PEFT_TOWERS = {  # by the family that names them so: PEFT's module names and their sizes
    "llava": {
        "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj": (32, 32),
        "vision_tower.vision_model.encoder.layers.0.mlp.fc2": (32, 48),
        "multi_modal_projector.linear_1": (64, 32),
    },
    "qwen2vl": {
        "visual.blocks.0.attn.qkv": (96, 32),
        "visual.blocks.0.mlp.fc1": (48, 32),
        "visual.merger.mlp.0": (128, 128),
    },
}


def write_tower_adapter(path, *, arch="llama", language=True, seed=60):
    """Write a GGUF adapter with factors of the tower and the projector, and of attn_q unless `language` is False."""
    weights, rank = Weights(seed), 4
    writer = GGUFWriter(path, arch)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_name(path.stem)
    writer.add_float32("adapter.lora.alpha", 8.0)
    of_language = {f"blk.{layer}.attn_q.weight": TINY.linear("attn_q") for layer in range(TINY.n_layer)}
    for name, (rows, columns) in ((of_language if language else {}) | TOWER_SIZES).items():
        writer.add_tensor(f"{name}.lora_a", weights.linear((rank, columns)))
        writer.add_tensor(f"{name}.lora_b", weights.uniform((rows, rank), 0.1))
    finish(writer)
    return path


def write_tower_folder(folder, *, family="llava", language=True, seed=61):
    """Write a PEFT folder with factors of the tower and the projector, and of all projections unless `language` is False."""
    weights, rank, arrays = Weights(seed), 4, arrays_of() if language else {}
    for module, (rows, columns) in PEFT_TOWERS[family].items():
        arrays[f"base_model.model.{module}.lora_A.weight"] = weights.uniform((rank, columns), 1.0)
        arrays[f"base_model.model.{module}.lora_B.weight"] = np.float32(0.1) * weights.uniform((rows, rank), 1.0)
    return write_folder(folder, arrays, target_modules="all-linear")
