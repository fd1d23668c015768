"""What a context is made with."""

from __future__ import annotations

from dataclasses import dataclass

MOST_THREADS = 512
"""ggml's own limit. The OpenMP runtime ends the process when it cannot start as many threads as it was asked for."""
FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
"""libllama's numbers for the ways to compute attention."""


@dataclass(frozen=True, slots=True)
class ContextOptions:
    """What a context is made with: sizes in tokens, KV types by ggml name ("f16", "f32", "q8_0"), in small letters."""

    n_ctx: int = 2048
    n_batch: int = 512
    n_threads: int = 1
    n_seq_max: int = 1
    flash_attn: str = "auto"
    type_k: str = "f16"
    type_v: str = "f16"
    embeddings: bool = False
    offload: bool = False
    unified: bool = False
    """Whether all sequences share `n_ctx` and one memory, so that rows keep the order of the batch."""
    positions: int | None = None
    """Rows of the model's table of positions, past which libllama aborts; None where positions are computed."""
    n_outputs: int = 0
    """The most outputs that one decode is asked for, so that libllama's buffer is no larger; 0: one for every token."""
