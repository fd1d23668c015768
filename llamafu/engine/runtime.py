"""The native side of an engine: libllama, the model, the context, and the bank that replaces operations of its graph."""

from __future__ import annotations

import importlib.util
import math
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from llamafu._native import backends
from llamafu._native.batched_lora.compiled import CompiledLoraHook
from llamafu._native.batched_lora.rewritten import ExpertRewriteHook
from llamafu._native.batched_lora.slot_layout import with_spare
from llamafu._native.graph.adapter_ops import find_adapter_ops
from llamafu._native.instance import Instance
from llamafu._native.library import open_library
from llamafu._native.memory_needs import machine_bytes
from llamafu.adapters.file import read_adapter
from llamafu.adapters.info import is_expert
from llamafu.adapters.writer import factor_bytes
from llamafu.engine.bank import Bank
from llamafu.engine.engine_options import DTYPES
from llamafu.errors import ContextInitError, ErrorCode, LoraError
from llamafu.generation.classifier_head import classifier_head
from llamafu.libraries.discovery import find

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from llamafu._native.adapter import Adapter
    from llamafu._native.batched_lora.row_table import RowTable
    from llamafu._native.context import Hook
    from llamafu._native.model import Model
    from llamafu.adapters.gguf.base_model import BaseModel
    from llamafu.engine.engine_options import EngineOptions
    from llamafu.engine.registry import Content

_MATRIX, _STACK = 2, 3
_EMBEDDINGS = "token_embd.weight"


@dataclass(frozen=True, slots=True)
class Plan:
    """Which kernel applies the bank; `fallback_reason` says why none can, where it is "none"."""

    kernel: Literal["compiled", "python", "none"]
    fallback_reason: str


