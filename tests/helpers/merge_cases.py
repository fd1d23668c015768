"""Adapters to merge, and the answers that PEFT gave."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFReader

from helpers.peft_folders import SIZES, arrays_of, write_folder
from llamafu.adapters.merge.methods import METHODS
from llamafu.adapters.writer import write_adapter

NAME, OTHER = "blk.0.attn_q.weight", "blk.1.ffn_up.weight"


GOLDENS = Path(__file__).parents[1] / "data" / "peft_sums.json"


def dense(path):
    """Every tensor's dW, straight from the file with gguf's reader."""
    reader = GGUFReader(path)
    tensors = {tensor.name: np.float64(tensor.data) for tensor in reader.tensors}
    alpha = reader.fields["adapter.lora.alpha"].contents()
    changes = {}
    for name in [name.removesuffix(".lora_a") for name in tensors if name.endswith(".lora_a")]:
        a, b = tensors[name + ".lora_a"], tensors[name + ".lora_b"]
        a = a.T if name == "token_embd.weight" else a
        changes[name] = (alpha / b.shape[-1] if alpha else 1) * (b @ a)
    return changes


def summed(weights):
    total = {}
    for path, weight in weights.items():
        for name, change in dense(path).items():
            total[name] = total.get(name, 0) + weight * change
    return total


def make(path, *, seed, rank=3, alpha=6.0, shapes=None, dtype="F32", architecture="llama", size=0.3):
    """Write an adapter with random factors; `shapes` are (out, in) or (experts, out, in) by tensor."""
    random = np.random.default_rng(seed)
    tensors = {}
    for name, (*experts, out, into) in (shapes or {NAME: (20, 12), OTHER: (9, 14)}).items():
        a, b = (size * random.standard_normal((*experts, *shape)) for shape in ((rank, into), (out, rank)))
        tensors[name] = a, b
    write_adapter(path, tensors, architecture=architecture, alpha=alpha, metadata={}, dtype=dtype)
    return path


def golden_sources(folder):
    """Two PEFT folders and their weights: seven targets and four, strengths 2 and 3."""
    some = list(SIZES)[:4]
    one = write_folder(folder / "one", arrays_of(seed=1), target_modules=[name.split(".")[1] for name in SIZES])
    leaves = [name.split(".")[1] for name in some]
    two = write_folder(folder / "two", arrays_of(seed=2, modules=some), lora_alpha=12, target_modules=leaves)
    return {one: 0.7, two: -0.3}


def golden_options(method):
    return {"density": 0.6} if "density" in METHODS[method].options else {}


def probe(change):
    """Return two numbers that an error anywhere in the matrix changes: its norm, and a bilinear form."""
    rows, columns = (np.cos(1 + np.arange(n)) for n in change.shape)
    return [float(np.linalg.norm(change)), float(rows @ change @ columns)]
