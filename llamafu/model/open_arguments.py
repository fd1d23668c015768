"""The keyword arguments of `Llamafu`, for type checkers: where they are handed on by `**`, they are checked like its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamafu._native.device_options import DeviceArguments

if TYPE_CHECKING:
    import os


class OpenArguments(DeviceArguments, total=False):
    """What `Llamafu` takes beside the model; it describes them."""

    n_ctx: int
    n_batch: int
    n_threads: int | None
    mmproj_path: str | os.PathLike[str] | None
    flash_attn: str
    type_k: str
    type_v: str
    scale_range: tuple[float, float]
    library: str | os.PathLike[str] | None
    embeddings: bool
