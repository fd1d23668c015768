"""An independent forward pass of small BERT and Nomic BERT GGUF models in NumPy float64.

As `reference.py` it shares nothing with the code under test but the gguf package, and follows the textbook formulas:
learned or rotated positions, norms after each half of a layer, attention to the whole text, GELU or SwiGLU, LoRA.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from gguf import GGUFReader, quants

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    Adapters = Sequence[tuple[str | PathLike[str], float]]

_erf = np.vectorize(math.erf)


def read(path: str | PathLike[str]) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    """Return the metadata and the weights of a GGUF file."""
    reader = GGUFReader(path)
    facts = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("tokenizer.ggml.t")}
    return facts, {t.name: np.float64(quants.dequantize(t.data, t.tensor_type)) for t in reader.tensors}


class EncoderReference:
    """An encoder whose vectors are computed without libllama."""

    def __init__(self, path: str | PathLike[str]) -> None:
        """Read the whole model at `path`, of architecture bert or nomic-bert."""
        facts, self.weights = read(path)
        arch = str(facts["general.architecture"])
        self.layers = int(facts[f"{arch}.block_count"])
        self.heads = int(facts[f"{arch}.attention.head_count"])
        self.eps = float(facts[f"{arch}.attention.layer_norm_epsilon"])
        self.rotates = arch == "nomic-bert"
        self.rope_base = float(facts.get(f"{arch}.rope.freq_base", 10000.0))

    def rows(self, tokens: Sequence[int], adapters: Adapters = ()) -> np.ndarray:
        """Return the last layer's vectors of all tokens of one text, float64 [n_tokens, n_embd]."""
        deltas: dict[str, list[tuple[np.ndarray, np.ndarray, float]]] = {}
        for path, scale in adapters:
            facts, factors = read(path)
            for name in {name.removesuffix(".lora_a").removesuffix(".lora_b") for name in factors}:
                a, b = factors[f"{name}.lora_a"], factors[f"{name}.lora_b"]
                deltas.setdefault(name, []).append((a, b, scale * float(facts["adapter.lora.alpha"]) / len(a)))

        def linear(x: np.ndarray, name: str) -> np.ndarray:
            y = x @ self.weights[f"{name}.weight"].T
            for a, b, factor in deltas.get(f"{name}.weight", ()):
                y = y + factor * (x @ a.T @ b.T)
            return y + self.weights.get(f"{name}.bias", 0.0)

        x = self.weights["token_embd.weight"][list(tokens)] + self.weights["token_types.weight"][0]
        if not self.rotates:
            x = x + self.weights["position_embd.weight"][: len(tokens)]
        x = self._norm(x, "token_embd_norm")
        for layer in range(self.layers):
            prefix = f"blk.{layer}."
            if self.rotates:
                q, k, v = np.split(linear(x, f"{prefix}attn_qkv"), 3, axis=-1)
            else:
                q, k, v = (linear(x, f"{prefix}attn_{part}") for part in "qkv")
            x = self._norm(x + linear(self._attention(q, k, v), f"{prefix}attn_output"), f"{prefix}attn_output_norm")
            up = linear(x, f"{prefix}ffn_up")
            if self.rotates:
                gate = linear(x, f"{prefix}ffn_gate")
                hidden = gate / (1 + np.exp(-gate)) * up
            else:
                hidden = up * (1 + _erf(up / math.sqrt(2))) / 2
            x = self._norm(x + linear(hidden, f"{prefix}ffn_down"), f"{prefix}layer_output_norm")
        return x

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(axis=-1, keepdims=True)
        spread = np.sqrt(np.mean(centred * centred, axis=-1, keepdims=True) + self.eps)
        return centred / spread * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def _rope(self, x: np.ndarray) -> np.ndarray:
        """Rotate feature i of x [n_tokens, heads, width] together with feature i + width / 2."""
        half = x.shape[-1] // 2
        angles = np.arange(len(x))[:, None, None] * self.rope_base ** (-np.arange(half) / half)
        one, other = x[..., :half], x[..., half:]
        return np.concatenate(
            [one * np.cos(angles) - other * np.sin(angles), one * np.sin(angles) + other * np.cos(angles)], axis=-1
        )

    def _attention(self, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        count = len(q)
        q, k, v = (part.reshape(count, self.heads, -1) for part in (q, k, v))
        if self.rotates:
            q, k = self._rope(q), self._rope(k)
        scores = np.einsum("ihd,jhd->hij", q, k) / math.sqrt(q.shape[-1])
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return np.einsum("hij,jhd->ihd", scores / scores.sum(axis=-1, keepdims=True), v).reshape(count, -1)


class T5Reference:
    """The encoder of a T5 model: biases by distance instead of positions, scores that are not scaled, ReLU."""

    def __init__(self, path: str | PathLike[str]) -> None:
        """Read the whole model at `path`, of architecture t5encoder."""
        facts, self.weights = read(path)
        self.layers = int(facts["t5encoder.block_count"])
        self.heads = int(facts["t5encoder.attention.head_count"])
        self.buckets = int(facts["t5encoder.attention.relative_buckets_count"])
        self.eps = float(facts["t5encoder.attention.layer_norm_rms_epsilon"])

    def rows(self, tokens: Sequence[int]) -> np.ndarray:
        """Return the last layer's vectors of all tokens of one text, float64 [n_tokens, n_embd]."""
        w = self.weights
        x, count = w["token_embd.weight"][list(tokens)], len(tokens)
        places = np.arange(count)
        bias = w["enc.blk.0.attn_rel_b.weight"][self._bucket(places[None] - places[:, None])]
        for layer in range(self.layers):
            prefix = f"enc.blk.{layer}."
            h = self._norm(x, f"{prefix}attn_norm.weight")
            q, k, v = ((h @ w[f"{prefix}attn_{part}.weight"].T).reshape(count, self.heads, -1) for part in "qkv")
            scores = np.exp(np.einsum("ihd,jhd->hij", q, k) + bias.transpose(2, 0, 1))
            seen = np.einsum("hij,jhd->ihd", scores / scores.sum(axis=-1, keepdims=True), v).reshape(count, -1)
            x = x + seen @ w[f"{prefix}attn_o.weight"].T
            h = self._norm(x, f"{prefix}ffn_norm.weight")
            x = x + np.maximum(h @ w[f"{prefix}ffn_up.weight"].T, 0) @ w[f"{prefix}ffn_down.weight"].T
        return self._norm(x, "enc.output_norm.weight")

    def _bucket(self, distance: np.ndarray) -> np.ndarray:
        """Buckets of what is ahead follow those of what is behind; far ones are wider, up to a distance of 128."""
        half = self.buckets // 2
        near, far = half // 2, np.maximum(np.abs(distance), 1)
        wide = near + (np.log(far / near) / math.log(128 / near) * (half - near)).astype(int)
        return (distance > 0) * half + np.where(np.abs(distance) < near, np.abs(distance), np.minimum(wide, half - 1))

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.eps) * self.weights[name]
