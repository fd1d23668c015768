"""An independent forward pass of small GGUF models of the llama and qwen2vl architectures in NumPy float64.

It shares nothing with the code under test but the gguf package, follows the textbook formulas, and knows exactly what
the test models use: RMS norm, rotary embedding (over adjacent pairs, or Qwen2-VL's in three dimensions), grouped-query
attention, SwiGLU, LoRA.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from gguf import GGUFReader, quants

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from os import PathLike

    Scale = float | Sequence[float] | np.ndarray
    Adapters = Sequence[tuple[str | PathLike[str], Scale]]


def _tensors(reader: GGUFReader) -> dict[str, np.ndarray]:
    return {t.name: np.float64(quants.dequantize(t.data, t.tensor_type)) for t in reader.tensors}


class Reference:
    """A model whose logits are computed without libllama."""

    def __init__(self, path: str | PathLike[str]) -> None:
        """Read and dequantise the whole model at `path`, of architecture llama or qwen2vl."""
        reader = GGUFReader(path)

        def value(key: str) -> int | float | str:
            return reader.fields[key].contents()

        if (arch := value("general.architecture")) not in {"llama", "qwen2vl"}:
            message = f"the reference computes llama and qwen2vl models, {path} is {arch!r}"
            raise ValueError(message)
        self.n_layer = value(f"{arch}.block_count")
        self.n_head = value(f"{arch}.attention.head_count")
        self.n_head_kv = value(f"{arch}.attention.head_count_kv")
        self.head_dim = value(f"{arch}.rope.dimension_count")
        self.rope_base = value(f"{arch}.rope.freq_base")
        self.sections = value(f"{arch}.rope.dimension_sections")[:3] if arch == "qwen2vl" else None
        self.eps = value(f"{arch}.attention.layer_norm_rms_epsilon")
        self.causal = f"{arch}.attention.causal" not in reader.fields or bool(value(f"{arch}.attention.causal"))
        self.weights = _tensors(reader)

    def logits(self, tokens: Sequence[int], adapters: Adapters = ()) -> np.ndarray:
        """Return the logits after every token of one sequence from position 0, float64 [n_tokens, n_vocab].

        `adapters` are pairs of a GGUF adapter and its scale: one number, or one per token (what a token's keys and
        values were computed with stays, as in a cache).
        """
        return self.logits_of(self.weights["token_embd.weight"][list(tokens)], adapters)

    def logits_of(
        self,
        embeddings: np.ndarray,
        adapters: Adapters = (),
        *,
        positions: np.ndarray | None = None,
        both_ways: Sequence[tuple[int, int]] = (),
    ) -> np.ndarray:
        """Return the logits after every row of `embeddings` [n, n_embd], which may be tokens' or a picture's.

        `positions` [n, 3] are each row's time, row and column (0, 1, 2, ... in all three by default). The rows of each
        span (first, behind the last) in `both_ways` see each other, whatever their order.
        """
        linear = self._linear(self._deltas(adapters, len(embeddings)))
        x = self._rows(embeddings, linear, positions, both_ways)
        return linear(x, "output.weight", self.weights.get("output.weight", self.weights["token_embd.weight"]))

    def rows(self, tokens: Sequence[int], adapters: Adapters = ()) -> np.ndarray:
        """Return the last layer's vectors of all tokens of one text, normed, float64 [n_tokens, n_embd]."""
        embeddings = self.weights["token_embd.weight"][list(tokens)]
        return self._rows(embeddings, self._linear(self._deltas(adapters, len(tokens))))

    def _linear(self, deltas: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]]) -> Callable[..., np.ndarray]:
        def linear(x: np.ndarray, name: str, weight: np.ndarray | None = None) -> np.ndarray:
            y = x @ (self.weights[name] if weight is None else weight).T + self.weights.get(f"{name[:-6]}bias", 0.0)
            for a, b, factor in deltas.get(name, ()):
                y = y + factor * (x @ a.T @ b.T)
            return y

        return linear

    def _rows(
        self,
        x: np.ndarray,
        linear: Callable[..., np.ndarray],
        positions: np.ndarray | None = None,
        both_ways: Sequence[tuple[int, int]] = (),
    ) -> np.ndarray:
        places = np.arange(len(x))[:, None].repeat(3, axis=1) if positions is None else positions
        visible = np.tri(len(x), dtype=bool) if self.causal else np.ones((len(x), len(x)), dtype=bool)
        for first, behind in both_ways:
            visible[first:behind, first:behind] = True
        for layer in range(self.n_layer):
            prefix = f"blk.{layer}."
            h = self._rms_norm(x, prefix + "attn_norm.weight")
            q, k, v = (linear(h, f"{prefix}attn_{which}.weight") for which in "qkv")
            x = x + linear(self._attention(q, k, v, places, visible), prefix + "attn_output.weight")
            h = self._rms_norm(x, prefix + "ffn_norm.weight")
            gate = linear(h, prefix + "ffn_gate.weight")
            hidden = gate / (1 + np.exp(-gate)) * linear(h, prefix + "ffn_up.weight")
            x = x + linear(hidden, prefix + "ffn_down.weight")
        return self._rms_norm(x, "output_norm.weight")

    def _deltas(self, adapters: Adapters, n_tokens: int) -> dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]]:
        """Per target: A [rank, in], B [out, rank] and the factor of each token [n_tokens, 1]."""
        deltas = {}
        for path, scale in adapters:
            reader = GGUFReader(path)
            alpha = reader.fields["adapter.lora.alpha"].contents()
            tensors = _tensors(reader)
            for name in [name.removesuffix(".lora_a") for name in tensors if name.endswith(".lora_a")]:
                if name not in self.weights or name == "token_embd.weight":
                    message = f"{path} changes {name}, which the reference cannot apply to this model"
                    raise ValueError(message)
                a, b = tensors[name + ".lora_a"], tensors[name + ".lora_b"]
                factor = np.broadcast_to(np.float64(scale) * alpha / len(a), (n_tokens,))[:, None]
                deltas.setdefault(name, []).append((a, b, factor))
        return deltas

    def _rms_norm(self, x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.eps) * self.weights[name]

    def _rope(self, x: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Rotate pairs of features of x [n_tokens, heads, head_dim] by `places` [n_tokens, 3].

        A llama's pairs are adjacent and turn by the first place. Qwen2-VL's are half a head apart; `sections` says how
        many of them turn by each of the three.
        """
        frequencies = self.rope_base ** (-np.arange(0, self.head_dim, 2) / self.head_dim)
        turning = places[:, :1] if self.sections is None else places.repeat(self.sections, axis=1)
        angles = (turning * frequencies)[:, None, :]
        if self.sections is None:
            first, second = x[..., 0::2], x[..., 1::2]
        else:
            first, second = np.split(x, 2, axis=-1)
        rotated = first * np.cos(angles) - second * np.sin(angles), first * np.sin(angles) + second * np.cos(angles)
        return np.stack(rotated, axis=-1).reshape(x.shape) if self.sections is None else np.concatenate(rotated, axis=-1)

    def _attention(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, places: np.ndarray, visible: np.ndarray) -> np.ndarray:
        n_tokens = len(q)
        group = self.n_head // self.n_head_kv
        q = self._rope(q.reshape(n_tokens, self.n_head, self.head_dim), places)
        k = self._rope(k.reshape(n_tokens, self.n_head_kv, self.head_dim), places).repeat(group, axis=1)
        v = v.reshape(n_tokens, self.n_head_kv, self.head_dim).repeat(group, axis=1)
        scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(self.head_dim)
        scores = np.where(visible, scores, -np.inf)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        return np.einsum("hij,jhd->ihd", scores, v).reshape(n_tokens, -1)
