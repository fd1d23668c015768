"""An independent forward pass of small projector files (vision and audio towers) in NumPy float64.

As `reference.py` it shares nothing with the code under test but the gguf package. It knows what the files of
`scripts/tiny_media.py` use: pre-norm transformers, and the projectors of LLaVA, Gemma 3, Qwen2-VL and Ultravox. What
libmtmd rounds to half precision in F32 files too (inputs and kernels of convolutions) is rounded here as well.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from gguf import GGUFReader, quants

from helpers.media_preprocessing import fit, fit_to_grid, log_mel

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

_erf = np.vectorize(math.erf)
_CLIP_GREY = (122, 116, 104)  # LLaVA's fill around a picture that is not square
_FRAMES = 3000  # of a spectrogram that Whisper's encoder takes at once


class ProjectorReference:
    """A projector file whose embeddings are computed without libmtmd."""

    def __init__(self, path: str | PathLike[str]) -> None:
        """Read the whole file at `path`."""
        reader = GGUFReader(path)
        self._facts = {key: field.contents() for key, field in reader.fields.items()}
        self._weights = {t.name: np.float64(quants.dequantize(t.data, t.tensor_type)) for t in reader.tensors}
        alone = self._facts.get("clip.projector_type")
        self.vision = self._facts.get("clip.vision.projector_type", alone)
        self.both_ways = self.vision == "gemma3"  # the language model lets a picture's tokens see each other

    def see(self, picture: np.ndarray) -> np.ndarray:
        """Return the embeddings of a picture [rows, columns, 3] uint8: [n_tokens, n_embd]."""
        return {"mlp": self._llava, "gemma3": self._gemma3, "qwen2vl_merger": self._qwen2vl}[self.vision](picture)

    def positions(self, picture: np.ndarray, first: int) -> tuple[np.ndarray, int]:
        """Return the positions (time, row, column) of a picture's tokens, [n_tokens, 3], and that of what follows it."""
        if self.vision != "qwen2vl_merger":
            steps = first + np.arange(len(self.see(picture)))
            return np.stack([steps] * 3, axis=1), first + len(steps)
        rows, columns = (side // self._step for side in self._on_grid(picture).shape[:2])
        grid = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1).reshape(-1, 2)
        return np.concatenate([np.zeros((len(grid), 1), int), grid], axis=1) + first, first + max(rows, columns)

    def hear(self, samples: np.ndarray) -> np.ndarray:
        """Return Ultravox's embeddings of up to 30 seconds of sound at 16 kHz, [n_tokens, n_embd]."""
        x = log_mel(samples, self._facts["clip.audio.num_mel_bins"])[:, :_FRAMES]
        for number, stride in ((1, 1), (2, 2)):
            name = f"a.conv1d.{number}"
            x = _gelu_erf(_convolve(x, self._weights[f"{name}.weight"], stride) + self._weights[f"{name}.bias"])
        x = x.T + self._weights["a.position_embd.weight"]
        x = self._norm(self._blocks(x, "a", self._facts["clip.audio.block_count"], _gelu_erf), "a.post_ln")
        stack = self._facts["clip.audio.projector.stack_factor"]
        x = np.pad(x, ((0, -len(x) % stack), (0, 0))).reshape(-1, stack * x.shape[1])
        h = self._rms(x, 1e-6) * self._weights["mm.a.norm_pre.weight"]
        value, gate = np.split(h @ self._weights["mm.a.mlp.1.weight"].T, 2, axis=1)
        h = self._rms(value * gate / (1 + np.exp(-gate)), 1e-6) * self._weights["mm.a.norm_mid.weight"]
        return h @ self._weights["mm.a.mlp.2.weight"].T

    def _llava(self, picture: np.ndarray) -> np.ndarray:
        picture = fit(picture, self._vision("image_size"), cubic=True, pad=_CLIP_GREY)
        x = self._patches(picture, "v.patch_embd.weight") + self._weights["v.position_embd.weight"]
        x = self._blocks(self._norm(x, "v.pre_ln"), "v", self._vision("block_count") - 1, _gelu_quick)
        return self._linear(_gelu(self._linear(x, "mm.0")), "mm.2")

    def _gemma3(self, picture: np.ndarray) -> np.ndarray:
        picture = fit(picture, self._vision("image_size"), cubic=False, pad=(0, 0, 0))
        x = self._patches(picture, "v.patch_embd.weight") + self._weights["v.patch_embd.bias"]
        x = self._blocks(x + self._weights["v.position_embd.weight"], "v", self._vision("block_count"), _gelu)
        x = self._norm(x, "v.post_ln")
        side, pool = math.isqrt(len(x)), self._vision("projector.scale_factor")
        x = x.reshape(side // pool, pool, side // pool, pool, -1).mean(axis=(1, 3)).reshape((side // pool) ** 2, -1)
        x = self._rms(x, self._vision("attention.layer_norm_epsilon")) * self._weights["mm.soft_emb_norm.weight"]
        return x @ self._weights["mm.input_projection.weight"]

    def _qwen2vl(self, picture: np.ndarray) -> np.ndarray:
        picture = self._on_grid(picture)
        patch = self._vision("patch_size")
        rows, columns = picture.shape[0] // patch, picture.shape[1] // patch
        x = self._patches(picture, "v.patch_embd.weight") + self._patches(picture, "v.patch_embd.weight.1")
        order = np.arange(rows * columns).reshape(rows // 2, 2, columns // 2, 2).transpose(0, 2, 1, 3).reshape(-1)
        where = np.stack([order // columns, order % columns], axis=1)  # each four patches of a token side by side
        x = self._blocks(x[order], "v", self._vision("block_count"), _gelu_quick, where)
        x = self._norm(x, "v.post_ln").reshape(len(x) // 4, -1)
        return self._linear(_gelu(self._linear(x, "mm.0")), "mm.2")

    @property
    def _step(self) -> int:
        return 2 * self._vision("patch_size")  # pixels a side of a token

    def _on_grid(self, picture: np.ndarray) -> np.ndarray:
        return fit_to_grid(picture, self._step, least=8 * self._step**2, most=4096 * self._step**2)

    def _vision(self, key: str) -> int:
        return self._facts[f"clip.vision.{key}"]

    def _patches(self, picture: np.ndarray, name: str) -> np.ndarray:
        """Return one vector a patch, row by row."""
        mean, std = self._vision("image_mean"), self._vision("image_std")
        x = np.float16((picture / 255 - np.array(mean)) / np.array(std)).astype(np.float64)
        kernel = np.float16(self._weights[name]).astype(np.float64)
        side = kernel.shape[-1]
        rows, columns = picture.shape[0] // side, picture.shape[1] // side
        patches = x.reshape(rows, side, columns, side, 3).transpose(0, 2, 4, 1, 3).reshape(rows * columns, -1)
        return patches @ kernel.reshape(len(kernel), -1).T

    def _blocks(
        self,
        x: np.ndarray,
        prefix: str,
        layers: int,
        activation: Callable[[np.ndarray], np.ndarray],
        where: np.ndarray | None = None,
    ) -> np.ndarray:
        """Run `layers` transformer blocks over x [n, features]; `where` holds rows and columns to rotate by."""
        heads = self._facts[f"clip.{'vision' if prefix == 'v' else 'audio'}.attention.head_count"]
        for layer in range(layers):
            block = f"{prefix}.blk.{layer}."
            h = self._norm(x, f"{block}ln1")
            q, k, v = (self._linear(h, f"{block}attn_{which}").reshape(len(x), heads, -1) for which in "qkv")
            if where is not None:
                q, k = _rotate(q, where), _rotate(k, where)
            q, k, v = (part.swapaxes(0, 1) for part in (q, k, v))  # [heads, n, features]
            scores = q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1])
            scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
            scores /= scores.sum(axis=-1, keepdims=True)
            x = x + self._linear((scores @ v).swapaxes(0, 1).reshape(len(x), -1), f"{block}attn_out")
            h = activation(self._linear(self._norm(x, f"{block}ln2"), f"{block}ffn_up"))
            x = x + self._linear(h, f"{block}ffn_down")
        return x

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self._weights[f"{name}.weight"].T + self._weights.get(f"{name}.bias", 0.0)

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        prefix = "clip.vision" if name.startswith("v.") else "clip.audio"
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = self._rms(centred, self._facts[f"{prefix}.attention.layer_norm_epsilon"])
        return scaled * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]

    @staticmethod
    def _rms(x: np.ndarray, eps: float) -> np.ndarray:
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)


def _rotate(x: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Rotate x [n, heads, features]: of the pairs (i, i + half) the first half turns by the row, the rest by the column."""
    half = x.shape[-1] // 2
    frequencies = 10000.0 ** (-np.arange(0, half, 2) / half)
    angles = np.concatenate([where[:, :1] * frequencies, where[:, 1:] * frequencies], axis=1)[:, None, :]
    first, second = x[..., :half], x[..., half:]
    turned = first * np.cos(angles) - second * np.sin(angles), first * np.sin(angles) + second * np.cos(angles)
    return np.concatenate(turned, axis=-1)


def _convolve(x: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """Slide kernel [out, in, width] over x [in, frames], zeros at both ends: [out, frames / stride]."""
    half = kernel.shape[-1] // 2
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), (half, half))), kernel.shape[-1], axis=1)
    rounded = np.float16(windows[:, ::stride]).astype(np.float64), np.float16(kernel).astype(np.float64)
    return np.einsum("ctk,ock->ot", *rounded, optimize=True)


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _gelu_quick(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-1.702 * x))


def _gelu_erf(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)))
