"""A base model's own matrices, which DoRA needs: from a GGUF file, or a folder of safetensors."""

from __future__ import annotations

import json
import mmap
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from llamafu.adapters.gguf.codec import NumpyCodec, unreadable
from llamafu.adapters.gguf.shard import read_shards
from llamafu.adapters.peft.architectures import ARCHITECTURES, in_gguf_order
from llamafu.adapters.peft.fused_qkv import fused_tensor_and_rows
from llamafu.adapters.peft.hf_config import CONFIG
from llamafu.adapters.peft.module_name import split_expert
from llamafu.adapters.peft.safetensors import read_locations, read_one
from llamafu.errors import InvalidAdapterFileError, ModelLoadError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from llamafu.adapters.gguf.base_model import BaseModel
    from llamafu.adapters.gguf.tensor_entry import TensorEntry
    from llamafu.adapters.peft.safetensors import TensorLocation

    Matrix = NDArray[np.floating[Any]]

_INDEX, _SAFETENSORS = "model.safetensors.index.json", ".safetensors"


class BaseWeights(Protocol):
    """Reads matrices of a base model by the tensors' names, with the rows in GGUF's order."""

    def matrix(self, target: str, expert: int | None, rows: int) -> Matrix:
        """Return a matrix [`rows`, in], of the given `expert` of a stack; ValueError where it is absent or not readable."""


def base_weights(base: BaseModel) -> BaseWeights:
    """Return a reader of the weights of the model whose header is `base`; raises ModelLoadError where there are none."""
    return _Folder(base) if base.path.name == CONFIG or base.path.suffix == ".json" else _Gguf(base)


class _Gguf:
    """Reads from a GGUF model, of any type that can be decoded without libllama."""

    def __init__(self, base: BaseModel) -> None:
        self._base = base
        self._locations: dict[str, tuple[Path, TensorEntry]] = {}
        for shard in read_shards(base.path):
            self._locations |= {name: (shard.path, entry) for name, entry in shard.container.tensors.items()}

    def matrix(self, target: str, expert: int | None, rows: int) -> Matrix:
        """Read and dequantise a matrix, or a part of one that the model has fused with others."""
        tensor, part = fused_tensor_and_rows(target, rows, self._base)
        if tensor not in self._locations:
            message = f"the base model has no {tensor!r}"
            raise ValueError(message)
        path, entry = self._locations[tensor]
        if entry.type is None or (problem := unreadable(entry.type)):
            message = f"{tensor!r} of the base model: {'its type is unknown here' if entry.type is None else problem}"
            raise ValueError(message)
        width, height, *stack = entry.shape
        size = entry.nbytes // int(np.prod(stack or [1]))
        with path.open("rb") as file:
            file.seek(entry.offset + (expert or 0) * size)
            raw = file.read(size)
        values = np.empty((height, width), np.float32)
        NumpyCodec().decode(raw, entry.type, values)
        return values if part is None else values[part]


class _Folder:
    """Reads from the safetensors that a model on Hugging Face's hub has next to its config.json."""

    def __init__(self, base: BaseModel) -> None:
        self._base = base
        folder = base.path.parent
        architecture = ARCHITECTURES[base.architecture]
        self._locations: dict[tuple[str, int | None], tuple[Path, TensorLocation]] = {}
        for path in _files(folder):
            try:
                with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                    locations = read_locations(content, name=str(path))
            except (InvalidAdapterFileError, OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
                message = f"{path}: the base model's weights cannot be read: {error}"
                raise ModelLoadError(message) from error
            for key, location in locations.items():
                module, expert = split_expert(key.removesuffix(".weight"))
                if key.endswith(".weight") and (target := architecture.target_of(module)) is not None:
                    self._locations[target, expert] = (path, location)

    def matrix(self, target: str, expert: int | None, rows: int) -> Matrix:
        """Read a matrix, or a part of one that the model has fused with others, and bring its rows into GGUF's order."""
        tensor, part = fused_tensor_and_rows(target, rows, self._base)
        if (tensor, expert) not in self._locations:
            of = "" if expert is None else f" of expert {expert}"
            message = f"the safetensors of {self._base.path.parent} have no {tensor!r}{of}"
            raise ValueError(message)
        path, location = self._locations[tensor, expert]
        with path.open("rb") as file:
            values = read_one(file, location)
        return in_gguf_order(values, tensor, self._base) if part is None else values[part]


def _files(folder: Path) -> list[Path]:
    """Return the model's safetensors in `folder`: those that its index names, or else all `model*.safetensors`."""
    index = folder / _INDEX
    if index.is_file():
        try:
            named = json.loads(index.read_text(encoding="utf-8-sig"))["weight_map"].values()
            names = sorted({name for name in named if isinstance(name, str) and "/" not in name and "\\" not in name})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
            message = f"{index}: no sound index of safetensors: {error!r}"
            raise ModelLoadError(message) from error
    else:
        names = sorted(path.name for path in folder.glob(f"model*{_SAFETENSORS}"))
    files = [folder / name for name in names]
    missing = next((path for path in files if not path.is_file()), None)
    if not files or missing is not None:
        what = f"{missing} is not there" if missing is not None else f"{folder} has no model{_SAFETENSORS}"
        message = (
            f"{what}: the base model's weights are needed; give its GGUF file, or the folder with its safetensors, as base"
        )
        raise ModelLoadError(message)
    return files
