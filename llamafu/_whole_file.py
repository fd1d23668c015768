"""Files that appear whole or not at all."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@contextmanager
def whole_file(output: Path) -> Iterator[Path]:
    """Give a path to write to; what was written there takes the place of `output` in one step if the block succeeds.

    After an error `output` is as it was before, and nothing else is left. Raises FileNotFoundError when the folder of
    `output` does not exist, OSError when it cannot be written to.
    """
    with whole_files([output]) as [unfinished]:
        yield unfinished


@contextmanager
def whole_files(outputs: Sequence[Path]) -> Iterator[list[Path]]:
    """Do so for several files of one folder: all are written before the first one takes its place, the first as the last.

    So who waits for the first one finds all of them.
    """
    folder = outputs[0].parent
    if not folder.is_dir():
        message = f"{outputs[0]}: there is no folder {folder} to write it to; make it first"
        raise FileNotFoundError(message)
    # A folder rather than a file: the new file then gets the permissions that any new file gets.
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{outputs[0].name}.") as room:
        unfinished = [Path(room) / output.name for output in outputs]
        yield unfinished
        for written, output in reversed(list(zip(unfinished, outputs, strict=True))):
            written.replace(output)
