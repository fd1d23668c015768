"""Where an adapter acts in a model's graph.

libllama computes `y + s (B (A x))` in four operations for each adapted tensor: A x, B of that, the scale, the sum. The
engine puts its own operation in their place, so it has to know exactly which they are. And some graphs compute a
projection without looking for adapters: such an adapter loads, and does nothing there. A probing decode tells both.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llamafu._native.context import Context
from llamafu._native.graph.eval_callback import EvalCallback
from llamafu.errors import DecodeError, ErrorCode

if TYPE_CHECKING:
    from llamafu._native.adapter import Adapter
    from llamafu._native.context_options import ContextOptions
    from llamafu._native.library import Library
    from llamafu._native.model import Model

_A, _B = ".lora_a", ".lora_b"


@dataclass(frozen=True, slots=True)
class AdapterOps:
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
    buffer_type: Any = None
    """Of the memory that the first three write to (`ggml_backend_buffer_type_t`); None where it differs."""


@dataclass(frozen=True, slots=True)
class AdapterGraph:
    """What a probing decode saw of an adapter."""

    ops: tuple[AdapterOps, ...]
    """Of every target whose four operations are the expected ones."""
    used_targets: frozenset[str]
    """Every target that the graph multiplies by the adapter, also where the operations around it are others."""


class GraphProbe:
    """Owns a context for graphs of one token, made by the first `find` with the flags of the real one, `options`.

    On CPU backends every operation of a graph is announced before any is computed: the decode is aborted at once, and
    nothing is computed. With devices, operations are announced and computed part by part, so the decode runs to its end. It
    gets a context of its own then, since a change of a context's adapters makes its backends allocate anew, and some
    drivers do not survive many of that. The caller holds the model's lock, and closes the probe before the model.
    """

    def __init__(self, model: Model, options: ContextOptions) -> None:
        self._model = model
        self._options = replace(
            options, n_ctx=64, n_batch=1, n_ubatch=None, n_threads=1, n_seq_max=1, embeddings=False, n_outputs=0
        )
        self._operations = _Operations(model.library)
        self._context: Context | None = None

    def close(self) -> None:
        """Free the context. Idempotent."""
        context, self._context = self._context, None
        if context is not None:
            context.close()

    def find(self, adapter: Adapter) -> AdapterGraph:
        """Build the graph of one token with `adapter` and return where the adapter is in it; DecodeError where it fails."""
        self._operations.clear()
        if self._options.offload:
            with contextlib.closing(self._open()) as context:
                return self._probe(context, adapter)
        if self._context is None:
            self._context = self._open()
            self._context.abort_at_once()
        try:
            return self._probe(self._context, adapter)
        finally:
            self._context.set_adapters({})
            self._context.clear()

    def _open(self) -> Context:
        return Context(self._model, self._options, hook=EvalCallback(self._model.library, self._operations.record))

    def _probe(self, context: Context, adapter: Adapter) -> AdapterGraph:
        context.set_adapters({adapter: 1.0})
        with self._model.library.logs.quiet():
            try:
                context.decode([max(self._model.bos, 0)], 0)
            except DecodeError as error:
                if error.code != ErrorCode.ABORTED:  # an adapter whose graph fails is not one that the graph leaves out
                    raise
        return self._operations.adapter_graph()  # it reads tensors of the graph, which the next decode may free


def find_adapter_ops(model: Model, adapter: Adapter, options: ContextOptions) -> AdapterGraph:
    """Return where `adapter` is in the graph that a context of `options` has, with one that lives for this call."""
    with contextlib.closing(GraphProbe(model, options)) as probe:
        return probe.find(adapter)


def factor_name(name: str) -> str:
    """Return the name of a factor, as the adapter has it, of what a graph calls it.

    Where an operation runs on another device than its sources lie on, ggml copies those, and names a copy `DEVICE#NAME#0`.
    """
    return name.split("#")[1] if "#" in name else name


@dataclass(frozen=True, slots=True)
class _Node:
    op: int
    kind: int
    sources: tuple[int, ...]
    buffer_type: Any


class _Operations:
    """Records every operation of one graph, by the address of its tensor."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self.clear()

    def clear(self) -> None:
        """Forget the graph before."""
        self._nodes: dict[int, _Node] = {}
        self._readers: dict[int, list[int]] = {}
        self._first: dict[str, int] = {}
        self._factors: dict[str, Any] = {}

    def record(self, tensor: Any, ask: bool) -> bool:  # noqa: FBT001 - the C signature
        """Note an operation that is announced."""
        if not ask:
            return False
        ffi = self._library.ffi
        address = int(ffi.cast("intptr_t", tensor))
        pointers = [source for source in tensor.src if source != ffi.NULL]
        sources = tuple(int(ffi.cast("intptr_t", source)) for source in pointers)
        self._nodes[address] = _Node(int(tensor.op), int(tensor.type), sources, self._buffer_type(tensor))
        for source in sources:
            self._readers.setdefault(source, []).append(address)
        for source in pointers[:1]:  # where every operation that multiplies by a factor has it
            name = factor_name(ffi.string(source.name).decode("utf-8", "replace"))
            if name.endswith((_A, _B)):
                self._factors[name] = source
                if name.endswith(_A):
                    self._first[name.removesuffix(_A)] = address
        return False

    def adapter_graph(self) -> AdapterGraph:
        """Find the adapter in what was recorded."""
        found = (self._ops_of(target, address) for target, address in self._first.items())
        return AdapterGraph(tuple(ops for ops in found if ops is not None), frozenset(self._first))

    def _ops_of(self, target: str, first: int) -> AdapterOps | None:
        """Return the operations of a target; None where they are not the four that are expected."""
        a, b = self._factors[target + _A], self._factors.get(target + _B)
        if b is None or not self._is_expected(first):
            return None
        ffi = self._library.ffi
        types = {self._nodes[node].buffer_type for node in self._writers(first)}
        stacked = self._nodes[first].op == self._library.operations["MUL_MAT_ID"]
        ids = next(iter(self._pointers(first)[2:3]), None) if stacked else None
        return AdapterOps(
            target=target,
            a=int(ffi.cast("intptr_t", a)),
            b=int(ffi.cast("intptr_t", b)),
            a_data=int(ffi.cast("intptr_t", a.data)),
            b_data=int(ffi.cast("intptr_t", b.data)),
            experts=int(a.ne[2]) if stacked else 1,
            used=int(ids.ne[0]) if ids is not None else 1,
            buffer_type=types.pop() if len(types) == 1 else None,
        )

    def _writers(self, first: int) -> tuple[int, int, int]:
        """Return a target's operations A x, B of that, and the scale."""
        second = self._readers[first][0]
        return first, second, self._readers[second][0]

    def _buffer_type(self, tensor: Any) -> Any:
        """Return the type of the memory that an operation writes to, None where it has none yet."""
        buffer = tensor.buffer if tensor.view_src == self._library.ffi.NULL else tensor.view_src.buffer
        if buffer == self._library.ffi.NULL:
            return None
        return self._library.lib.ggml_backend_buffer_get_type(buffer)

    def _is_expected(self, address: int) -> bool:
        """Follow the readers from A x on: two products, a scale and a sum, each read by the next alone."""
        numbers = self._library.operations
        products = {numbers["MUL_MAT"], numbers["MUL_MAT_ID"]}
        expected = (products, products, {numbers["SCALE"]}, {numbers["ADD"]})
        for index, ops in enumerate(expected):
            node = self._nodes[address]
            if node.op not in ops or node.kind != self._library.types["f32"]:
                return False
            if index == len(expected) - 1:
                break
            readers = self._readers.get(address, [])
            if len(readers) != 1 or readers[0] not in self._nodes:
                return False
            source = self._nodes[readers[0]].sources.index(address)
            if source != (0 if index == 1 else 1):  # the scale has it as its first source, the others as their second
                return False
            address = readers[0]
        return True

    def _pointers(self, address: int) -> list[Any]:
        return [self._library.ffi.cast("struct ggml_tensor *", source) for source in self._nodes[address].sources]
