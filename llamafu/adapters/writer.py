"""Writing GGUF adapters, which are checked like any other before they replace a file."""

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

    Args:
        output: The file to write; a file that is there is replaced.
        tensors: The factors A [..., rank, in] and B [..., out, rank] by the base tensor's name.
        architecture: Of the base model, in GGUF's terms.
        alpha: libllama multiplies B A by alpha / rank, or by 1 where alpha is 0.
        metadata: Further keys; the NumPy type of a number or an array is its type in the file.
        dtype: The type of the factors. Default: "F32".
        sources: Files that `output` must not replace. Default: none.

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
    Values too large for `dtype` become infinite, which `check_adapter` refuses.
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
    # GGUFWriter writes to files that it opened itself; here it gets a buffer, so that a full disk truncates nothing.
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
    """Raise ValueError if `output` is one of `sources`, by whatever name, or lies in a folder among them, an adapter's.

    `what` the sources are is for the message.
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
    """Return GGUFWriter's arguments for a value: itself, its type, and the type of its elements."""
    if isinstance(value, str):
        return value, GGUFValueType.STRING, None
    if isinstance(value, list):
        return value, GGUFValueType.ARRAY, GGUFValueType.STRING
    kind = GGUFValueType[value.dtype.name.upper()]
    return (value.tolist(), GGUFValueType.ARRAY, kind) if value.ndim else (value.item(), kind, None)
