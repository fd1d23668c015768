"""Reading adapters in any form for one base model: GGUF files, and PEFT folders, which are converted in memory."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from llamafu._util.adapter_files import CONFIG
from llamafu.adapters.compatibility import CompatibilityReport, check_compatibility
from llamafu.adapters.file import AdapterFile, read_adapter
from llamafu.adapters.gguf.container import SUFFIX
from llamafu.errors import ErrorCode, InvalidAdapterFileError, LoraError, LoraIncompatibleError
from llamafu.hub.local import local_adapter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llamafu.adapters.gguf.base_model import BaseModel

_MOST_KEPT = 256 << 20  # bytes of converted adapters


def is_peft_folder(path: Path) -> bool:
    """Whether `path` is a folder with PEFT's configuration."""
    return os.path.lexists(path / CONFIG)


def adapters_in(folder: Path) -> list[Path]:
    """Return what has an adapter's form in a folder, GGUF files and PEFT folders, sorted."""
    return [path for path in sorted(folder.iterdir()) if path.suffix == SUFFIX or is_peft_folder(path)]


class AdapterReader:
    """Reads adapters for one base model. Any thread.

    Converted folders are cached by their content, up to 256 MiB in all.
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

        It may be a reference to the Hugging Face hub. `drop` leaves modules of a folder out as `convert_peft` does.

        Raises:
            HubError: the reference leads to no adapter, or it cannot be fetched.
            AdapterFileNotFoundError: nothing is there (a LoraLoadError and a FileNotFoundError).
            LoraLoadError: it cannot be read.
            InvalidAdapterFileError: it is damaged, or holds what a GGUF adapter cannot express; `.problems` has all.
            LoraIncompatibleError: a folder for an architecture that cannot be converted.
            LoraError: `drop` for a GGUF file, or with what is in no module's name.

        """
        path = local_adapter(path)
        if not is_peft_folder(path):
            if drop:
                message = f"{path}: drop={list(drop)!r} is for PEFT folders, and this is none; leave it out"
                raise LoraError(message, code=ErrorCode.INVALID_PARAM)
            return read_adapter(path)
        # Imported here because they import gguf's writer and more, which GGUF files do not need.
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
        """Return all reasons why the adapter at `path` cannot be used with the base model; raises LoraLoadError."""
        try:
            file = self.read(path)
        except (InvalidAdapterFileError, LoraIncompatibleError) as error:
            return CompatibilityReport(error.problems or (str(error),))
        return check_compatibility(file, self._base)

    def _keep(self, digest: str, file: AdapterFile) -> None:
        """Cache a conversion, and drop the oldest beyond the limit."""
        with self._lock:
            self._kept[digest] = file
            while sum(len(kept.content) for kept in self._kept.values()) > self._most_kept:
                self._kept.popitem(last=False)
