"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@contextmanager
def whole_file(output: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Give a path to write to; what was written there takes the place of `output` in one step if the block succeeds.

    After an error `output` is as it was before, and nothing else is left. Raises FileNotFoundError when the folder of
    `output` does not exist, FileExistsError when there is something at `output`, before or after the block, that it may not
    `overwrite`, OSError when it cannot be written to.
    """
    with whole_files([output], overwrite=overwrite) as [unfinished]:
        yield unfinished


@contextmanager
def whole_files(outputs: Sequence[Path], *, overwrite: bool = True) -> Iterator[list[Path]]:
    """Like `whole_file`, for several files of one folder.

    All are written before any is renamed into place, and the first is renamed last, so that whoever waits for it finds all.
    """
    demand_parent(outputs[0])
    demand_place(*outputs, overwrite=overwrite)
    # A temporary folder and not a temporary file: the new file then gets the permissions that any new file gets.
    with _naming(outputs[0]), tempfile.TemporaryDirectory(dir=outputs[0].parent, prefix=_prefix(outputs[0])) as tmp:
        unfinished = [Path(tmp) / output.name for output in outputs]
        yield unfinished
        demand_place(*outputs, overwrite=overwrite)
        for written, output in reversed(list(zip(unfinished, outputs, strict=True))):
            written.replace(output)


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """Give an empty folder to write into; it becomes the new folder `output` if the block succeeds.

    After an error there is nothing new. Raises FileExistsError when there is anything at `output`, FileNotFoundError when
    its own folder does not exist, OSError when it cannot be written to.
    """
    demand_new(output)
    with _naming(output), tempfile.TemporaryDirectory(dir=output.parent, prefix=_prefix(output)) as tmp:
        unfinished = Path(tmp) / output.name
        unfinished.mkdir()
        yield unfinished
        unfinished.rename(output)


def _prefix(output: Path) -> str:
    return f".{output.name}."


@contextmanager
def _naming(output: Path) -> Iterator[None]:
    """Let errors of writing name `output`: a failed write names no file, and others name the temporary one."""
    try:
        yield
    except OSError as error:
        unfinished = str(output.parent / _prefix(output))
        if error.errno is None or not (error.filename is None or str(error.filename).startswith(unfinished)):
            raise
        raise OSError(error.errno, error.strerror, str(output)) from error


def demand_place(*outputs: Path, overwrite: bool) -> None:
    """Raise OSError where one of `outputs` cannot become a file; call it before long work too.

    IsADirectoryError for a folder; FileExistsError for a device, a pipe or a socket, and for anything at all, be it a link to
    nowhere, that it may not `overwrite`.
    """
    for output in outputs:
        if output.is_dir():
            message = f"{output} is a folder; give the result the name of a file"
            raise IsADirectoryError(message)
        if output.exists() and not output.is_file():
            message = f"{output} is no regular file (a device, a pipe or a socket) and is never replaced; give another name"
            raise FileExistsError(message)
        if not overwrite and os.path.lexists(output):
            message = f"{output} exists and is not replaced; give another name, or say to overwrite it (--force)"
            raise FileExistsError(message)


def demand_new(output: Path) -> None:
    """Raise FileExistsError or FileNotFoundError where no new folder `output` can be made; call it before long work too."""
    demand_parent(output)
    if output.exists() or output.is_symlink():
        message = f"{output} exists, and a folder is not replaced; remove it or give another name"
        raise FileExistsError(message)


def demand_parent(output: Path) -> None:
    """Raise FileNotFoundError if the folder of `output` does not exist."""
    if not output.parent.is_dir():
        message = f"{output}: there is no folder {output.parent} to write it to; make it first"
        raise FileNotFoundError(message)
