"""A hook that hands chosen matrix products of a decode over to Python, which may write other results in their place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from llamafu._native.graph.eval_callback import Watcher
from llamafu.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from llamafu._native.library import Library

    Array = NDArray[np.float32]

_FLOAT = 4  # bytes


class Product(NamedTuple):
    """The product of a matrix with its inputs."""

    name: str
    """The matrix's."""
    source: object
    """Equal for products of one input."""
    x: Array
    """The inputs, [rows, in]."""
    y: Array
    """The outputs, [rows, out]."""
    residual: Array | None
    """What the model adds y to at once, [rows, out]; None if it does something else with it."""


class Products:
    """Calls `take(product)` for every product of a matrix in `names`.

    What `take` writes into `product.y` is what the model goes on with; the rest it must leave alone, and all of it ends with
    the call. An exception ends the decode at once, and `check` raises it. One thread at a time.
    """

    def __init__(self, library: Library, names: Iterable[str], take: Callable[[Product], None]) -> None:
        self._library = library
        self._names = frozenset(names)
        self._take = take
        self._met: set[str] = set()
        self._called: dict[Any, str] = {}
        self._waiting: tuple[str, Any] | None = None
        self._error: BaseException | None = None
        self._watcher = Watcher(library, self._on_node)

    def install(self, params: Any) -> None:
        """Enter the callback into `llama_context_params`."""
        self._watcher.install(params)

    def check(self) -> None:
        """Hand over the last product, or raise what ended the decode: DecodeError for products that are no plain numbers."""
        if self._error is not None:
            raise self._error
        self._hand_over(None)

    @property
    def missing(self) -> list[str]:
        """The matrices that nothing was multiplied with."""
        return sorted(self._names - self._met)

    def _on_node(self, tensor: Any, ask: bool) -> bool:  # noqa: FBT001 - the C signature
        if self._error is not None:
            return ask  # asked for, and then declined: that ends the decode
        try:
            return self._looked_at(tensor, ask=ask)
        except BaseException as error:  # noqa: BLE001 - it would be lost in the C code that called
            self._error = error
            return False

    def _looked_at(self, tensor: Any, *, ask: bool) -> bool:
        if not ask:  # it stays in memory as it is until `False` was said to all that is asked for next
            self._waiting = (self._name(tensor.src[0]), tensor)
            return True
        if self._waiting is not None and not self._passes_on(tensor):
            self._hand_over(self._residual(self._waiting[1], tensor))
        return bool(tensor.op == self._library.operations["MUL_MAT"]) and self._name(tensor.src[0]) in self._names

    def _passes_on(self, tensor: Any) -> bool:
        """Tell whether this chooses rows, as is done in the last layer, before what it chose from is added."""
        return bool(tensor.op == self._library.operations["GET_ROWS"])

    def _residual(self, product: Any, tensor: Any) -> Any:
        """Return what is added to `product` by this operation, if it is a sum."""
        if tensor.op != self._library.operations["ADD"]:
            return None
        terms = [tensor.src[0], tensor.src[1]]
        if product not in terms and all(map(self._passes_on, terms)):
            terms = [term.src[0] for term in terms]
        others = [term for term in terms if term != product]
        alike = len(others) == 1 and list(others[0].ne) == list(product.ne) and self._packed(others[0])
        return others[0] if alike else None

    def _hand_over(self, residual: Any) -> None:
        if self._waiting is None:
            return
        (name, product), self._waiting = self._waiting, None
        inputs = product.src[1]
        if not (self._packed(inputs) and self._packed(product)):
            message = f"the products of {name} do not lie in memory as plain numbers; bake it without calibration"
            raise DecodeError(message)
        self._met.add(name)
        added = None if residual is None else self._rows(residual)
        self._take(Product(name, inputs, self._rows(inputs), self._rows(product), added))

    def _name(self, weight: Any) -> str:
        name = self._called.get(weight)
        if name is None:
            name = self._called[weight] = self._library.ffi.string(weight.name).decode("utf-8", "replace")
        return name

    def _packed(self, tensor: Any) -> bool:
        width, row = tensor.ne[0], tensor.nb[1]
        steps = (tensor.nb[0], row, tensor.nb[3]) == (_FLOAT, _FLOAT * width, row * tensor.ne[1] * tensor.ne[2])
        return steps and bool(tensor.type == self._library.types["f32"])

    def _rows(self, tensor: Any) -> Array:
        width, count = tensor.ne[0], tensor.ne[1] * tensor.ne[2] * tensor.ne[3]
        return np.frombuffer(self._library.ffi.buffer(tensor.data, width * count * _FLOAT), np.float32).reshape(count, width)
