"""Reading `adapter_model.bin`, torch's zip archive around a pickle, without torch and without running code from the file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from llamafu.adapters.invalid_file import invalid_file
from llamafu.adapters.peft.pickle_machine import PickleMachine, described
from llamafu.adapters.peft.safetensors import empty
from llamafu.adapters.peft.torch_archive import MEND, DamagedError, read_archive

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MOST_EXPANSION = 2
"""Tensors may share storages; together they may have so many times the file's bytes."""


def read_pickled(content: bytes, *, name: str) -> dict[str, NDArray[np.floating[Any]]]:
    """Return every tensor of torch's archive `content` by name; `name` is for messages.

    Names are in alphabetical order, as safetensors files have them: so an adapter becomes the same in both forms.

    F16 and F32 tensors are read-only views of `content`; BF16 becomes new float32 arrays of the same values. Nothing in
    the file is executed or imported, and no more memory is taken than a few times its size.

    Raises:
        InvalidAdapterFileError: it is damaged, of torch's format before 1.6, or anything but a dictionary of such tensors.

    """
    try:
        return _tensors(PickleMachine(read_archive(content)).run(), len(content))
    except DamagedError as error:
        raise invalid_file(name, list(error.args)) from None


def _tensors(found: object, size: int) -> dict[str, NDArray[np.floating[Any]]]:
    """Check that what was found in a file of `size` bytes is a dictionary of tensors."""
    if not isinstance(found, dict):
        message = f"its pickle is {described(found)}, it must be a dictionary of tensors; {MEND}"
        raise DamagedError(message)
    for key, value in found.items():
        if not isinstance(value, np.ndarray):
            message = f"entry {key!r} is {described(value)}, it must be a tensor; {MEND}"
            raise DamagedError(message)
    problems = [empty(str(key), array.shape) for key, array in found.items() if not array.size]
    if problems:
        raise DamagedError(*problems)
    needed = sum(array.nbytes for array in found.values())
    if needed > _MOST_EXPANSION * size:
        message = f"its tensors have {needed} bytes, the file {size}: they overlap beyond reason; {MEND}"
        raise DamagedError(message)
    return dict(sorted(found.items()))
