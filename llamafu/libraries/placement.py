"""Deciding which devices compute how many layers of a model, by the memory that their backends tell of."""

from __future__ import annotations

import logging
import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llamafu._native import backends
from llamafu._native.memory_needs import BYTES_PER_VALUE
from llamafu._native.placement import Placement
from llamafu._util.listing import listed

if TYPE_CHECKING:
    from llamafu._native.backends import Device
    from llamafu._native.context_options import ContextOptions
    from llamafu._native.device_options import DeviceOptions
    from llamafu._native.library import Library
    from llamafu.adapters.gguf.base_model import BaseModel

_LOG = logging.getLogger("llamafu.libraries")
_BLOCK = re.compile(r"blk\.(\d+)\.")
_MARGIN_BYTES, _MARGIN_SHARE = 256 << 20, 0.05
"""Left free on a device: what a driver and fragments take is not told by any call."""
_WIDE_ROWS = 16
"""Values that a row takes in a graph's buffers, as a multiple of the model's width."""


@dataclass(frozen=True, slots=True)
class LayerBytes:
    """What one layer takes on the device that computes it; `output` stands for the last matrix, which counts as a layer."""

    layers: tuple[int, ...]
    output: int
    graph: int
    """Of the buffers of the operations, once for each device."""

    @property
    def from_the_end(self) -> tuple[int, ...]:
        """In the order in which libllama offloads them."""
        return (self.output, *reversed(self.layers))


def place(
    library: Library, base: BaseModel, options: DeviceOptions, context: ContextOptions, *, bank_bytes: float = 0.0
) -> Placement:
    """Resolve the options for the devices of this machine; ValueError for one that it does not have.

    `bank_bytes`: what an engine's bank takes for each input and each output of a matrix that adapters may change.
    """
    on_cpu = Placement(use_mmap=options.use_mmap, use_mlock=options.use_mlock)
    if not options.wants_gpu:
        return on_cpu
    there = _usable(backends.devices(library.ffi, library.lib), options)
    if not there:
        note = "no GPU is there that this libllama can use: the CPU computes every layer (`llamafu doctor` lists devices)"
        _LOG.info("%s: %s", base.path.name, note)
        return replace(on_cpu, note=note)
    bytes_of = layer_bytes(base, context, bank_bytes=bank_bytes)
    total = len(bytes_of.layers) + 1
    layers, why = total, ""
    if options.n_gpu_layers == "auto":
        layers, why = _fitting(bytes_of, there, options)
    elif options.n_gpu_layers != -1:
        layers = min(options.n_gpu_layers, total)
    names = ", ".join(device.name for device in there)
    note = f"{names} computes {layers} of {total} layers (the output counts as one), the CPU the others{why}"
    if layers == total:
        note = f"{names} computes all {total} layers (the output counts as one){why}"
    if layers == 0:
        note = f"the CPU computes every layer: none fits into the memory of {names}{why}"
    _LOG.info("%s: %s", base.path.name, note)
    if layers == 0:
        return replace(on_cpu, note=note)
    return replace(
        on_cpu,
        layers=layers,
        devices=tuple(device.name for device in there),
        split_mode=options.split_mode,
        main_gpu=0 if options.split_mode == "none" else options.main_gpu,
        tensor_split=options.tensor_split,
        note=note,
    )


def layer_bytes(base: BaseModel, context: ContextOptions, *, bank_bytes: float = 0.0) -> LayerBytes:
    """Return what each layer takes: its weights, its part of the KV memory, and its part of an engine's bank."""
    matches = {name: _BLOCK.match(name) for name in base.tensors}
    count = 1 + max((int(match[1]) for match in matches.values() if match), default=-1)
    layers, output = [0.0] * count, 0.0
    for name, shape in base.tensors.items():
        size = base.sizes.get(name, 0) + (bank_bytes * (shape[0] + shape[1]) if len(shape) == 2 else 0)  # noqa: PLR2004
        if (match := matches[name]) is not None:
            layers[int(match[1])] += size
        elif name.startswith("output") or (base.tied and name == "token_embd.weight"):
            output += size
    if context.offload_kqv:
        kv = _kv_bytes(base, context)
        layers = [size + kv for size in layers]
    width = base.tensors.get("token_embd.weight", (0, 0))
    rows = min(context.n_ubatch or context.n_batch, context.n_ctx)
    graph = 4 * rows * (_WIDE_ROWS * width[0] + width[-1])
    return LayerBytes(tuple(math.ceil(size) for size in layers), math.ceil(output), graph)


def _kv_bytes(base: BaseModel, context: ContextOptions) -> float:
    """Return the bytes of one layer's keys and values, as if every layer kept every position."""

    def number(key: str, default: int) -> int:
        value = base.metadata.get(f"{base.architecture}.{key}")
        return value if isinstance(value, int) and not isinstance(value, bool) else default

    heads = max(number("attention.head_count", 1), 1)
    width = number("embedding_length", 0) // heads
    key = number("attention.key_length", width) * BYTES_PER_VALUE.get(context.type_k, 4.0)
    value = number("attention.value_length", width) * BYTES_PER_VALUE.get(context.type_v, 4.0)
    return context.n_ctx * number("attention.head_count_kv", heads) * (key + value)


def _usable(devices: list[Device], options: DeviceOptions) -> list[Device]:
    """Return the devices that layers go to: those that were named, else every GPU, or else every integrated one."""
    gpus = [device for device in devices if device.kind in backends.GPUS]
    if options.devices is not None:
        known = {device.name: device for device in gpus}
        for name in options.devices:
            if name not in known:
                message = f"devices names {name!r}, which this libllama does not have here (GPUs: {listed(known)})"
                raise ValueError(message)
        gpus = [known[name] for name in options.devices]
    else:
        gpus = [device for device in gpus if device.kind == "gpu"] or gpus
    if gpus and options.main_gpu >= len(gpus):
        message = (
            f"main_gpu={options.main_gpu}, but there are {len(gpus)} devices, counted from 0 ({listed([d.name for d in gpus])})"
        )
        raise ValueError(message)
    if gpus and options.tensor_split is not None and len(options.tensor_split) > len(gpus):
        message = f"tensor_split has {len(options.tensor_split)} shares, but there are {len(gpus)} devices"
        raise ValueError(message)
    return [gpus[options.main_gpu]] if gpus and options.split_mode == "none" else gpus


def _fitting(needed: LayerBytes, devices: list[Device], options: DeviceOptions) -> tuple[int, str]:
    """Return how many layers fit into the devices' free memory, and the figures for a note."""
    if any(not device.total for device in devices):
        return len(needed.layers) + 1, "; their memory is not told, so that nothing was counted"
    usable = [max(0.0, d.free - _MARGIN_BYTES - _MARGIN_SHARE * d.total - needed.graph) for d in devices]
    capacity = sum(usable)
    if options.tensor_split is not None and options.split_mode != "none":
        shares = [share / sum(options.tensor_split) for share in options.tensor_split]
        capacity = min(room / share for room, share in zip(usable, shares, strict=False) if share)
    taken, layers = 0, 0
    for size in needed.from_the_end:
        if taken + size > capacity:
            break
        taken, layers = taken + size, layers + 1
    return layers, f"; they take {taken / 1e9:.2f} GB of {capacity / 1e9:.2f} GB that can be used there"
