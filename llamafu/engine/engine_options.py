"""The arguments of `Engine`, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from llamafu._native.context_options import FLASH_ATTENTION, MOST_THREADS, ContextOptions
from llamafu._native.cpu import usable_cpus
from llamafu._util.arguments import check_number, check_whole
from llamafu.generation.options import MOST_DRAFTED

if TYPE_CHECKING:
    from llamafu.adapters.gguf.base_model import BaseModel

BankDtype = Literal["f16", "f32"]
Kernel = Literal["auto", "compiled", "python", "none"]

DTYPES: dict[str, type[np.float16 | np.float32]] = {"f16": np.float16, "f32": np.float32}
_INT32_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Sizes, types and kernels of an engine; `Engine` says what each one means. ValueError names what is not legal."""

    max_sequences: int
    max_queue: int
    bank_rank: int
    bank_dtype: BankDtype
    kernel: Kernel
    n_ctx: int
    n_batch: int
    target_itl_ms: float
    prompt_lookup_num_tokens: int
    n_threads: int | None
    n_gpu_layers: int
    flash_attn: str
    type_k: str
    type_v: str

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("max_sequences", self.max_sequences, 1, _INT32_MAX),
            ("max_queue", self.max_queue, 1, _INT32_MAX),
            ("bank_rank", self.bank_rank, 0, _INT32_MAX),
            ("n_ctx", self.n_ctx, 2, _INT32_MAX),
            ("n_batch", self.n_batch, 64, _INT32_MAX),
            ("prompt_lookup_num_tokens", self.prompt_lookup_num_tokens, 0, MOST_DRAFTED),
            ("n_threads", self.threads, 1, MOST_THREADS),
            ("n_gpu_layers", self.n_gpu_layers, -1, _INT32_MAX),
        ):
            check_whole(name, value, low=low, high=high)
        check_number("target_itl_ms", self.target_itl_ms, low=0, above=True)
        if self.max_sequences > self.n_batch:
            message = f"max_sequences={self.max_sequences} is more than n_batch={self.n_batch}: raise that"
            raise ValueError(message)
        for name, choice, legal in (
            ("flash_attn", self.flash_attn, tuple(FLASH_ATTENTION)),
            ("bank_dtype", self.bank_dtype, tuple(DTYPES)),
            ("kernel", self.kernel, ("auto", "compiled", "python", "none")),
        ):
            if choice not in legal:
                message = f"{name}={choice!r} is none of {', '.join(map(repr, legal))}"
                raise ValueError(message)

    @property
    def threads(self) -> int:
        """CPU threads of a decode call: by default one for each CPU that this process may use."""
        return min(usable_cpus(), MOST_THREADS) if self.n_threads is None else self.n_threads

    @property
    def is_offloaded(self) -> bool:
        """Whether layers may be computed by another device than the CPU."""
        return self.n_gpu_layers != 0

    def context_options(self, base: BaseModel, *, most_sequences: int) -> ContextOptions:
        """Return what the context is made with; libllama has at most `most_sequences` sequence numbers."""
        return ContextOptions(
            n_ctx=self.n_ctx,
            n_batch=min(self.n_batch, self.n_ctx),
            n_threads=self.threads,
            # More than can run: an ended sequence keeps its number while its prefix is kept for later requests.
            n_seq_max=max(self.max_sequences, min(2 * self.max_sequences + 4, most_sequences)),
            flash_attn=self.flash_attn,
            type_k=self.type_k,
            type_v=self.type_v,
            offload=self.is_offloaded,
            unified=True,
            positions=base.positions,
        )
