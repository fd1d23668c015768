"""A projector with random weights for any language model, and pictures for it: made once, kept in the cache folder.

It is of Qwen2-VL's kind (libmtmd's "qwen2vl_merger"): 14 x 14 pixels a patch, four patches a token, so that a picture of
448 x 448 pixels is 256 tokens. Its tower has 4 layers of 384 features, F16: 7 million weights.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np

from llamafu._util.atomic import whole_file
from llamafu.adapters.gguf.base_model import read_base

if TYPE_CHECKING:
    from pathlib import Path

    from gguf import GGUFWriter

SIDE = 448
_LAYERS, _WIDTH, _HEADS, _HIDDEN, _PATCH, _MERGED = 4, 384, 6, 1536, 14, 4
_RECIPE = 2


def projector(model: Path) -> Path:
    """Return the projector for the language model at `model`, kept beside it; made the first time."""
    path = model.with_suffix(f".mmproj-{_RECIPE}.gguf")
    if not path.is_file():
        with whole_file(path) as unfinished:
            _write(unfinished, read_base(model).tensors["token_embd.weight"][0])
    return path


def picture(number: int) -> bytes:
    """Return a PNG of `SIDE` x `SIDE` pixels: another one for each number."""
    pixels = np.random.Generator(np.random.PCG64(number)).integers(0, 256, (SIDE // 16, SIDE // 16, 3), np.uint8)
    pixels = pixels.repeat(16, axis=0).repeat(16, axis=1)
    lines = np.concatenate([np.zeros((SIDE, 1), np.uint8), pixels.reshape(SIDE, -1)], axis=1).tobytes()
    chunks = (b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")
    body = (struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def _write(path: Path, width: int) -> None:
    from gguf import GGUFWriter

    writer, bits = GGUFWriter(path, "clip"), np.random.Generator(np.random.PCG64(1))
    writer.add_type("mmproj")
    writer.add_clip_has_vision_encoder(value=True)
    writer.add_string("clip.projector_type", "qwen2vl_merger")
    sizes = {
        "image_size": SIDE,
        "patch_size": _PATCH,
        "embedding_length": _WIDTH,
        "feed_forward_length": _HIDDEN,
        "block_count": _LAYERS,
        "attention.head_count": _HEADS,
        "projection_dim": width,
    }
    for name, value in sizes.items():
        writer.add_uint32(f"clip.vision.{name}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
    writer.add_array("clip.vision.image_mean", [0.5] * 3)
    writer.add_array("clip.vision.image_std", [0.5] * 3)

    def linear(name: str, rows: int, columns: int) -> None:
        writer.add_tensor(f"{name}.weight", (bits.standard_normal((rows, columns)) / columns**0.5).astype(np.float16))
        writer.add_tensor(f"{name}.bias", np.zeros(rows, np.float32))

    for name in ("v.patch_embd.weight", "v.patch_embd.weight.1"):
        writer.add_tensor(name, (bits.standard_normal((_WIDTH, 3, _PATCH, _PATCH)) / 3**0.5 / _PATCH).astype(np.float16))
    for layer in range(_LAYERS):
        block = f"v.blk.{layer}."
        for norm in ("ln1", "ln2"):
            _add_norm(writer, block + norm)
        for module in ("attn_q", "attn_k", "attn_v", "attn_out"):
            linear(block + module, _WIDTH, _WIDTH)
        linear(f"{block}ffn_up", _HIDDEN, _WIDTH)
        linear(f"{block}ffn_down", _WIDTH, _HIDDEN)
    _add_norm(writer, "v.post_ln")
    linear("mm.0", _MERGED * _WIDTH, _MERGED * _WIDTH)
    linear("mm.2", width, _MERGED * _WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_norm(writer: GGUFWriter, name: str) -> None:
    writer.add_tensor(f"{name}.weight", np.ones(_WIDTH, np.float32))
    writer.add_tensor(f"{name}.bias", np.zeros(_WIDTH, np.float32))
