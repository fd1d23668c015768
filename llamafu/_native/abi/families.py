"""ABI families: cffi declarations for one binary layout each, compiled from `cdefs/` or derived from a header."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from llamafu._native.abi.headers import extract
from llamafu._native.abi.symbols import EXTRACTED
from llamafu.errors import AbiMismatchError

_HEADERS = ("ggml.h", "ggml-backend.h", "llama.h")


@dataclass(frozen=True, slots=True)
class Family:
    """One layout: its name (a folder of `cdefs/`, or "header:PATH") and its cffi object."""

    name: str
    ffi: Any


def compiled_names() -> list[str]:
    """Names of the families that ship with the package, newest layout first."""
    found = [path.stem for path in Path(__file__).parent.glob("layout[0-9]*.py")]
    if not found:
        message = "the generated cffi modules are missing from this checkout; run `python build_ffi.py` once"
        raise AbiMismatchError(message)
    return sorted(found, reverse=True)


@cache
def load(name: str) -> Family:
    """Return the family `name`, one of `compiled_names()` or "header:PATH"."""
    if name.startswith("header:"):
        return _derive(Path(name.removeprefix("header:")))
    return Family(name, importlib.import_module(f"llamafu._native.abi.{name}").ffi)


def header_beside(library: Path) -> Path | None:
    """The `llama.h` that describes `library`: `LLAMAFU_HEADER`, or one in an `include` folder near it."""
    override = os.environ.get("LLAMAFU_HEADER")
    if override:
        return Path(override)
    folder = library.resolve().parent
    near = (folder, folder / "include", folder.parent / "include", folder.parent.parent / "include")
    return next((place / "llama.h" for place in near if _is_complete(place)), None)


def names_for(library: Path) -> list[str]:
    """Families to try on `library`, likeliest first: what a header says, then those that ship with the package.

    A header named in `LLAMAFU_HEADER` is the only one tried; one that merely lies nearby may belong to another build.
    """
    header = header_beside(library)
    if header is None:
        return compiled_names()
    return [f"header:{header}", *([] if os.environ.get("LLAMAFU_HEADER") else compiled_names())]


def _is_complete(folder: Path) -> bool:
    places = (folder, folder.parent / "ggml" / "include")
    return (folder / "llama.h").is_file() and all(any((p / name).is_file() for p in places) for name in _HEADERS)


def _derive(header: Path) -> Family:
    """Make a family from a header; ggml's headers lie beside it or in the source tree's `ggml/include`."""
    import cffi

    places = (header.parent, header.parent.parent / "ggml" / "include")
    texts = []
    for name in _HEADERS:
        found = header if name == "llama.h" else next((p / name for p in places if (p / name).is_file()), None)
        if found is None or not found.is_file():
            message = f"cannot derive the ABI from {header}: {name} is not beside it; put {', '.join(_HEADERS)} in one folder"
            raise AbiMismatchError(message)
        texts.append(found.read_text(encoding="utf-8", errors="replace"))
    ffi = cffi.FFI()
    try:
        ffi.cdef(extract(texts, EXTRACTED))
    except (cffi.CDefError, cffi.FFIError) as error:
        message = f"cannot derive the ABI from {header}: {error}; give another header in LLAMAFU_HEADER"
        raise AbiMismatchError(message) from error
    return Family(f"header:{header}", ffi)
