"""A hook that shows chosen matrix products of a decode to Python, which may replace their results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from llamafu._native.graph.eval_callback import EvalCallback
from llamafu._native.graph.tensor_memory import host_view
from llamafu.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np
    from numpy.typing import NDArray

    from llamafu._native.library import Library

    Array = NDArray[np.float32]

_FLOAT = 4  # bytes


class Product(NamedTuple):
    """The product of a matrix with its inputs."""

    name: str
    """Of the matrix."""
    source: object
    """Identifies the input: equal for products of the same one."""
    x: Array
    """The inputs, [rows, in]."""
    y: Array
    """The outputs, [rows, out]."""
    residual: Array | None
    """What the model adds to y in its next operation, [rows, out]; None if that is no sum."""


class MatmulHook:
    """Calls `take(product)` for every product of a matrix in `names`.

    The model continues with what `take` writes into `product.y`. It must not write to the other arrays, and must keep none of
    them: they are views of ggml's memory. An exception ends the decode, and `check` raises it. One thread at a time.
    """

    def __init__(self, library: Library, names: Iterable[str], take: Callable[[Product], None]) -> None:
        self._library = library
        self._names = frozenset(names)
        self._take = take
        self._seen: set[str] = set()
        self._names_of: dict[Any, str] = {}
        self._pending: tuple[str, Any] | None = None
        self._error: BaseException | None = None
        self._callback = EvalCallback(library, self._on_node)

    def install(self, params: Any) -> None:
        """Enter the callback into `llama_context_params`."""
        self._callback.install(params)

    def check(self) -> None:
        """Show the last product, or raise what ended the decode: DecodeError for products that are not contiguous float32.

        Or that lie in the memory of a device, where they cannot be read.
        """
        if self._error is not None:
            raise self._error
        self._hand_over(None)

    @property
    def missing(self) -> list[str]:
        """The matrices that no operation has multiplied by."""
        return sorted(self._names - self._seen)

    def _on_node(self, tensor: Any, ask: bool) -> bool:  # noqa: FBT001 - the C signature
        if self._error is not None:
            return ask  # to ask for an operation and then refuse its result ends the decode
        try:
            return self._inspect(tensor, ask=ask)
        except BaseException as error:  # noqa: BLE001 - it would be lost in the C code that called
            self._error = error
            return False

    def _inspect(self, tensor: Any, *, ask: bool) -> bool:
        if not ask:  # its values stay in memory until the operations that are announced next are computed
            self._pending = (self._name(tensor.src[0]), tensor)
            return True
        if self._pending is not None and not self._selects_rows(tensor):
            self._hand_over(self._residual_of(self._pending[1], tensor))
        return bool(tensor.op == self._library.operations["MUL_MAT"]) and self._name(tensor.src[0]) in self._names

    def _selects_rows(self, tensor: Any) -> bool:
        """Tell whether this selects rows, as the last layer does between a product and its residual sum."""
        return bool(tensor.op == self._library.operations["GET_ROWS"])

    def _residual_of(self, product: Any, tensor: Any) -> Any:
        """Return the other term if this operation adds one of the same shape to `product`, else None."""
        if tensor.op != self._library.operations["ADD"]:
            return None
        terms = [tensor.src[0], tensor.src[1]]
        if product not in terms and all(map(self._selects_rows, terms)):
            terms = [term.src[0] for term in terms]
        others = [term for term in terms if term != product]
        alike = len(others) == 1 and list(others[0].ne) == list(product.ne) and self._packed(others[0])
        return others[0] if alike else None

    def _hand_over(self, residual: Any) -> None:
        """Show the pending product to `take`."""
        if self._pending is None:
            return
        (name, product), self._pending = self._pending, None
        inputs = product.src[1]
        if not (self._packed(inputs) and self._packed(product)):
            message = f"the products of {name} do not lie in memory as plain numbers; bake it without calibration"
            raise DecodeError(message)
        self._seen.add(name)
        added = None if residual is None else self._rows(residual)
        self._take(Product(name, inputs, self._rows(inputs), self._rows(product), added))

    def _name(self, weight: Any) -> str:
        name = self._names_of.get(weight)
        if name is None:
            name = self._names_of[weight] = self._library.ffi.string(weight.name).decode("utf-8", "replace")
        return name

    def _packed(self, tensor: Any) -> bool:
        """Tell whether a tensor is float32 and contiguous."""
        width, row = tensor.ne[0], tensor.nb[1]
        steps = (tensor.nb[0], row, tensor.nb[3]) == (_FLOAT, _FLOAT * width, row * tensor.ne[1] * tensor.ne[2])
        return steps and bool(tensor.type == self._library.types["f32"])

    def _rows(self, tensor: Any) -> Array:
        """Return a view of a tensor as a matrix, [rows, width]."""
        width, count = tensor.ne[0], tensor.ne[1] * tensor.ne[2] * tensor.ne[3]
        return host_view(self._library, tensor, (count, width))
