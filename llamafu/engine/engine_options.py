"""The arguments of `Engine`, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from llamafu._native.context_options import FLASH_ATTENTION, MOST_THREADS, ContextOptions
from llamafu._native.cpu import usable_cpus
from llamafu._util.arguments import check_number, check_whole
from llamafu.generation.options import MOST_DRAFTED

if TYPE_CHECKING:
    from llamafu._native.device_options import DeviceOptions
    from llamafu.adapters.gguf.base_model import BaseModel

BankDtype = Literal["f16", "f32"]
Kernel = Literal["auto", "compiled", "python", "device", "none"]
KERNELS = get_args(Kernel)

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
    flash_attn: str
    type_k: str
    type_v: str
    devices: DeviceOptions

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("max_sequences", self.max_sequences, 1, _INT32_MAX),
            ("max_queue", self.max_queue, 1, _INT32_MAX),
            ("bank_rank", self.bank_rank, 0, _INT32_MAX),
            ("n_ctx", self.n_ctx, 2, _INT32_MAX),
            ("n_batch", self.n_batch, 64, _INT32_MAX),
            ("prompt_lookup_num_tokens", self.prompt_lookup_num_tokens, 0, MOST_DRAFTED),
            ("n_threads", self.threads, 1, MOST_THREADS),
        ):
            object.__setattr__(self, name, check_whole(name, value, low=low, high=high))
        check_number("target_itl_ms", self.target_itl_ms, low=0, above=True)
        for name, rows in (("n_batch", self.n_batch), ("n_ubatch", self.rows), ("n_ctx", self.n_ctx)):
            if self.max_sequences > rows:  # libllama would abort
                message = f"max_sequences={self.max_sequences} is more than {name}={rows}: raise that, or lower max_sequences"
                raise ValueError(message)
        if self.devices.kv_unified is False:
            message = "kv_unified=False, but an engine's sequences share one KV memory, and prefixes in it; leave it out"
            raise ValueError(message)
        for name, choice, legal in (
            ("flash_attn", self.flash_attn, tuple(FLASH_ATTENTION)),
            ("bank_dtype", self.bank_dtype, tuple(DTYPES)),
            ("kernel", self.kernel, KERNELS),
        ):
            if choice not in legal:
                message = f"{name}={choice!r} is none of {', '.join(map(repr, legal))}"
                raise ValueError(message)

    @property
    def threads(self) -> int:
        """CPU threads of a decode call: by default one for each CPU that this process may use."""
        return min(usable_cpus(), MOST_THREADS) if self.n_threads is None else self.n_threads

    @property
    def rows(self) -> int:
        """The most rows of one decode call: a graph has all of them, since the bank's tables are for the whole call."""
        return self.n_batch if self.devices.n_ubatch is None else min(self.n_batch, self.devices.n_ubatch)

    def context_options(self, base: BaseModel, *, most_sequences: int) -> ContextOptions:
        """Return what the context is made with; libllama has at most `most_sequences` sequence numbers."""
        return ContextOptions(
            n_ctx=self.n_ctx,
            n_batch=min(self.rows, self.n_ctx),
            n_threads=self.threads,
            # More than can run: an ended sequence keeps its number while its prefix is kept for later requests.
            n_seq_max=max(self.max_sequences, min(2 * self.max_sequences + 4, most_sequences)),
            flash_attn=self.flash_attn,
            type_k=self.type_k,
            type_v=self.type_v,
            offload_kqv=self.devices.offload_kqv,
            unified=True,
            positions=base.positions,
        )
