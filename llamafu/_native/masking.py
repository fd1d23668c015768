"""Different adapters for every row of one batch, without compiled code: one wide adapter and a mask in Python."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from llamafu._native.watcher import Watcher
from llamafu.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from llamafu._native.chains import Chain
    from llamafu._native.library import Library
    from llamafu._native.rows import RowTable


class Masking:
    """A context's hook that applies, row by row, the rank units of a bank. One thread at a time.

    The bank is a libllama adapter of rank `units` (`chains`), with factor 1, and must be the context's active one in every
    decode between `set_rows` and `check`. libllama computes A x for all its units; between that and B, this hook writes
    0 where a row does not use a unit (written, not multiplied: 0 times infinity would spread) and multiplies by the scale
    where it does. Same arrays as `Gather`, here views of libllama's own tensors.
    """

    compiled = False

    def __init__(
        self,
        library: Library,
        chains: Sequence[Chain],
        shapes: Sequence[tuple[int, int]],
        *,
        units: int,
        dtype: type[np.float16 | np.float32],
    ) -> None:
        self._library = library
        self._chains = tuple(chains)
        self._units = units
        # ggml keeps A as [experts, units, in] and B as [experts, out, units], last dimension first in memory.
        self.a = [
            _array(library, c.a_data, (c.experts, units, n), dtype).transpose(1, 0, 2)
            for c, (n, _) in zip(chains, shapes, strict=True)
        ]
        self.b = [
            _array(library, c.b_data, (c.experts, n, units), dtype).transpose(2, 0, 1)
            for c, (_, n) in zip(chains, shapes, strict=True)
        ]
        self.strength = np.zeros((len(chains), units), np.float32)
        self._target = {chain.a: i for i, chain in enumerate(chains)}
        self._scales: list[NDArray[np.float32]] = []
        self._fault = ""
        self._masked = 0
        self._watcher = Watcher(library, self._on_node)

    def install(self, params: Any) -> None:
        """Enter the callback into `llama_context_params`."""
        self._watcher.install(params)

    def set_rows(self, rows: RowTable, outputs: RowTable) -> None:
        """Say what the rows of the next decode use; `outputs` are those of them whose logits are wanted."""
        self._scales = [table.dense(self._units) for table in (rows, outputs)]
        self._fault, self._masked = "", 0

    def check(self) -> None:
        """Raise DecodeError unless every target was masked, once, over rows of the right number."""
        if not self._fault and self._masked != len(self._chains):
            self._fault = f"{self._masked} of {len(self._chains)} adapted tensors were masked; was it split?"
        if self._fault:
            message = f"the batch was not computed: {self._fault}"
            raise DecodeError(message)

    def close(self) -> None:
        """Nothing to free: the bank belongs to the adapter."""

    def _on_node(self, tensor: Any, ask: bool) -> bool:  # noqa: FBT001 - the C signature
        """Mask the products of one target; never raises, since the decode would go on with a wrong result."""
        ffi = self._library.ffi
        target = self._target.get(int(ffi.cast("intptr_t", tensor.src[0])))
        if ask or target is None:
            return target is not None
        try:
            self._mask(tensor, target)
        except Exception as error:  # noqa: BLE001 - reported by check
            self._fault = self._fault or f"{self._chains[target].target}: {error}"
        return True

    def _mask(self, tensor: Any, target: int) -> None:
        sizes = list(tensor.ne)
        chain = self._chains[target]
        rows = sizes[1] * sizes[2] * sizes[3] // chain.used
        scales = next((scales for scales in self._scales if len(scales) == rows), None)
        if scales is None or sizes[0] != self._units:
            message = f"an unexpected shape {sizes}"
            raise ValueError(message)
        address = int(self._library.ffi.cast("intptr_t", tensor.data))
        products = _array(self._library, address, (rows, chain.used, self._units), np.float32)
        scales = scales * self.strength[target]
        with np.errstate(all="ignore"):  # what overflows is a stranger's, and overwritten
            products[...] = np.where(scales[:, None, :] != 0, products * scales[:, None, :], 0)
        self._masked += 1


def _array(library: Library, address: int, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """View of memory that C owns, row-major."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    buffer = library.ffi.buffer(library.ffi.cast("char *", address), count)
    return np.frombuffer(buffer, dtype=dtype).reshape(shape)
