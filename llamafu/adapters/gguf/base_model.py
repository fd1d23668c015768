"""A base model's header: architecture, tensor shapes and metadata, which decide whether an adapter fits it."""

from __future__ import annotations

import mmap
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llamafu._util.shard_names import shard_names
from llamafu.adapters.gguf.container import SUFFIX
from llamafu.adapters.gguf.ggml_type import GGMLType
from llamafu.adapters.gguf.reader import read_container
from llamafu.errors import ErrorCode, InvalidAdapterFileError, ModelLoadError
from llamafu.hub.local import local_model

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from llamafu.adapters.gguf.container import Container, Scalar

_WHOLE_NUMBERS = (GGMLType.I8, GGMLType.I16, GGMLType.I32, GGMLType.I64)
_TABLE = "tid2eid"
"""In the names of tensors that map tokens to experts, the only ones that hold whole numbers."""
_OTHER_KINDS = {"adapter": "a LoRA adapter", "mmproj": "a multimodal projector", "imatrix": "an importance matrix"}


class ModelFileNotFoundError(ModelLoadError, FileNotFoundError):
    """No model file at this path."""

    code = ErrorCode.FILE_NOT_FOUND


@dataclass(frozen=True, slots=True)
class BaseModel:
    """What a base model's header says. Its weights were not read."""

    path: Path
    name: str
    """The name in the metadata, or else the file's."""
    architecture: str
    tensors: dict[str, tuple[int, ...]]
    """Shapes by tensor name, in GGUF's order (NumPy's reversed); of all shards."""
    metadata: dict[str, Scalar]
    """The header's single values; arrays, such as the vocabulary, are left out."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Bytes of each tensor in the file; empty where the header is no GGUF file's."""

    @property
    def tied(self) -> bool:
        """Whether the output matrix is the token embedding itself (there is no `output.weight`)."""
        return "output.weight" not in self.tensors

    @property
    def positions(self) -> int | None:
        """The number of learned position embeddings; None where positions are computed."""
        shape = self.tensors.get("position_embd.weight")
        return shape[-1] if shape else None

    @property
    def vocabulary_size(self) -> int | None:
        """The number of tokens; None for a model without token embeddings."""
        shape = self.tensors.get("token_embd.weight")
        return shape[-1] if shape else None


def read_base(path: str | os.PathLike[str]) -> BaseModel:
    """Read the header of the base model at `path`; of a sharded one (`-00001-of-00003.gguf`), of every shard.

    A path may be a reference to the Hugging Face hub, `hf:owner/repo:Q4_K_M`: `BaseModel.path` is where the file is.

    Raises:
        HubError: the reference leads to no model, or it cannot be fetched.
        ModelFileNotFoundError: the file or one of its shards is missing (a ModelLoadError and a FileNotFoundError).
        ModelLoadError: it cannot be read, is damaged, or is no base model.

    """
    path = local_model(path)
    containers = [read_header(shard) for shard in _parts(path)]
    metadata: dict[str, Scalar] = {}
    tensors: dict[str, tuple[int, ...]] = {}
    sizes: dict[str, int] = {}
    for container in containers:
        for key, value in container.metadata.items():
            if not isinstance(value, tuple):
                metadata.setdefault(key, value)
        tensors |= {name: entry.shape for name, entry in container.tensors.items()}
        sizes |= {name: entry.nbytes for name, entry in container.tensors.items()}
    kind = metadata.get("general.type")
    if kind in _OTHER_KINDS:
        message = f"{path} is {_OTHER_KINDS[str(kind)]} (general.type {kind!r}), no base model"
        raise ModelLoadError(message)
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        message = f"{path}: metadata key 'general.architecture' is {architecture!r}; it must be the name of one"
        raise ModelLoadError(message)
    if not tensors:
        message = f"{path} has no tensors: it is a vocabulary, no base model"
        if int(metadata.get("split.count") or 0) > 1:
            message = f"{path} is one part of a split model and has no tensors; give the first part, all others beside it"
        raise ModelLoadError(message)
    for container in containers:
        _check_types(path, container)
    return BaseModel(path, str(metadata.get("general.name") or path.stem), architecture, tensors, metadata, sizes)


def read_model(path: str | os.PathLike[str]) -> BaseModel:
    """Read like `read_base`, and raise ModelLoadError for a split model's part other than the first, which cannot be opened."""
    path = local_model(path)
    parts = shard_paths(path)
    if path in parts[1:]:
        message = (
            f"{path} is part {parts.index(path) + 1} of {len(parts)} of a split model; open its first part, {parts[0].name}"
        )
        raise ModelLoadError(message)
    return read_base(path)


def _check_types(path: Path, container: Container) -> None:
    """Refuse tensors of integers: libllama loads them, and aborts when it multiplies by them."""
    for name, entry in container.tensors.items():
        if entry.type in _WHOLE_NUMBERS and not (entry.type == GGMLType.I32 and _TABLE in name):
            message = f"{path}: tensor {name!r} is of type {entry.type.name}, and weights are fractions: the file is damaged"
            raise ModelLoadError(message)


def _parts(path: Path) -> list[Path]:
    """Return all files of the model that `path` is one of; ModelFileNotFoundError where one is missing."""
    parts = shard_paths(path)
    if path not in parts or len(parts) == 1:
        return [path]
    missing = [part.name for part in parts if not part.exists()]
    if path.name in missing:
        return [path]
    if missing:
        message = f"{path} is split into {len(parts)} parts, and {', '.join(missing)} is not there; put it into {path.parent}"
        raise ModelFileNotFoundError(message)
    return parts


def shard_paths(path: Path) -> list[Path]:
    """Return the files of the model at `path`, in order: all its shards if its name is that of a shard."""
    return [path.with_name(name) for name in shard_names(path.name)]


def model_files(base: BaseModel) -> list[Path]:
    """Return the files of the model whose header is `base`, which nothing may be written over.

    Of a `config.json`, these are all files in its folder other than GGUF files.
    """
    if base.path.suffix != ".json":
        return shard_paths(base.path)
    return sorted(each for each in base.path.parent.iterdir() if each.suffix != SUFFIX and each.is_file())


def read_header(path: Path) -> Container:
    """Read the header of one GGUF file; raises what `read_base` raises."""
    with _mapped(path) as view:
        try:
            return read_container(view, name=str(path), whole=False)
        except InvalidAdapterFileError as error:
            raise ModelLoadError(str(error)) from error


def _mapped(path: Path) -> mmap.mmap:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            problem = "is no file; give a GGUF model file"
        elif not status.st_size:
            problem = "is an empty file; give a GGUF model file"
        else:
            with path.open("rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (FileNotFoundError, NotADirectoryError) as error:
        message = f"{path}: there is no such model file"
        raise ModelFileNotFoundError(message) from error
    except OSError as error:
        message = f"{path}: the model file cannot be read: {error.strerror}"
        raise ModelLoadError(message, code=ErrorCode.FILE_READ_FAILED) from error
    message = f"{path} {problem}"
    raise ModelLoadError(message)
