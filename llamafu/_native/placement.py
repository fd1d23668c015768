"""Where a model's layers are computed: the options of devices, resolved for the devices that there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llamafu._native import backends
from llamafu._native.device_options import SPLIT_MODES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llamafu._native.library import Library

_SHARES = 128
"""Numbers in the array of shares: libllama reads as many as it has room for devices, 16 in every build so far."""
_LOAD_MODES = {(True, True): 3, (False, True): 2, (False, False): 0}
"""`load_mode` by (use_mmap, use_mlock), in builds that have it; the default is not set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Which devices compute how many layers of a model. Without devices the CPU computes all of it.

    layers: as many of the last layers, the output counted as one, as the devices compute.
    devices: their names.
    note: what was decided, in one sentence for logs and reports.
    The others are those of `DeviceOptions`.
    """

    layers: int = 0
    devices: tuple[str, ...] = ()
    split_mode: str = "layer"
    main_gpu: int = 0
    tensor_split: Sequence[float] | None = None
    use_mmap: bool = True
    use_mlock: bool = False
    note: str = "the CPU computes every layer"

    @property
    def offloads(self) -> bool:
        """Whether operations may be computed, and tensors lie, elsewhere than on the CPU."""
        return bool(self.devices)

    def fill(self, library: Library, params: Any) -> list[Any]:
        """Enter it into `llama_model_params`; what is returned must live until the model is loaded."""
        ffi = library.ffi
        kept: list[Any] = []
        there = backends.devices(library.ffi, library.lib)
        if any(each.kind in backends.GPUS for each in there):
            # Also where none is named: unless told so, libllama opens every one, and contexts may compute on them.
            names = [each.name for each in there]
            pointers = [library.lib.ggml_backend_dev_get(names.index(name)) for name in self.devices]
            kept.append(ffi.new("ggml_backend_dev_t[]", [*pointers, ffi.NULL]))
            params.devices = kept[-1]
        params.n_gpu_layers = self.layers
        params.split_mode = SPLIT_MODES[self.split_mode]
        params.main_gpu = self.main_gpu
        if self.tensor_split is not None:
            kept.append(ffi.new(f"float[{_SHARES}]", list(self.tensor_split)))
            params.tensor_split = kept[-1]
        self._fill_loading(ffi, params)
        return kept

    def _fill_loading(self, ffi: Any, params: Any) -> None:
        if (self.use_mmap, self.use_mlock) == (True, False):
            return
        if "load_mode" in {name for name, _ in ffi.typeof("struct llama_model_params").fields}:
            params.load_mode = _LOAD_MODES[self.use_mmap, self.use_mlock]
        else:
            params.use_mmap, params.use_mlock = self.use_mmap, self.use_mlock
