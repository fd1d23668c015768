"""PEFT's folders: a configuration and its weights, read once, so that the bytes that were checked are those converted."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamafu._util.adapter_files import CONFIG, MLX_WEIGHTS, PICKLED, SAFETENSORS
from llamafu.adapters.file import AdapterFileNotFoundError
from llamafu.adapters.invalid_file import invalid_file
from llamafu.adapters.peft.config import LARGEST_CONFIG, PeftConfig, parse_config
from llamafu.adapters.peft.mlx import read_mlx
from llamafu.adapters.peft.safetensors import read_safetensors
from llamafu.adapters.peft.tensor_names import saved_names
from llamafu.adapters.peft.torch_pickle import read_pickled
from llamafu.errors import ErrorCode, InvalidAdapterFileError, LoraLoadError
from llamafu.hub.folder_name import folder_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from llamafu.adapters.gguf.base_model import BaseModel

    Arrays = dict[str, NDArray[np.floating[Any]]]

WEIGHTS: Mapping[str, Callable[..., Arrays]] = {
    SAFETENSORS: read_safetensors,
    PICKLED: read_pickled,
}
"""The files of weights and their readers; PEFT takes the first that exists."""


@dataclass(frozen=True, slots=True)
class PeftFolder:
    """The two files of one adapter, as bytes. Immutable, so any thread may use it."""

    path: Path
    name: str
    """The folder's own name, links followed; the converted adapter is named after it."""
    config: bytes
    weights: bytes
    weights_path: Path

    @property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of everything that the converted adapter depends on, the folder's name included."""
        parts = (self.name.encode("utf-8", "surrogateescape"), self.weights_path.name.encode(), self.config, self.weights)
        whole = hashlib.sha256()
        for part in parts:
            whole.update(len(part).to_bytes(8, "little"))
            whole.update(part)
        return whole.hexdigest()

    def parsed(self, base: BaseModel, *, dora: bool = False) -> tuple[PeftConfig, Arrays, tuple[str, ...]]:
        """Return the configuration, the tensors by PEFT's names, and the modules whose tensors have no effect.

        Only mlx-lm's folders have such modules. `dora`: see `parse_config`. Raises InvalidAdapterFileError with the problems
        of both files.
        """
        if self.weights_path.name == MLX_WEIGHTS:
            return read_mlx(self.config, self.weights, base, name=str(self.path))
        problems: list[str] = []
        config, arrays = None, None
        try:
            config = parse_config(self.config, name=str(self.path / CONFIG), dora=dora)
        except InvalidAdapterFileError as error:
            problems += error.problems
        try:
            arrays = saved_names(WEIGHTS[self.weights_path.name](self.weights, name=str(self.weights_path)))
        except InvalidAdapterFileError as error:
            problems += error.problems
        except ValueError as error:
            problems.append(str(error))
        if config is None or arrays is None:
            raise invalid_file(str(self.path), problems)
        return config, arrays, ()


def read_folder(folder: Path) -> PeftFolder:
    """Read the files of the PEFT adapter in `folder`.

    Raises:
        AdapterFileNotFoundError: they are not there.
        InvalidAdapterFileError: something else is in their place.
        LoraLoadError: they cannot be read.

    """
    weights = next(
        (folder / name for name in (*WEIGHTS, MLX_WEIGHTS) if os.path.lexists(folder / name)), folder / next(iter(WEIGHTS))
    )
    config = _read(folder / CONFIG, folder, LARGEST_CONFIG)
    # Not Path.resolve, which raises RuntimeError for links that go round in circles.
    return PeftFolder(folder, folder_name(Path(os.path.realpath(folder))), config, _read(weights, folder), weights)


def base_model_of(folder: Path) -> str | None:
    """Return the hub id or path of the base model in the configuration of a folder that was read before; None for none."""
    config = json.loads((folder / CONFIG).read_bytes())
    name = config.get("base_model_name_or_path" if config.get("peft_type") else "model")
    return name if isinstance(name, str) else None


def _read(path: Path, folder: Path, most: int | None = None) -> bytes:
    """Return the content of a file of at most `most` bytes; `folder` is for the message if it is absent."""
    try:
        # Not blocking: opening a pipe must not wait for a writer.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        with open(os.open(path, flags), "rb") as file:  # noqa: PTH123 - Path.open takes no descriptor
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise invalid_file(str(path), ["a folder, device, pipe or socket; there must be a file"])
            if most is not None and status.st_size > most:
                raise invalid_file(str(path), [f"it has {status.st_size} bytes; at most {most} are read"])
            return file.read()
    except (FileNotFoundError, NotADirectoryError) as error:
        needed = f"a PEFT adapter needs {CONFIG} and {' or '.join(WEIGHTS)}; mlx-lm's has {MLX_WEIGHTS}"
        message = f"{folder}: {_what_lacks(folder, path)}; {needed}"
        kept = sorted(path.name for path in folder.glob(f"*_{MLX_WEIGHTS}"))
        if kept:
            message += f"; there is mlx-lm's checkpoint {kept[-1]}: copy the one that is meant to {MLX_WEIGHTS}"
        raise AdapterFileNotFoundError(message) from error
    except IsADirectoryError as error:
        raise invalid_file(str(path), ["a folder; there must be a file"]) from error
    except OSError as error:
        message = f"{path}: it cannot be read: {error.strerror}"
        raise LoraLoadError(message, code=ErrorCode.FILE_READ_FAILED) from error


def _what_lacks(folder: Path, path: Path) -> str:
    """Say why `path`, a file of the adapter in `folder`, is not there."""
    if folder.is_dir():
        return f"there is no {path.name} in it"
    return "it is a file, and no folder" if folder.exists() else "there is no such folder"
