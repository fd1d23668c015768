"""What a context is made with."""

from __future__ import annotations

from dataclasses import dataclass

MOST_THREADS = 512
"""ggml's own limit. The OpenMP runtime ends the process when it cannot start as many threads as it was asked for."""
FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
"""libllama's numbers for the ways to compute attention."""


@dataclass(frozen=True, slots=True)
class ContextOptions:
    """What a context is made with. Sizes are in tokens."""

    n_ctx: int = 2048
    """Of the KV memory, of all sequences together; where it is not `unified`, they are divided evenly among the sequences."""
    n_batch: int = 512
    """The most tokens of one decode."""
    n_threads: int = 1
    n_seq_max: int = 1
    """The most sequences at a time."""
    flash_attn: str = "auto"
    """A key of `FLASH_ATTENTION`."""
    type_k: str = "f16"
    """ggml's name of a type of `memory_needs.BYTES_PER_VALUE`, in small letters, for K; and below for V."""
    type_v: str = "f16"
    embeddings: bool = False
    """Whether decodes write tokens' vectors from the start; it can be switched later."""
    offload: bool = False
    """Whether operations may be computed, and tensors lie, on an accelerator."""
    offload_kqv: bool = True
    """With `offload`: whether the KV memory of offloaded layers lies on their device."""
    op_offload: bool = True
    """With `offload`: whether large batches of the other layers are computed on a device too, by copies of their weights."""
    n_ubatch: int | None = None
    """The most tokens that one graph computes; None: `n_batch`."""
    unified: bool = False
    """Whether all sequences share `n_ctx` and one memory, so that rows keep the order of the batch."""
    positions: int | None = None
    """Rows of the model's table of positions, past which libllama aborts; None where positions are computed."""
    n_outputs: int = 0
    """The most outputs that one decode is asked for, so that libllama's buffer is no larger; 0: one for every token."""