class EngineRuntime:
    """Owns the `Instance` and the bank. The engine's thread only, except for `sharing`."""

    def __init__(self, base: BaseModel, options: EngineOptions, library: str | os.PathLike[str] | None) -> None:
        """Find and load libllama, the model, and the context; `library` names a libllama, as for `Engine`."""
        self.base = base
        self.head = classifier_head(base)
        """The model's classifier head; None where it does not rank."""
        self._model_users = 0
        self._user_left = threading.Condition()
        self._rank = options.bank_rank
        self._dtype = DTYPES[options.bank_dtype]
        self._kernel = options.kernel
        self.bank: Bank | None = None
        self.placeholder_adapter: Adapter | None = None
        """An adapter of zeros that is active in every mixed step: its operations are those that the bank replaces."""
        self.used: frozenset[str] = frozenset()
        """Names of the tensors that the graph multiplies by adapters."""
        self.plan = Plan("none", "")
        self.attention = "the bank's kernel is not compiled"
        """"compiled" where the compiled kernel computes attention over a few rows, else why libllama does."""
        proven = find(None if library is None else str(library))
        loaded = open_library(proven.path, proven.family, gpu=options.is_offloaded)
        self.instance = Instance(
            loaded,
            base.path,
            options.context_options(base, most_sequences=int(loaded.lib.llama_max_parallel_sequences())),
            reader=lambda path: read_adapter(path).content,
            n_gpu_layers=options.n_gpu_layers,
            frees_adapters=proven.frees_adapters is not False,
            prepare=self._prepare,
        )

    @contextmanager
    def sharing(self) -> Iterator[Model]:
        """Return the model, and keep it open for the length of the block; any thread. `ClosedError` after `close`."""
        self.instance.refuse_fork()
        with self._user_left:
            model = self.instance.model
            self._model_users += 1
        try:
            yield model
        finally:
            with self._user_left:
                self._model_users -= 1
                self._user_left.notify_all()

    def enter_bank(self, rows: RowTable, outputs: RowTable | None = None) -> None:
        """Let the bank apply `rows` in the next decode; `outputs` are the rows with logits, by default all."""
        bank, placeholder_adapter = self.bank, self.placeholder_adapter
        assert bank is not None and placeholder_adapter is not None  # noqa: S101, PT018 - the caller has checked
        self.instance.context.set_adapters({placeholder_adapter: 1.0})
        bank.store.set_rows(rows, rows if outputs is None else outputs)

    def pin(self, name: str, content: Content) -> None:
        """Load an adapter into the bank and exclude it from eviction; `LoraError` when the bank cannot take it now."""
        bank = self.bank
        if bank is None or not bank.holds(content):
            message = f"{name!r} cannot be pinned: {self.plan.fallback_reason or 'the bank cannot hold it'}"
            raise LoraError(message)
        bank.refuse_too_large({content.digest: content.info.rank})
        if not bank.acquire([content]):
            message = (
                f"{name!r} takes {content.info.rank} of {bank.allocator.capacity} rank units, "
                "and running requests use too many; try again later"
            )
            raise LoraError(message)
        bank.allocator.pinned.add(content.digest)
        bank.release([content])

    def unpin_all_but(self, known: set[str]) -> None:
        """Unpin all adapters but those with these digests; running sequences keep theirs."""
        if self.bank is not None:
            self.bank.allocator.pinned &= known

    def close(self) -> None:
        """Wait for all blocks of `sharing`, then free everything. Idempotent."""
        with self._user_left:
            self._user_left.wait_for(lambda: not self._model_users)
            self.instance.close()
        if self.bank is not None and self.instance.is_ours:
            self.bank.store.close()

    def _prepare(self, instance: Instance) -> Hook | None:
        """Load an adapter of zeros, find its operations in the graph, and make the store that replaces them."""
        shapes = {name: shape for name, shape in self.base.tensors.items() if _takes_adapters(name, shape)}
        probe = instance.add(_zeros(self.base.architecture, shapes, 1), label="the engine's bank")
        found = find_adapter_ops(instance.model, probe)
        self.used = found.used_targets | self._used_embeddings(instance)
        self.plan = self._choose(instance)
        chains = found.ops
        if self.plan.kernel == "none" or not chains:
            if self.plan.kernel != "none":
                self.plan = Plan("none", "this model's graph computes every tensor without adapters")
            instance.free(probe)
            return None
        shapes = {chain.target: shapes[chain.target] for chain in chains}
        self._demand_memory(shapes)
        self.placeholder_adapter = probe
        if self.plan.kernel == "python" and any(chain.experts > 1 for chain in chains):
            instance.free(probe)
            self.placeholder_adapter = instance.add(
                _zeros(self.base.architecture, shapes, with_spare(self._rank), self._dtype), label="the bank"
            )
            chains = find_adapter_ops(instance.model, self.placeholder_adapter).ops
        # The base's shapes are in GGUF's order: in, out, experts.
        sizes = [(shapes[chain.target][0], shapes[chain.target][1]) for chain in chains]
        store: CompiledLoraHook | ExpertRewriteHook
        if self.plan.kernel == "compiled":
            store = CompiledLoraHook(instance.library, chains, sizes, units=self._rank, dtype=self._dtype)
            self.attention = store.attention.verify(instance.model, instance.context_options) or "compiled"
        else:
            store = ExpertRewriteHook(instance.library, chains, sizes, units=self._rank, dtype=self._dtype)
        self.bank = Bank(store, [chain.target for chain in chains], self._rank)
        return store

    def _used_embeddings(self, instance: Instance) -> frozenset[str]:
        """The embedding table's name where the graph applies adapters to it; the bank cannot hold such adapters."""
        shape = self.base.tensors.get(_EMBEDDINGS)
        if shape is None or self.base.tied:  # libllama aborts on adapters of an embedding table that is also the output
            return frozenset()
        factors = np.zeros((1, shape[1]), np.float32), np.zeros((shape[0], 1), np.float32)
        content = factor_bytes({_EMBEDDINGS: factors}, architecture=self.base.architecture, alpha=0.0, metadata={}, dtype="F16")
        probe = instance.add(content, label="the engine's look at the embeddings")
        used = find_adapter_ops(instance.model, probe).used_targets
        instance.free(probe)
        return used

    def _choose(self, instance: Instance) -> Plan:
        """Choose the kernel that applies the bank."""
        devices = backends.devices(instance.library.ffi, instance.library.lib)
        foreign = sorted(device.name for device in devices if device.kind != "cpu")
        if self._kernel == "none" or self._rank == 0:
            return Plan("none", "the engine was made without a bank")
        if instance.context_options.offload or "accel" in {device.kind for device in devices}:
            return Plan("none", f"operations may run on {', '.join(foreign) or 'another device'}, not on this CPU")
        if instance.model.is_recurrent:
            return Plan("none", "the model is recurrent: its memory reorders the rows of a batch")
        has_numba = importlib.util.find_spec("numba") is not None
        if self._kernel == "compiled" and not has_numba:
            message = "kernel='compiled' needs numba; install it: pip install 'llamafu[fast]'"
            raise ContextInitError(message, code=ErrorCode.INVALID_PARAM)
        if self._kernel == "python" or not has_numba:
            return Plan("python", "")
        return Plan("compiled", "")

    def _demand_memory(self, shapes: dict[str, tuple[int, ...]]) -> None:
        a = np.dtype(self._dtype).itemsize
        b = a if self.plan.kernel == "compiled" else np.dtype(np.float32).itemsize
        per_unit = sum((shape[0] * a + shape[1] * b) * math.prod(shape[2:]) for shape in shapes.values())
        needed, there = per_unit * self._rank, machine_bytes()
        if needed > there / 2:
            fitting = int(there / 2 / (needed / self._rank))
            message = (
                f"bank_rank={self._rank} takes {needed / 1e9:.1f} GB for this model, more than half of this machine's "
                f"{there / 1e9:.1f} GB; use at most bank_rank={fitting}"
            )
            raise ContextInitError(message, code=ErrorCode.OUT_OF_MEMORY)


def _takes_adapters(name: str, shape: tuple[int, ...]) -> bool:
    """Whether libllama may apply adapters to a tensor: to matrices and stacks of experts, without the embeddings."""
    dimensions = _STACK if is_expert(name) else _MATRIX
    return name.endswith(".weight") and len(shape) == dimensions and min(shape) > 1 and name != _EMBEDDINGS


def _zeros(
    architecture: str, shapes: dict[str, tuple[int, ...]], rank: int, dtype: type[np.float16 | np.float32] = np.float16
) -> bytes:
    """Return an adapter of zeros for tensors of these shapes (GGUF's order): experts get `rank`, others rank 1."""
    tensors = {}
    for name, shape in shapes.items():
        own = rank if is_expert(name) else 1
        tensors[name] = np.zeros((*shape[2:], own, shape[0]), np.float32), np.zeros((*shape[2:], shape[1], own), np.float32)
    return factor_bytes(
        tensors, architecture=architecture, alpha=0.0, metadata={}, dtype="F16" if dtype is np.float16 else "F32"
    )
