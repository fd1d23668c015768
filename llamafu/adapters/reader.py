"""Adapters in whatever form they come: GGUF files, and PEFT folders that are converted in memory."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from llamafu.adapters.compatibility import CompatibilityReport, check_compatibility
from llamafu.adapters.file import AdapterFile, read_adapter
from llamafu.adapters.peft.config import CONFIG
from llamafu.errors import ErrorCode, InvalidAdapterFileError, LoraError, LoraIncompatibleError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llamafu.adapters.gguf.base_model import BaseModel

_MOST_KEPT = 256 << 20  # bytes


def is_peft_folder(path: Path) -> bool:
    """Whether `path` is a folder with PEFT's configuration."""
    return os.path.lexists(path / CONFIG)


class AdapterReader:
    """Reads adapters for one base model. Any thread.

    What folders were converted to is kept by their content, up to 256 MiB in all: read again, a folder is only compared.
    """

    def __init__(
        self, base: BaseModel, *, dtype: Literal["auto", "exact", "f16", "f32"] = "auto", most_kept: int = _MOST_KEPT
    ) -> None:
        """Read for `base`, whose architecture and sizes decide how folders are converted.

        `dtype` is what they are converted to: "auto" is F16 where it loses at most 1 % of every tensor's change, "exact" F16
        where it loses nothing, and both are F32 elsewhere. `most_kept`: bytes of converted folders that are kept.
        """
        self._most_kept = most_kept
        self._base = base
        self._dtype = dtype
        self._kept: OrderedDict[str, AdapterFile] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: str | os.PathLike[str], *, drop: Sequence[str] = ()) -> AdapterFile:
        """Read and check the adapter at `path`, a GGUF file or PEFT folder; whether it fits the base model is not checked.

        `drop` leaves modules of a folder out as `convert_peft` does.

        Raises:
            AdapterFileNotFoundError: nothing is there (a LoraLoadError and a FileNotFoundError).
            LoraLoadError: it cannot be read.
            InvalidAdapterFileError: it is damaged, or a folder that no GGUF adapter can stand for; `.problems` has all.
            LoraIncompatibleError: a folder for an architecture that cannot be converted.
            LoraError: `drop` for a GGUF file, or with what is in no module's name.

        """
        path = Path(path)
        if not is_peft_folder(path):
            if drop:
                message = f"{path}: drop={list(drop)!r} is for PEFT folders, and this is none; leave it out"
                raise LoraError(message, code=ErrorCode.INVALID_PARAM)
            return read_adapter(path)
        # They import gguf's writer and more, which GGUF files do not need.
        from llamafu.adapters.peft.convert import convert_folder
        from llamafu.adapters.peft.folder import read_folder

        folder = read_folder(path)
        digest = "\n".join((folder.digest, *map(str, drop)))
        with self._lock:
            known = self._kept.pop(digest, None)
        file = known or convert_folder(folder, self._base, dtype=self._dtype, drop=drop)
        self._keep(digest, file)
        return replace(file, path=Path(os.path.realpath(path)))

    def report(self, path: str | os.PathLike[str]) -> CompatibilityReport:
        """Report everything that keeps the adapter at `path` from working with the base model; raises LoraLoadError."""
        try:
            file = self.read(path)
        except (InvalidAdapterFileError, LoraIncompatibleError) as error:
            return CompatibilityReport(error.problems or (str(error),))
        return check_compatibility(file, self._base)

    def _keep(self, digest: str, file: AdapterFile) -> None:
        """Remember the newest conversions, as many as the limit allows."""
        with self._lock:
            self._kept[digest] = file
            while sum(len(kept.content) for kept in self._kept.values()) > self._most_kept:
                self._kept.popitem(last=False)
