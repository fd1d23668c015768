"""Builds tiny random projectors for pictures and sound (what llama.cpp calls mmproj files), and their M-RoPE model.

A projector is an encoder (a vision or audio transformer) and the layers that bring its output to the width of the
language model. Keys and tensor names are those that libmtmd reads. All weights are F32. `PROJECTORS` names the kinds:

- `llava` (libmtmd's "mlp"): 16 patches, two linear layers, one token a patch;
- `gemma3`: patches averaged two by two, a norm and one matrix; its tokens see each other both ways;
- `qwen2vl` (libmtmd's "qwen2vl_merger"): any size, rotary positions in two dimensions, four patches a token;
- `ultravox`: Whisper's encoder over a mel spectrogram of 30 seconds, 32 frames a token.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from gguf import GGUFWriter, LlamaFileType
from tiny_model import MERGES, TINY, Weights, add_vocabulary, finish, write_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np

    Tensors = dict[str, np.ndarray]

WIDTH, HEADS, FEED_FORWARD, EPS = 32, 2, 48, 1e-5  # of every encoder
IMAGE, PATCH = 32, 8  # pixels a side, of pictures that have one size
MOVING_PATCH, MERGE = 4, 2  # of pictures of any size: pixels a side of a patch, patches a side of a token
MELS, FRAMES, STACK = 16, 1500, 32  # of sound: frequency bands, encoder positions in 30 seconds, positions a token
MEAN, STD = (0.5, 0.4, 0.3), (0.5, 0.6, 0.7)  # the three colours apart, so that swapped channels are seen
MROPE_SECTIONS = [2, 3, 3, 0]  # pairs of features of a head that turn by time, by row, by column
VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>")


def write_qwen2vl(path: Path, *, seed: int) -> None:
    """Write a language model of Qwen2-VL's kind: qwen2 with positions of three dimensions, and tokens around pictures."""
    merges = MERGES[: -len(VISION_TOKENS)]  # as many tokens as the other tiny models have

    def add_sections(writer: GGUFWriter, _n_vocab: int) -> None:
        add_vocabulary(writer, merges, more_controls=VISION_TOKENS)
        writer.add_rope_dimension_sections(MROPE_SECTIONS)

    write_model(path, TINY, seed=seed, name="tiny-qwen2vl", arch="qwen2vl", vocabulary=add_sections)


def write_projector(path: Path, *, kinds: tuple[str, ...], seed: int, width: int = TINY.n_embd) -> None:
    """Write one projector file that holds `kinds` (names of `PROJECTORS`, at most one of pictures and one of sound).

    Its tokens have `width` features, as the language model has.
    """
    writer = GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_name(f"tiny-{'-'.join(kinds)}")
    writer.add_file_type(LlamaFileType.ALL_F32)
    for key, of_sound in (("clip.has_vision_encoder", False), ("clip.has_audio_encoder", True)):
        writer.add_bool(key, any((kind in _OF_SOUND) is of_sound for kind in kinds))
    weights, tensors = Weights(seed), {}
    for kind in kinds:
        tensors |= PROJECTORS[kind](writer, weights, width, alone=len(kinds) == 1)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    finish(writer)


