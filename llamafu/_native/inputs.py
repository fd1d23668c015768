"""A hook that adds up what goes into chosen matrices: the second moments of their inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from llamafu._native.watcher import Watcher
from llamafu.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from llamafu._native.library import Library

_FLOAT = 4  # bytes


class Inputs:
    """Sums x x^T over every row x that is multiplied with the matrices `names`. One thread at a time.

    Matrices with the same input share one sum.
    """

    def __init__(self, library: Library, names: Iterable[str]) -> None:
        self._library = library
        self._names = frozenset(names)
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._rows: dict[str, int] = {}
        self._owner: dict[str, str] = {}
        self._last: tuple[Any, str] = (None, "")
        self._called: dict[Any, str] = {}
        self._problem: str | None = None
        self._watcher = Watcher(library, self._on_node)

    def install(self, params: Any) -> None:
        """Enter the callback into `llama_context_params`."""
        self._watcher.install(params)

    def begin(self) -> None:
        """Prepare for a decode: its graph may lie elsewhere in memory."""
        self._called.clear()
        self._last = (None, "")

    def check(self) -> None:
        """Raise DecodeError if an input could not be read."""
        if self._problem:
            raise DecodeError(self._problem)

    @property
    def missing(self) -> list[str]:
        """The matrices that nothing was multiplied with."""
        return sorted(self._names - self._owner.keys())

    def moment(self, name: str) -> NDArray[np.float64]:
        """Return the mean of x x^T of a matrix that was met: [in, in]."""
        owner = self._owner[name]
        return self._sums[owner] / self._rows[owner]

    def _on_node(self, tensor: Any, ask: bool) -> bool:  # noqa: FBT001 - the C signature
        if tensor.op != self._library.operations["MUL_MAT"]:
            return False
        weight, rows = tensor.src[0], tensor.src[1]
        name = self._called.get(weight)
        if name is None:
            name = self._called[weight] = self._library.ffi.string(weight.name).decode("utf-8", "replace")
        if name not in self._names or self._problem:
            return False
        if ask:
            owner = self._owner.setdefault(name, self._last[1] if rows == self._last[0] else name)
            self._last = (rows, owner)
            return owner == name
        self._add(name, rows)
        return True

    def _add(self, name: str, rows: Any) -> None:
        width, count = rows.ne[0], rows.ne[1] * rows.ne[2] * rows.ne[3]
        packed = (
            rows.nb[0] == _FLOAT and rows.nb[1] == _FLOAT * width and rows.nb[3] == _FLOAT * width * rows.ne[1] * rows.ne[2]
        )
        if rows.type != self._library.types["f32"] or not packed:
            self._problem = f"the inputs of {name} do not lie in memory as plain numbers; bake it without calibration"
            return
        x = np.frombuffer(self._library.ffi.buffer(rows.data, width * count * _FLOAT), np.float32).reshape(count, width)
        if not np.isfinite(x).all():
            self._problem = f"the inputs of {name} are not finite; an adapter's weights may overflow"
            return
        self._sums[name] = self._sums.get(name, 0) + (x.T @ x).astype(np.float64)
        self._rows[name] = self._rows.get(name, 0) + count
