"""The server's settings of devices, from the table of `DeviceOptions`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

from llamafu._native.device_options import DEVICE_OPTIONS, DeviceOptions

if TYPE_CHECKING:
    from llamafu._native.device_options import DeviceArguments


def _setting(name: str) -> Any:
    """Declare the setting for an option, as `settings.setting` does for others."""
    option = next(each for each in DEVICE_OPTIONS if each.name == name)
    metadata = {"read": option.parse, "text": option.doc, "flags": option.flags, "many": False, "words": (), "secret": False}
    return field(default=option.default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSettings:
    """Which devices compute the model, and where its memory lies."""

    n_gpu_layers: int | Literal["auto"] = _setting("n_gpu_layers")
    devices: tuple[str, ...] | None = _setting("devices")
    split_mode: str = _setting("split_mode")
    main_gpu: int = _setting("main_gpu")
    tensor_split: tuple[float, ...] | None = _setting("tensor_split")
    use_mmap: bool = _setting("use_mmap")
    use_mlock: bool = _setting("use_mlock")
    n_ubatch: int | None = _setting("n_ubatch")
    kv_unified: bool | None = _setting("kv_unified")
    offload_kqv: bool = _setting("offload_kqv")

    @property
    def device_arguments(self) -> DeviceArguments:
        """The same as keyword arguments of `Engine`."""
        return cast("DeviceArguments", {each.name: getattr(self, each.name) for each in DEVICE_OPTIONS})

    def check_devices(self) -> None:
        """Refuse what does not go together; `ValueError`."""
        DeviceOptions.of(self.device_arguments)
