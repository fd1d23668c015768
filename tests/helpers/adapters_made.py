"""Adapters made while a test runs, from a seed: any rank, any targets, for any base model.

The same arguments give the same bytes, on the same NumPy. At scale 1 each target moves its outputs by about `strength`
times the standard deviation of its inputs, whatever rank and alpha are.
"""

from __future__ import annotations

import math
import random
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from llamafu.adapters.gguf.base_model import read_base
from llamafu.adapters.info import is_expert
from llamafu.adapters.writer import write_adapter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from llamafu.adapters.gguf.base_model import BaseModel
    from llamafu.adapters.info import AdapterInfo

# What the graphs of the tiny models multiply by adapters; embeddings, norms and convolution kernels are not among them.
ADAPTABLE = (
    *("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "ffn_gate_inp"),
    *("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "shortconv.in_proj", "shortconv.out_proj"),
    *("ssm_in", "ssm_x", "ssm_dt", "ssm_out", "output"),
)


def targets(base: Path, modules: Sequence[str] | None = None) -> tuple[str, ...]:
    """Every tensor of the model file `base` that can be adapted, or those of `modules` ("attn_q", "output", ...)."""
    wanted = ADAPTABLE if modules is None else tuple(modules)
    found = tuple(name for name in _header(base).tensors if _module(name) in wanted)
    missing = set(modules or ()) - {_module(name) for name in found}
    assert not missing, f"{base.name} has no {sorted(missing)}"
    return found


def make_adapter(
    path: Path,
    base: Path,
    *,
    seed: int,
    rank: int | Mapping[str, int] = 4,
    alpha: float = 8.0,
    tensors: Sequence[str] | None = None,
    strength: float = 0.1,
    dtype: str = "F32",
) -> AdapterInfo:
    """Write an adapter for `tensors` of the model file `base` (all but `output` by default), of one `rank` or one for each."""
    header = _header(base)
    names = [name for name in targets(base) if name != "output.weight"] if tensors is None else tensors
    bits = np.random.Generator(np.random.PCG64(seed))
    pairs = {}
    for name in names:
        columns, rows, *experts = header.tensors[name]
        assert bool(experts) == is_expert(name)
        r = rank if isinstance(rank, int) else rank[name]
        a = bits.uniform(-1, 1, (*experts, r, columns)) * math.sqrt(3 / columns)
        b = bits.uniform(-1, 1, (*experts, rows, r)) * math.sqrt(3 / r) * strength * (r / alpha if alpha else 1)
        pairs[name] = (a, b)
    return write_adapter(
        path, pairs, architecture=header.architecture, alpha=alpha, metadata={"general.name": path.stem}, dtype=dtype
    )


def make_various(
    directory: Path,
    base: Path,
    *,
    seed: int,
    count: int,
    ranks: range = range(1, 17),
    dtypes: Sequence[str] = ("F32", "F16"),
) -> list[Path]:
    """Write `count` adapters that differ in everything: rank, alpha, targets, dtype; "v0.gguf", "v1.gguf" and so on.

    Some have one rank for all tensors and some a rank for each; every fourth reaches a single tensor only.
    """
    draw = random.Random(seed)  # noqa: S311 - a test's own draw
    every = [name for name in targets(base) if name != "output.weight"]
    paths = []
    for i in range(count):
        chosen = set(draw.sample(every, 1 if i % 4 == 3 else draw.randint(2, len(every))))
        names = [name for name in every if name in chosen]
        uniform = draw.choice(ranks)
        path = directory / f"v{i}.gguf"
        make_adapter(
            path,
            base,
            seed=seed * 1000 + i,
            rank=uniform if draw.random() < 0.5 else {name: draw.choice(ranks) for name in names},
            alpha=draw.choice((0.0, 1.0, 8.0, 16.0)),
            tensors=names,
            dtype=draw.choice(dtypes),
        )
        paths.append(path)
    return paths


def _module(name: str) -> str:
    stem = name.removesuffix(".weight")
    return stem.split(".", 2)[2] if stem.startswith("blk.") else stem


@lru_cache(maxsize=32)
def _header(base: Path) -> BaseModel:
    return read_base(base)
