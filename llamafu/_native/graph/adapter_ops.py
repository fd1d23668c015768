"""Where an adapter acts in a model's graph.

libllama computes `y + s (B (A x))` in four operations for each adapted tensor: A x, B of that, the scale, the sum. The
engine puts its own operation in their place, so it has to know exactly which they are. A probing decode finds them.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llamafu._native.context import Context, ContextOptions
from llamafu._native.graph.eval_callback import Watcher
from llamafu.errors import DecodeError

if TYPE_CHECKING:
    from llamafu._native.adapter import Adapter
    from llamafu._native.model import Model

_A, _B = ".lora_a", ".lora_b"


@dataclass(frozen=True, slots=True)
class Chain:
    """The four operations of one adapted tensor, known by the factors that the first two multiply by."""

    target: str
    a: int
    """Address of the tensor A."""
    b: int
    """Address of the tensor B."""
    a_data: int
    b_data: int
    experts: int
    """How many experts A and B are stacked for; 1 for a plain matrix."""
    used: int
    """How many experts a token goes through; 1 for a plain matrix."""


@dataclass(frozen=True, slots=True)
class _Node:
    op: int
    kind: int
    sources: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """What a probing decode saw of an adapter."""

    chains: tuple[Chain, ...]
    used: frozenset[str]
    """Every target that the graph multiplies by the adapter, also where the operations around it are others."""


def find_chains(model: Model, adapter: Adapter) -> Found:
    """Build the graph of one token with `adapter` and find its operations; nothing is computed on CPU backends."""
    survey = _Survey(model)
    context = Context(model, ContextOptions(n_ctx=64, n_batch=1), hook=Watcher(model.library, survey.note))
    try:
        context.abort_at_once()
        context.set_adapters({adapter: 1.0})
        with model.library.logs.quiet(), contextlib.suppress(DecodeError):
            context.decode([max(model.bos, 0)], 0)
        return survey.result()  # before the graph is freed, whose tensors it reads
    finally:
        context.close()


class _Survey:
    """Notes every operation of one graph."""

    def __init__(self, model: Model) -> None:
        self._library = model.library
        self._nodes: dict[int, _Node] = {}
        self._readers: dict[int, list[int]] = {}
        self._first: dict[str, int] = {}
        self._factors: dict[str, Any] = {}

    def note(self, tensor: Any, ask: bool) -> bool:  # noqa: FBT001 - the C signature
        if not ask:
            return False
        ffi = self._library.ffi
        address = int(ffi.cast("intptr_t", tensor))
        pointers = [source for source in tensor.src if source != ffi.NULL]
        sources = tuple(int(ffi.cast("intptr_t", source)) for source in pointers)
        self._nodes[address] = _Node(int(tensor.op), int(tensor.type), sources)
        for source in sources:
            self._readers.setdefault(source, []).append(address)
        for source in pointers[:1]:
            name = ffi.string(source.name).decode("utf-8", "replace")
            if name.endswith((_A, _B)):
                self._factors[name] = source
                if name.endswith(_A):
                    self._first[name.removesuffix(_A)] = address
        return False

    def result(self) -> Found:
        chains = (self._chain(target, address) for target, address in self._first.items())
        return Found(tuple(chain for chain in chains if chain is not None), frozenset(self._first))

    def _chain(self, target: str, first: int) -> Chain | None:
        """Follow the operations; None where they are not the four that are expected, each read by the next alone."""
        numbers = self._library.operations
        wanted = [{numbers["MUL_MAT"], numbers["MUL_MAT_ID"]}] * 2 + [{numbers["SCALE"]}, {numbers["ADD"]}]
        address = first
        for place, legal in enumerate(wanted):
            node = self._nodes[address]
            if node.op not in legal or node.kind != self._library.types["f32"]:
                return None
            if place == len(wanted) - 1:
                break
            readers = self._readers.get(address, [])
            if len(readers) != 1 or readers[0] not in self._nodes:
                return None
            place_of = self._nodes[readers[0]].sources.index(address)
            if place_of != (0 if place == 1 else 1):  # the scale has it as its first source, the others as their second
                return None
            address = readers[0]
        a, b = self._factors[target + _A], self._factors.get(target + _B)
        if b is None:
            return None
        ffi = self._library.ffi
        stacked = self._nodes[first].op == numbers["MUL_MAT_ID"]
        ids = next(iter(self._pointers(first)[2:3]), None) if stacked else None
        return Chain(
            target=target,
            a=int(ffi.cast("intptr_t", a)),
            b=int(ffi.cast("intptr_t", b)),
            a_data=int(ffi.cast("intptr_t", a.data)),
            b_data=int(ffi.cast("intptr_t", b.data)),
            experts=int(a.ne[2]) if stacked else 1,
            used=int(ids.ne[0]) if ids is not None else 1,
        )

    def _pointers(self, address: int) -> list[Any]:
        return [self._library.ffi.cast("struct ggml_tensor *", source) for source in self._nodes[address].sources]