def _llava(writer: GGUFWriter, weights: Weights, width: int, *, alone: bool) -> Tensors:
    layers = 3  # the last one is read and never computed, as in CLIP's files
    _add_vision(writer, "mlp", width, layers, PATCH, alone=alone)
    tensors = _patches(weights, "v.patch_embd.weight", PATCH)
    tensors["v.position_embd.weight"] = weights.uniform(((IMAGE // PATCH) ** 2, WIDTH), 0.5)
    tensors |= _norm(weights, "v.pre_ln") | _blocks(weights, "v", layers)
    tensors |= _affine(weights, "mm.0", (width, WIDTH), 0.5)
    return tensors | _affine(weights, "mm.2", (width, width), 0.5)


def _gemma3(writer: GGUFWriter, weights: Weights, width: int, *, alone: bool) -> Tensors:
    layers = 2
    _add_vision(writer, "gemma3", width, layers, PATCH, alone=alone)
    writer.add_vision_use_gelu(value=True)
    writer.add_uint32("clip.vision.projector.scale_factor", MERGE)
    tensors = _patches(weights, "v.patch_embd.weight", PATCH)
    tensors["v.patch_embd.bias"] = weights.uniform((WIDTH,), 0.2)
    tensors["v.position_embd.weight"] = weights.uniform(((IMAGE // PATCH) ** 2, WIDTH), 0.5)
    tensors |= _blocks(weights, "v", layers) | _norm(weights, "v.post_ln")
    tensors["mm.soft_emb_norm.weight"] = weights.norm(WIDTH)
    tensors["mm.input_projection.weight"] = weights.uniform((WIDTH, width), WIDTH**-0.5)  # transposed, as in the files
    return tensors


def _qwen2vl(writer: GGUFWriter, weights: Weights, width: int, *, alone: bool) -> Tensors:
    layers, merged = 2, WIDTH * MERGE**2
    _add_vision(writer, "qwen2vl_merger", width, layers, MOVING_PATCH, alone=alone)
    tensors = _patches(weights, "v.patch_embd.weight", MOVING_PATCH)
    tensors |= _patches(weights, "v.patch_embd.weight.1", MOVING_PATCH)  # of the second of two frames
    tensors |= _blocks(weights, "v", layers) | _norm(weights, "v.post_ln")
    tensors |= _affine(weights, "mm.0", (merged, merged), 1.5)
    return tensors | _affine(weights, "mm.2", (width, merged), 0.5)


def _ultravox(writer: GGUFWriter, weights: Weights, width: int, *, alone: bool) -> Tensors:
    layers, hidden = 1, 48
    writer.add_string("clip.projector_type" if alone else "clip.audio.projector_type", "ultravox")
    _add_sizes(writer, "clip.audio", width, layers)
    writer.add_uint32("clip.audio.num_mel_bins", MELS)
    writer.add_uint32("clip.audio.projector.stack_factor", STACK)
    tensors = {}
    for number, channels in ((1, MELS), (2, WIDTH)):
        kernel = weights.uniform((WIDTH, channels, 3), 1.5 / (3 * channels) ** 0.5)
        tensors[f"a.conv1d.{number}.weight"] = kernel
        tensors[f"a.conv1d.{number}.bias"] = weights.uniform((WIDTH, 1), 0.2)
    tensors["a.position_embd.weight"] = weights.uniform((FRAMES, WIDTH), 0.3)
    blocks = _blocks(weights, "a", layers)
    del blocks["a.blk.0.attn_k.bias"]  # Whisper has none
    tensors |= blocks | _norm(weights, "a.post_ln")
    tensors["mm.a.norm_pre.weight"] = weights.norm(STACK * WIDTH)
    tensors["mm.a.mlp.1.weight"] = weights.linear((2 * hidden, STACK * WIDTH), 1.5)
    tensors["mm.a.norm_mid.weight"] = weights.norm(hidden)
    tensors["mm.a.mlp.2.weight"] = weights.linear((width, hidden))
    return tensors


PROJECTORS: dict[str, Callable[..., Tensors]] = {
    "llava": _llava,
    "gemma3": _gemma3,
    "qwen2vl": _qwen2vl,
    "ultravox": _ultravox,
}
_OF_SOUND = ("ultravox",)

MEDIA_FIXTURES: dict[str, Callable[[Path], None]] = {
    "tiny-qwen2vl.gguf": partial(write_qwen2vl, seed=9),
    **{
        f"mmproj-{kind}.gguf": partial(write_projector, kinds=(kind,), seed=40 + number)
        for number, kind in enumerate(PROJECTORS)
    },
    "mmproj-both.gguf": partial(write_projector, kinds=("llava", "ultravox"), seed=50),
    "mmproj-narrow.gguf": partial(write_projector, kinds=("llava",), seed=51, width=TINY.n_embd // 2),  # fits no model
}


def _add_vision(writer: GGUFWriter, kind: str, width: int, layers: int, patch: int, *, alone: bool) -> None:
    writer.add_string("clip.projector_type" if alone else "clip.vision.projector_type", kind)
    _add_sizes(writer, "clip.vision", width, layers)
    writer.add_uint32("clip.vision.image_size", IMAGE)
    writer.add_uint32("clip.vision.patch_size", patch)
    writer.add_array("clip.vision.image_mean", list(MEAN))
    writer.add_array("clip.vision.image_std", list(STD))


def _add_sizes(writer: GGUFWriter, prefix: str, width: int, layers: int) -> None:
    writer.add_uint32(f"{prefix}.embedding_length", WIDTH)
    writer.add_uint32(f"{prefix}.feed_forward_length", FEED_FORWARD)
    writer.add_uint32(f"{prefix}.block_count", layers)
    writer.add_uint32(f"{prefix}.attention.head_count", HEADS)
    writer.add_uint32(f"{prefix}.projection_dim", width)
    writer.add_float32(f"{prefix}.attention.layer_norm_epsilon", EPS)


def _patches(weights: Weights, name: str, patch: int) -> Tensors:
    """Make the convolution that turns each patch into one vector: [features, colours, rows, columns]."""
    return {name: weights.uniform((WIDTH, 3, patch, patch), 2.0 / (3 * patch * patch) ** 0.5)}


def _blocks(weights: Weights, prefix: str, layers: int) -> Tensors:
    tensors: Tensors = {}
    for layer in range(layers):
        block = f"{prefix}.blk.{layer}."
        tensors |= _norm(weights, f"{block}ln1") | _norm(weights, f"{block}ln2")
        for module in ("attn_q", "attn_k", "attn_v", "attn_out"):
            tensors |= _affine(weights, block + module, (WIDTH, WIDTH), 1.5)
        tensors |= _affine(weights, f"{block}ffn_up", (FEED_FORWARD, WIDTH))
        tensors |= _affine(weights, f"{block}ffn_down", (WIDTH, FEED_FORWARD))
    return tensors


def _norm(weights: Weights, name: str) -> Tensors:
    return {f"{name}.weight": weights.norm(WIDTH), f"{name}.bias": weights.uniform((WIDTH,), 0.2)}


def _affine(weights: Weights, name: str, shape: tuple[int, int], gain: float = 1.0) -> Tensors:
    return {f"{name}.weight": weights.linear(shape, gain), f"{name}.bias": weights.uniform(shape[:1], 0.2)}
