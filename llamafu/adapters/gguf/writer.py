"""Writing adapters: checked like any other before they appear under their name."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from gguf import GGUFValueType, GGUFWriter
from gguf.gguf_writer import WriterState

from llamafu._util.atomic import whole_file
from llamafu.adapters.file import check_adapter
from llamafu.adapters.info import is_flipped

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from llamafu.adapters.info import AdapterInfo

    Matrix = NDArray[np.float32] | NDArray[np.float64]
    Field = str | list[str] | np.generic | NDArray[Any]


def write_adapter(
    output: str | os.PathLike[str],
    tensors: Mapping[str, tuple[Matrix, Matrix]],
    *,
    architecture: str,
    alpha: float,
    metadata: Mapping[str, Field],
    dtype: Literal["F32", "F16"] = "F32",
    sources: Iterable[str | os.PathLike[str]] = (),
) -> AdapterInfo:
    """Write a GGUF adapter and return its facts; the file is complete and sound, or absent.

    The arguments are those of `factor_bytes`. A file that is already at `output` is replaced.

    Raises:
        ValueError: `output` is one of `sources`.
        FileNotFoundError: the folder of `output` does not exist.
        InvalidAdapterFileError: what would be written is no sound adapter, such as one with infinite values.
        OSError: the file cannot be written.

    """
    output = Path(output)
    refuse_source(output, sources)
    content = factor_bytes(tensors, architecture=architecture, alpha=alpha, metadata=metadata, dtype=dtype)
    info = check_adapter(content, output).info
    with whole_file(output) as unfinished:
        unfinished.write_bytes(content)
    return info


def factor_bytes(
    tensors: Mapping[str, tuple[Matrix, Matrix]],
    *,
    architecture: str,
    alpha: float,
    metadata: Mapping[str, Field],
    dtype: Literal["F32", "F16"] = "F32",
) -> bytes:
    """Return the GGUF file of these factors: A [..., rank, in] and B [..., out, rank] by the base tensor's name.

    libllama multiplies their product by alpha / rank, or by 1 where `alpha` is 0. The same arguments give the same bytes.
    What is too large for `dtype` becomes infinite, which `check_adapter` finds.
    """
    kind = np.float16 if dtype == "F16" else np.float32
    arrays: dict[str, NDArray[Any]] = {}
    with np.errstate(over="ignore"):
        for name, (a, b) in tensors.items():
            arrays[f"{name}.lora_a"] = np.ascontiguousarray(a.T if is_flipped(name) else a, kind)
            arrays[f"{name}.lora_b"] = np.ascontiguousarray(b, kind)
    return adapter_bytes(architecture, {"adapter.lora.alpha": np.float32(alpha), **metadata}, arrays)


def adapter_bytes(architecture: str, metadata: Mapping[str, Field], tensors: Mapping[str, NDArray[Any]]) -> bytes:
    """Return the GGUF adapter file that has these fields and tensors, in this order, after its type and architecture.

    The NumPy type of a number or an array is its type in the file.
    """
    writer, content = GGUFWriter(None, architecture), BytesIO()
    for key, value in {"general.type": "adapter", "adapter.type": "lora", **metadata}.items():
        writer.add_key_value(key, *_typed(value))
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    # In memory, where a full disk cuts nothing short. The writer takes it for a file that it opened.
    writer.fout, writer.state = [content], WriterState.EMPTY  # type: ignore[list-item]
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.write_padding(content, content.tell())
    for array in tensors.values():
        content.write(np.ascontiguousarray(array).data)
        writer.write_padding(content, content.tell())
    return content.getvalue()


def refuse_source(output: Path, sources: Iterable[str | os.PathLike[str]], what: str = "adapters") -> None:
    """Raise ValueError if writing `output` would replace one of `sources`, by whatever name, or a file of one; `what` they are.

    A folder among them is an adapter's: nothing is written into it.
    """
    place = Path(os.path.realpath(output))
    for source in map(Path, sources):
        is_folder = source.is_dir()
        if is_folder and Path(os.path.realpath(source)) in place.parents:
            message = f"{output} lies in the folder of the adapter {source}; choose another place"
            raise ValueError(message)
        read = [source, *source.iterdir()] if is_folder else [source]  # its files may be links to elsewhere
        if output.exists() and any(each.exists() and output.samefile(each) for each in read):
            message = f"{output} is one of the {what} that are read; choose another place"
            raise ValueError(message)


def _typed(value: Field) -> tuple[Any, GGUFValueType, GGUFValueType | None]:
    """Return the arguments of the writer for a value: itself, its type, and the type of its elements."""
    if isinstance(value, str):
        return value, GGUFValueType.STRING, None
    if isinstance(value, list):
        return value, GGUFValueType.ARRAY, GGUFValueType.STRING
    kind = GGUFValueType[value.dtype.name.upper()]
    return (value.tolist(), GGUFValueType.ARRAY, kind) if value.ndim else (value.item(), kind, None)
