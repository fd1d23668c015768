"""Making an engine's bank: which tensors adapters act on, what applies them, and the store that holds them."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from llamafu._native import backends
from llamafu._native.batched_lora.compiled import CompiledLoraHook
from llamafu._native.batched_lora.device import DeviceLoraHook
from llamafu._native.batched_lora.device_place import padded_units
from llamafu._native.batched_lora.device_support import refusal
from llamafu._native.batched_lora.rewritten import ExpertRewriteHook
from llamafu._native.batched_lora.slot_layout import with_spare
from llamafu._native.graph.adapter_ops import find_adapter_ops
from llamafu._util.system.hardware import machine_bytes
from llamafu.adapters.writer import factor_bytes
from llamafu.adapters.zeros import EMBEDDINGS, takes_adapters, zero_adapter
from llamafu.engine.bank import Bank
from llamafu.engine.engine_options import DTYPES, KERNELS
from llamafu.errors import ContextInitError, ErrorCode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llamafu._native.adapter import Adapter
    from llamafu._native.context import Hook
    from llamafu._native.graph.adapter_ops import AdapterOps
    from llamafu._native.instance import Instance
    from llamafu.adapters.gguf.base_model import BaseModel
    from llamafu.engine.engine_options import EngineOptions

_LABEL = "the engine's bank"


@dataclass(frozen=True, slots=True)
class Plan:
    """Which kernel applies the bank; `fallback_reason` says why none can, where it is "none"."""

    kernel: Literal["compiled", "python", "device", "none"]
    fallback_reason: str


class BankSetup:
    """Makes the bank of an engine whose model is loaded and whose context is still to come.

    used: names of the tensors that the graph multiplies by adapters.
    plan: what applies the bank.
    bank: None where nothing does.
    placeholder_adapter: one of zeros that is active in every mixed step: its operations are those that the bank replaces.
    refused: why the bank cannot hold adapters of these tensors, which the graph does multiply by adapters.
    attention: "compiled" where the compiled kernel computes attention over a few rows, else why libllama does.
    """

    def __init__(self, base: BaseModel, options: EngineOptions) -> None:
        self._base = base
        self._kernel, self._rank = options.kernel, options.bank_rank
        self._dtype = DTYPES[options.bank_dtype]
        self.used: frozenset[str] = frozenset()
        self.plan = Plan("none", "")
        self.bank: Bank | None = None
        self.placeholder_adapter: Adapter | None = None
        self.refused: Mapping[str, str] = {}
        self.attention = "the bank's kernel is not compiled"

    @property
    def bytes_per_value(self) -> float:
        """What the bank takes on a device for each input and output of a matrix."""
        return 0.0 if self._kernel == "none" else float(padded_units(self._rank) * np.dtype(self._dtype).itemsize)

    def prepare(self, instance: Instance) -> Hook | None:
        """Load an adapter of zeros, find its operations in the graph, and make the store that replaces them."""
        self.plan = self._choose(instance)
        if self.plan.kernel == "device":
            # Copies of a layer's weights to a device, for the length of a large batch, would take its factors along.
            instance.context_options = replace(instance.context_options, op_offload=False)
        shapes = {name: shape for name, shape in self._base.tensors.items() if takes_adapters(name, shape)}
        probe = instance.add(zero_adapter(self._base.architecture, shapes), label=_LABEL)
        found = find_adapter_ops(instance.model, probe, instance.context_options)
        self.used = found.used_targets | self._used_embeddings(instance)
        ops = self._held(instance, found.ops, shapes)
        if self.plan.kernel == "none" or not ops:
            if self.plan.kernel != "none":
                why = next(iter(self.refused.values()), "this model's graph computes every tensor without adapters")
                self.plan = Plan("none", why)
            instance.free(probe)
            return None
        shapes = {each.target: shapes[each.target] for each in ops}
        self._demand_memory(instance, ops, shapes)
        self.placeholder_adapter = probe
        stacks = self.plan.kernel == "python" and any(each.experts > 1 for each in ops)
        if stacks or self.refused:
            instance.free(probe)
            content = zero_adapter(self._base.architecture, shapes, with_spare(self._rank) if stacks else 1, self._dtype)
            self.placeholder_adapter = instance.add(content, label=_LABEL)
        if stacks:  # whose operations' factors are the bank
            ops = find_adapter_ops(instance.model, self.placeholder_adapter, instance.context_options).ops
        store = self._make_store(instance, ops, shapes)
        self.bank = Bank(store, [each.target for each in ops], self._rank)
        return store

    def _make_store(
        self, instance: Instance, ops: Sequence[AdapterOps], shapes: Mapping[str, tuple[int, ...]]
    ) -> CompiledLoraHook | ExpertRewriteHook | DeviceLoraHook:
        # The base's shapes are in GGUF's order: in, out, experts.
        sizes = [(shapes[each.target][0], shapes[each.target][1]) for each in ops]
        library, units, dtype = instance.library, self._rank, self._dtype
        if self.plan.kernel == "device":
            rows = instance.context_options.n_batch
            return DeviceLoraHook(library, ops, sizes, units=units, dtype=dtype, rows=rows)
        if self.plan.kernel == "python":
            return ExpertRewriteHook(library, ops, sizes, units=units, dtype=dtype)
        store = CompiledLoraHook(library, ops, sizes, units=units, dtype=dtype)
        self.attention = store.attention.verify(instance.model, instance.context_options) or "compiled"
        return store

    def _held(
        self, instance: Instance, ops: Sequence[AdapterOps], shapes: Mapping[str, tuple[int, ...]]
    ) -> Sequence[AdapterOps]:
        """Return the operations that the plan can replace; what devices cannot compute is `refused` by name."""
        if self.plan.kernel != "device":
            return ops
        rows = instance.context_options.n_batch
        reasons = {
            each.target: refusal(
                instance.library,
                each,
                (shapes[each.target][0], shapes[each.target][1]),
                units=self._rank,
                dtype=self._dtype,
                rows=rows,
            )
            for each in ops
        }
        self.refused = {target: why for target, why in reasons.items() if why}
        return [each for each in ops if each.target not in self.refused]

    def _used_embeddings(self, instance: Instance) -> frozenset[str]:
        """The embedding table's name where the graph applies adapters to it; the bank cannot hold such adapters."""
        shape = self._base.tensors.get(EMBEDDINGS)
        if shape is None or self._base.tied:  # libllama aborts on adapters of an embedding table that is also the output
            return frozenset()
        factors = np.zeros((1, shape[1]), np.float32), np.zeros((shape[0], 1), np.float32)
        content = factor_bytes({EMBEDDINGS: factors}, architecture=self._base.architecture, alpha=0.0, metadata={}, dtype="F16")
        probe = instance.add(content, label="the engine's look at the embeddings")
        used = find_adapter_ops(instance.model, probe, instance.context_options).used_targets
        instance.free(probe)
        return used

    def _choose(self, instance: Instance) -> Plan:
        """Choose the kernel that applies the bank."""
        if self._kernel == "none" or self._rank == 0:
            return Plan("none", "the engine was made without a bank")
        devices = backends.devices(instance.library.ffi, instance.library.lib)
        foreign = sorted(device.name for device in devices if device.kind == "accel")
        if foreign:
            return Plan("none", f"operations may run on {', '.join(foreign)}, not on this CPU")
        if instance.model.is_recurrent:
            return Plan("none", "the model is recurrent: its memory reorders the rows of a batch")
        offloads = instance.context_options.offload
        if self._kernel not in (("auto", "device") if offloads else KERNELS):
            message = (
                f"kernel={self._kernel!r} does not go with where layers are computed: {instance.placement.note}; use 'auto'"
            )
            raise ContextInitError(message, code=ErrorCode.INVALID_PARAM)
        if offloads or self._kernel == "device":
            return Plan("device", "")
        has_numba = importlib.util.find_spec("numba") is not None
        if self._kernel == "compiled" and not has_numba:
            message = "kernel='compiled' needs numba; install it: pip install 'llamafu[fast]'"
            raise ContextInitError(message, code=ErrorCode.INVALID_PARAM)
        if self._kernel == "python" or not has_numba:
            return Plan("python", "")
        return Plan("compiled", "")

    def _demand_memory(self, instance: Instance, ops: Sequence[AdapterOps], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse a bank that takes more than half of this machine's memory, or more than is free on a device."""
        a = np.dtype(self._dtype).itemsize
        b = np.dtype(np.float32).itemsize if self.plan.kernel == "python" else a
        per_unit = {name: (shape[0] * a + shape[1] * b) * math.prod(shape[2:]) for name, shape in shapes.items()}
        self._demand_fit(sum(per_unit.values()), machine_bytes() / 2, "half of this machine's memory")
        if self.plan.kernel != "device":
            return
        lib, ffi = instance.library.lib, instance.library.ffi
        for buffer_type in {each.buffer_type for each in ops}:
            device = lib.ggml_backend_buft_get_device(buffer_type)
            if device == ffi.NULL or lib.ggml_backend_buft_is_host(buffer_type):
                continue
            found = backends.device(ffi, lib, device)
            needed = sum(per_unit[each.target] for each in ops if each.buffer_type == buffer_type)
            if found.total:
                self._demand_fit(needed, found.free, f"what is free on {found.name}")

    def _demand_fit(self, per_unit: float, there: float, what: str) -> None:
        if per_unit * self._rank > there:
            message = (
                f"bank_rank={self._rank} takes {per_unit * self._rank / 1e9:.1f} GB for this model, more than {what} "
                f"({there / 1e9:.1f} GB); use at most bank_rank={int(there / per_unit)}"
            )
            raise ContextInitError(message, code=ErrorCode.OUT_OF_MEMORY)
