"""What works on a device, proven by use: the model, the adapter and the logits of the library's own proof."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np

from llamafu._native.adapter import Adapter
from llamafu._native.batched_lora.device import DeviceLoraHook
from llamafu._native.batched_lora.device_support import refusal
from llamafu._native.batched_lora.row_table import RowTable
from llamafu._native.context import Context
from llamafu._native.context_options import ContextOptions
from llamafu._native.graph.adapter_ops import find_adapter_ops
from llamafu._native.model import Model
from llamafu._native.placement import Placement
from llamafu.adapters.factors import factors, strength
from llamafu.adapters.file import read_adapter
from llamafu.adapters.gguf.base_model import read_base
from llamafu.adapters.zeros import takes_adapters, zero_adapter
from llamafu.errors import LlamafuError
from llamafu.libraries.self_test import FOLDER

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from llamafu._native.graph.adapter_ops import AdapterOps
    from llamafu._native.library import Library

WORKS = ""
"""In place of a reason why something does not."""
_TOLERANCE = 0.1
"""Of logits between -6 and 7, that the adapter moves by up to 1: devices compute products of float16."""
_ALL_LAYERS = 99
_OPTIONS = ContextOptions(n_ctx=64, n_batch=32, n_threads=1, n_seq_max=2, offload=True, op_offload=False, unified=True)


def prove_device(library: Library, name: str) -> dict[str, str]:
    """Return for "models", "adapters" and "mixing" why it does not work on the device of this name, or `WORKS`.

    The empty name stands for the CPU.
    """
    expected = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))
    placement = Placement(layers=_ALL_LAYERS, devices=(name,)) if name else Placement()
    result = dict.fromkeys(("models", "adapters", "mixing"), "")
    try:
        model = Model(library, FOLDER / "model.gguf", placement=placement)
    except LlamafuError as error:
        return dict.fromkeys(result, str(error))
    with closing(model):
        steps: Mapping[str, Callable[[Model, dict[str, Any]], None]] = {
            "models": _prove_model,
            "adapters": _prove_adapter,
            "mixing": _prove_mixing,
        }
        for what, prove in steps.items():
            try:
                prove(model, expected)
            except (LlamafuError, ArithmeticError) as error:
                result[what] = str(error)
    return result


def _prove_model(model: Model, expected: dict[str, Any]) -> None:
    with closing(Context(model, _OPTIONS)) as context:
        context.decode(expected["tokens"], 0)
        _compare(context.logits(), expected["logits"]["base"], "the base model's logits")


def _prove_adapter(model: Model, expected: dict[str, Any]) -> None:
    """Compare one adapter's logits. In a context of its own, since not every driver survives a change of a context's set."""
    path = FOLDER / "adapter.gguf"
    with (
        closing(Adapter(model, path.read_bytes(), label="the proof adapter")) as adapter,
        closing(Context(model, _OPTIONS)) as context,
    ):
        context.set_adapters({adapter: 1.0})
        context.decode(expected["tokens"], 0)
        _compare(context.logits(), expected["logits"]["1.0"], "an adapter's logits")


def _prove_mixing(model: Model, expected: dict[str, Any]) -> None:
    """Compute the base and the adapter in one batch, by the bank of an engine."""
    base, file = read_base(FOLDER / "model.gguf"), read_adapter(FOLDER / "adapter.gguf")
    shapes = {name: shape for name, shape in base.tensors.items() if takes_adapters(name, shape)}
    tokens = expected["tokens"]
    rank = file.info.rank
    with closing(Adapter(model, zero_adapter(base.architecture, shapes), label="the proof's bank")) as placeholder:
        ops = find_adapter_ops(model, placeholder, _OPTIONS).ops
        if not ops:
            message = "no tensor's operations are the expected ones"
            raise LlamafuError(message)
        for each in ops:
            size = shapes[each.target][0], shapes[each.target][1]
            if why := refusal(model.library, each, size, units=rank, dtype=np.float16, rows=_OPTIONS.n_batch):
                message = f"{each.target}: {why}"
                raise LlamafuError(message)
        sizes = [(shapes[each.target][0], shapes[each.target][1]) for each in ops]
        with closing(DeviceLoraHook(model.library, ops, sizes, units=rank, dtype=np.float16, rows=_OPTIONS.n_batch)) as hook:
            _fill(hook, ops, file)
            with closing(Context(model, _OPTIONS, hook=hook)) as context:
                context.set_adapters({placeholder: 1.0})
                nothing = np.empty(0, np.int32), np.empty(0, np.float32)
                adapted = np.arange(rank, dtype=np.int32), np.ones(rank, np.float32)
                hook.set_rows(
                    RowTable.of([(len(tokens), *nothing), (len(tokens), *adapted)]), RowTable.of([(1, *nothing), (1, *adapted)])
                )
                last = [False] * (len(tokens) - 1) + [True]
                code = context.compute(tokens * 2, [*range(len(tokens))] * 2, [0] * len(tokens) + [1] * len(tokens), last * 2)
                if code:
                    raise context.failure(code, "the mixed batch failed")
                hook.check()
                rows = context.output_rows(2)
                _compare(rows[0], expected["logits"]["base"], "the base model's logits in a mixed batch")
                _compare(rows[1], expected["logits"]["1.0"], "an adapter's logits in a mixed batch")


def _fill(hook: DeviceLoraHook, ops: tuple[AdapterOps, ...], file: Any) -> None:
    """Write the adapter's factors into the bank's first units."""
    for index, each in enumerate(ops):
        pair = factors(file, each.target)
        if pair is None:
            continue
        a, b = pair
        units = np.arange(len(a), dtype=np.int32)
        hook.a[index][units, 0], hook.b[index][units, 0] = a, b.T
        hook.strength[index, units] = strength(file, each.target)
        hook.publish(index, units)


def _compare(logits: NDArray[np.float32], wanted: list[float], what: str) -> None:
    worst = float(np.abs(logits - np.array(wanted)).max())
    if not worst <= _TOLERANCE:  # a NaN is no agreement
        message = f"{what} are off by {worst:.3g}, more than {_TOLERANCE}"
        raise ArithmeticError(message)
