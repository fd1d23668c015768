"""Writes the tiny models and adapters of the tests into a folder: `python scripts/make_fixtures.py OUTDIR`."""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gguf import PoolingType
from tiny_encoders import write_bert, write_nomic, write_t5
from tiny_kinds import write_hybrid, write_moe, write_positions, write_recurrent
from tiny_media import MEDIA_FIXTURES
from tiny_model import FIRST_BYTE, MODULES, TINY, sha256, write_adapter, write_model
from tiny_vocabularies import add_spm

if TYPE_CHECKING:
    from collections.abc import Callable

ALORA_INVOCATION = "<go>"  # no merge touches it: one token a byte
_MODEL = partial(write_model, shape=TINY, seed=1, name="tiny")
_ADAPTER = partial(write_adapter, shape=TINY)

FIXTURES: dict[str, Callable[[Path], None]] = {
    "tiny.gguf": _MODEL,
    "tiny-tied.gguf": partial(_MODEL, tied=True),
    "tiny-q4_0.gguf": partial(_MODEL, q4_0=True),
    "tiny-qwen2.gguf": partial(_MODEL, arch="qwen2"),
    "tiny-spm.gguf": partial(_MODEL, vocabulary=add_spm),
    "tiny-moe.gguf": partial(write_moe, seed=2),
    "tiny-hybrid.gguf": partial(write_hybrid, seed=3),
    "tiny-recurrent.gguf": partial(write_recurrent, seed=4),
    "tiny-positions.gguf": partial(write_positions, seed=8),
    "tiny-bert.gguf": partial(write_bert, seed=5),
    "tiny-bert-cls.gguf": partial(write_bert, seed=5, pooling=PoolingType.CLS),
    "tiny-rank.gguf": partial(write_bert, seed=5, pooling=PoolingType.RANK),
    "tiny-rank-qwen3.gguf": partial(_MODEL, arch="qwen3", tied=True, pooling=PoolingType.RANK),
    "tiny-nomic.gguf": partial(write_nomic, seed=6),
    "tiny-t5.gguf": partial(write_t5, seed=7, decodes=True),
    "tiny-t5encoder.gguf": partial(write_t5, seed=7, decodes=False),
    "tiny-last.gguf": partial(_MODEL, pooling=PoolingType.LAST),
    "tiny-mean.gguf": partial(_MODEL, pooling=PoolingType.MEAN),
    "tiny-whole.gguf": partial(_MODEL, pooling=PoolingType.MEAN, causal=False),
    "a.gguf": partial(_ADAPTER, seed=11, rank=4, alpha=8.0, strength=0.1),
    "b.gguf": partial(_ADAPTER, seed=12, rank=2, alpha=1.0, modules=("attn_q", "attn_v"), strength=0.2),
    "wide.gguf": partial(_ADAPTER, seed=13, rank=8, alpha=16.0, strength=0.1),
    "f16.gguf": partial(_ADAPTER, seed=14, rank=4, alpha=8.0, strength=0.1, f16=True),
    "alora.gguf": partial(
        _ADAPTER,
        seed=15,
        rank=4,
        alpha=8.0,
        strength=0.1,
        invocation_tokens=tuple(FIRST_BYTE + byte for byte in ALORA_INVOCATION.encode()),
    ),
    **{
        f"one-{module}.gguf": partial(_ADAPTER, seed=20 + i, rank=4, alpha=4.0, modules=(module,), strength=0.25)
        for i, module in enumerate(MODULES)
    },
    **MEDIA_FIXTURES,
    "qwen2vl-a.gguf": partial(_ADAPTER, seed=30, rank=4, alpha=8.0, strength=0.2, arch="qwen2vl"),
    "qwen2vl-b.gguf": partial(_ADAPTER, seed=31, rank=2, alpha=1.0, modules=("attn_q", "attn_v"), strength=0.3, arch="qwen2vl"),
}


def write_fixtures(directory: Path) -> dict[str, str]:
    """Write every fixture into `directory` and return {file name: SHA-256 in hex}.

    Each file appears whole or not at all, so that two processes may write at once.
    """
    directory.mkdir(parents=True, exist_ok=True)
    digests = {}
    for name, write in FIXTURES.items():
        unfinished = directory / f"{name}.{os.getpid()}"
        write(unfinished)
        digests[name] = sha256(unfinished)
        unfinished.replace(directory / name)
    return digests


def main() -> None:
    """Write the fixtures and print their digests."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, metavar="OUTDIR")
    for name, digest in write_fixtures(parser.parse_args().directory).items():
        print(digest, name)


if __name__ == "__main__":
    main()
