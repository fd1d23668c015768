"""Writing adapters: checked like any other before they appear under their name."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from gguf import GGUFValueType, GGUFWriter

from llamafu._whole_file import whole_file
from llamafu.adapters.file import check_adapter
from llamafu.adapters.info import is_flipped

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from llamafu.adapters.info import AdapterInfo

    Matrix = NDArray[np.float32] | NDArray[np.float64]
    Origin = str | int | float | list[str] | list[float]


def write_adapter(
    output: str | os.PathLike[str],
    tensors: Mapping[str, tuple[Matrix, Matrix]],
    *,
    architecture: str,
    alpha: float,
    metadata: Mapping[str, Origin],
    dtype: Literal["F32", "F16"] = "F32",
    sources: Iterable[str | os.PathLike[str]] = (),
) -> AdapterInfo:
    """Write a GGUF adapter and return its facts; the file is complete and sound, or absent.

    `tensors` holds A [..., rank, in] and B [..., out, rank] by the base tensor's name; libllama multiplies their product
    by alpha / rank, or by 1 where `alpha` is 0. The same arguments give the same bytes. A file that is already at
    `output` is replaced.

    Raises:
        ValueError: `output` is one of `sources`.
        FileNotFoundError: the folder of `output` does not exist.
        InvalidAdapterFileError: what would be written is no sound adapter, such as one with infinite values.
        OSError: the file cannot be written.

    """
    output = Path(output)
    refuse_source(output, sources)
    with whole_file(output) as unfinished:
        _write(unfinished, _arrays(tensors, dtype), architecture, alpha, metadata)
        return check_adapter(unfinished.read_bytes(), output).info


def adapter_bytes(
    tensors: Mapping[str, tuple[Matrix, Matrix]],
    *,
    architecture: str,
    alpha: float,
    metadata: Mapping[str, Origin],
    dtype: Literal["F32", "F16"] = "F32",
) -> bytes:
    """Return what `write_adapter` would write. It is not checked."""
    with tempfile.TemporaryDirectory(prefix="llamafu-") as room:
        path = Path(room) / "adapter.gguf"
        _write(path, _arrays(tensors, dtype), architecture, alpha, metadata)
        return path.read_bytes()


def _arrays(tensors: Mapping[str, tuple[Matrix, Matrix]], dtype: Literal["F32", "F16"]) -> dict[str, NDArray[Any]]:
    """Lay the factors out as GGUF has them."""
    kind = np.float16 if dtype == "F16" else np.float32
    arrays: dict[str, NDArray[Any]] = {}
    with np.errstate(over="ignore"):  # infinities are found by the check
        for name, (a, b) in tensors.items():
            arrays[f"{name}.lora_a"] = np.ascontiguousarray(a.T if is_flipped(name) else a, kind)
            arrays[f"{name}.lora_b"] = np.ascontiguousarray(b, kind)
    return arrays


def refuse_source(output: Path, sources: Iterable[str | os.PathLike[str]]) -> None:
    """Raise ValueError if writing `output` would replace one of `sources`, by whatever name."""
    for source in sources:
        if output.exists() and output.samefile(source):
            message = f"{output} is one of the adapters that are read; give the result another name"
            raise ValueError(message)


def _write(
    path: Path, arrays: Mapping[str, NDArray[Any]], architecture: str, alpha: float, metadata: Mapping[str, Origin]
) -> None:
    writer = GGUFWriter(path, architecture)
    try:
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", alpha)
        for key, value in metadata.items():
            if isinstance(value, str):
                writer.add_string(key, value)
            elif isinstance(value, int):
                writer.add_uint64(key, value)
            elif isinstance(value, float):
                writer.add_float64(key, value)
            else:
                kind = GGUFValueType.STRING if isinstance(value[0], str) else GGUFValueType.FLOAT64
                writer.add_key_value(key, value, GGUFValueType.ARRAY, kind)
        for name, array in arrays.items():
            writer.add_tensor(name, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
