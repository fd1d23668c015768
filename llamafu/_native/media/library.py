"""The libmtmd that belongs to a libllama: where it lies, its ABI families, and loading it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamafu._native.abi.shared_library import open_shared
from llamafu.errors import MultimodalError

if TYPE_CHECKING:
    from llamafu._native.library import Library

_NAMES = ("libmtmd.so", "libmtmd.so.*", "libmtmd.dylib", "libmtmd.*.dylib", "mtmd.dll", "libmtmd.dll")
_PREFIX = "layout_"


@dataclass(frozen=True, slots=True)
class MediaLibrary:
    """A loaded libmtmd whose ABI family is known. `library` is the libllama that it computes with."""

    path: Path
    family: str
    ffi: Any
    lib: Any
    library: Library

    @property
    def states_length(self) -> bool:
        """Whether texts come with their length, so that a NUL does not end them."""
        return any(name == "text_len" for name, _ in self.ffi.typeof("struct mtmd_input_text").fields)

    @property
    def fields(self) -> frozenset[str]:
        """The fields of this build's `mtmd_context_params`."""
        return frozenset(name for name, _ in self.ffi.typeof("struct mtmd_context_params").fields)

    @property
    def places_images(self) -> bool:
        """Whether the positions of an image's rows can be asked for (M-RoPE)."""
        return self.family >= "mtmd06"

    def address(self, pointer: Any) -> Any:
        """Return a pointer of libllama's declarations as one of libmtmd's."""
        return self.ffi.cast("void *", int(self.library.ffi.cast("uintptr_t", pointer)))


def path_beside(library: Path) -> Path | None:
    """Return the libmtmd in the folder of a libllama; None where there is none."""
    return next((path for name in _NAMES for path in sorted(library.parent.glob(name))), None)


def family_names() -> list[str]:
    """Return the names of the families that ship with the package, newest layout first."""
    folder = Path(__file__).resolve().parents[1] / "abi"
    return sorted((path.stem.removeprefix(_PREFIX) for path in folder.glob(f"{_PREFIX}mtmd*.py")), reverse=True)


def declarations(family: str) -> Any:
    """Return the cffi object of one of `family_names`."""
    return importlib.import_module(f"llamafu._native.abi.{_PREFIX}{family}").ffi


def open_media_library(library: Library, path: Path, family: str) -> MediaLibrary:
    """Load the libmtmd at `path`, whose family was proven, beside the libllama of this process; `MultimodalError`."""
    ffi = declarations(family)
    try:
        lib = open_shared(ffi, str(path))
    except OSError as error:
        message = f"cannot load {path}: {error}; use a build that has libmtmd beside libllama: `llamafu lib install`"
        raise MultimodalError(message) from error
    media = MediaLibrary(path, family, ffi, lib, library)
    library.logs.serve(lambda callback: lib.mtmd_helper_log_set(media.address(callback), ffi.NULL))
    return media
