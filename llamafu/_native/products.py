"""A hook that hands chosen matrix products of a decode over to Python, which may write other results in their place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from llamafu._native.watcher import Watcher
from llamafu.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from llamafu._native.library import Library

    Array = NDArray[np.float32]

_FLOAT = 4  # bytes


class Products:
    """Calls `take(name, source, x, y)` for every product of a matrix in `names`: y [rows, out] of the inputs x [rows, in].

    What `take` writes into y is what the model goes on with; x it must leave alone, and both end with the call. Products of
    one input have an equal `source`. An exception ends the decode at once, and `check` raises it. One thread at a time.
    """

    def __init__(self, library: Library, names: Iterable[str], take: Callable[[str, object, Array, Array], None]) -> None:
        self._library = library
        self._names = frozenset(names)
        self._take = take
        self._met: set[str] = set()
        self._called: dict[Any, str] = {}
        self._error: BaseException | None = None
        self._watcher = Watcher(library, self._on_node)

    def install(self, params: Any) -> None:
        """Enter the callback into `llama_context_params`."""
        self._watcher.install(params)

    def check(self) -> None:
        """Raise what ended the decode, if anything did: DecodeError for a product that does not lie in memory as numbers."""
        if self._error is not None:
            raise self._error

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
        if tensor.op != self._library.operations["MUL_MAT"]:
            return False
        weight, inputs = tensor.src[0], tensor.src[1]
        name = self._called.get(weight)
        if name is None:
            name = self._called[weight] = self._library.ffi.string(weight.name).decode("utf-8", "replace")
        if name not in self._names:
            return False
        if not ask:
            self._met.add(name)
            self._take(name, inputs, self._rows(name, inputs), self._rows(name, tensor))
        return True

    def _rows(self, name: str, tensor: Any) -> Array:
        width, count = tensor.ne[0], tensor.ne[1] * tensor.ne[2] * tensor.ne[3]
        packed = (
            tensor.nb[0] == _FLOAT
            and tensor.nb[1] == _FLOAT * width
            and tensor.nb[3] == _FLOAT * width * tensor.ne[1] * tensor.ne[2]
        )
        if tensor.type != self._library.types["f32"] or not packed:
            message = f"the products of {name} do not lie in memory as plain numbers; bake it without calibration"
            raise DecodeError(message)
        return np.frombuffer(self._library.ffi.buffer(tensor.data, width * count * _FLOAT), np.float32).reshape(count, width)
