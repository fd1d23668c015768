"""The factors of adapters as NumPy arrays: of each tensor A [..., rank, in] and B [..., out, rank]."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llamafu._util.listing import listed
from llamafu.adapters.compatibility import demand_fit
from llamafu.adapters.file import AdapterFile, default_name, read_adapter
from llamafu.adapters.info import is_flipped
from llamafu.adapters.peft.convert import convert_folder
from llamafu.adapters.peft.folder import read_folder
from llamafu.errors import LoraIncompatibleError
from llamafu.hub.local import local_adapter

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable
    from pathlib import Path

    from llamafu.adapters.gguf.base_model import BaseModel
    from llamafu.adapters.svd import Factors


def read_compatible(
    adapters: Iterable[AdapterFile | str | os.PathLike[str]], base: BaseModel | None = None
) -> list[AdapterFile]:
    """Read adapters, and check that they are for one base model: GGUF files, and PEFT folders if `base` is given.

    Those that were read already are taken as they are.

    Raises what `convert_peft` and `read_adapter` raise, and LoraIncompatibleError, which names every mismatch: another
    architecture, another size of a tensor that both change, or an adapter that does not fit `base`.
    """
    files = [one if isinstance(one, AdapterFile) else _read(local_adapter(one), base) for one in adapters]
    first = files[0]
    shapes = {tensor.name: (tensor.shape, first.path) for tensor in first.info.tensors}
    problems = []
    for file in files[1:]:
        if file.info.architecture != first.info.architecture:
            problems.append(
                f"{file.path} is for the architecture {file.info.architecture!r}, {first.path} for {first.info.architecture!r}"
            )
            continue
        for tensor in file.info.tensors:
            shape, owner = shapes.setdefault(tensor.name, (tensor.shape, file.path))
            if shape != tensor.shape:
                problems.append(f"{tensor.name} is {list(tensor.shape)} in {file.path}, {list(shape)} in {owner}")
    if problems:
        message = f"these adapters are not for the same base model: {listed(problems, '; ')}"
        raise LoraIncompatibleError(message, problems=tuple(problems))
    return files


def factors(file: AdapterFile, name: str) -> Factors | None:
    """Return A and B of the base tensor `name` as float64, None where it is not changed; dW is `strength` x B A.

    A of token embeddings, which is transposed in the file, is [rank, in] like all others. Stacks of experts have a first
    dimension more. In float64, products of F32 factors can be subtracted from one another without loss.
    """
    pair = file.pairs.get(name)
    if pair is None:
        return None
    a, b = (file.matrix(entry).astype(np.float64) for entry in pair)
    if is_flipped(name):
        a = a.T
    return a, b


def strength(file: AdapterFile, name: str) -> float:
    """Return the factor of B A in the change of the tensor `name`: alpha / rank, or 1 where alpha is 0."""
    alpha = file.info.alpha
    return alpha / file.pairs[name].b.shape[0] if alpha else 1.0


def targets(files: Iterable[AdapterFile]) -> list[str]:
    """Return the names of the base tensors that any of `files` changes, in the order of the files."""
    return list(dict.fromkeys(name for file in files for name in file.pairs))


def names(files: Iterable[AdapterFile]) -> list[str]:
    """Return each adapter's name as when it is loaded, or its whole path where two have the same name."""
    paths = [file.path for file in files]
    found = [default_name(path) for path in paths]
    return [name if found.count(name) == 1 else str(path) for name, path in zip(found, paths, strict=True)]


def _read(path: Path, base: BaseModel | None) -> AdapterFile:
    if base is None:
        return read_adapter(path)
    file = convert_folder(read_folder(path), base, dtype="exact") if path.is_dir() else read_adapter(path)
    demand_fit(file, base)
    return file
