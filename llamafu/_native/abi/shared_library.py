"""Opening a libllama, and finding ggml's functions with its own.

`first_open.py` imports this without the package, for speed: only the standard library's light modules are imported here.
"""

from __future__ import annotations

import os
import sys
from typing import Any

_JOINED = ("ggml.dll", "ggml-base.dll", "libggml.dll", "libggml-base.dll")


def open_shared(ffi: Any, path: str) -> Any:
    """Open the libllama at `path` (absolute) and return an object whose attributes are its functions and ggml's.

    A lookup in an ELF or Mach-O library searches what it is linked to as well; in a DLL it finds nothing but what that exports
    itself. Raises OSError where the loader refuses it.
    """
    if not path.lower().endswith(".dll"):
        return ffi.dlopen(path, ffi.RTLD_NOW | ffi.RTLD_LOCAL)
    _add_folders(path)
    folder = os.path.dirname(path)  # noqa: PTH120 - pathlib takes 10 ms to import
    near = [os.path.join(folder, name) for name in _JOINED]  # noqa: PTH118 - as above
    parts = [path, *(part for part in near if os.path.exists(part))]  # noqa: PTH110 - as above
    return JoinedLibrary([ffi.dlopen(part) for part in parts], getattr(ffi, "error", AttributeError))


def plugin_path(path: str) -> bytes:
    """Return the path of a plug-in as `ggml_backend_load` takes it: of a DLL in Windows' ANSI encoding, unlike other paths.

    A path that this encoding cannot spell stays UTF-8, with which ggml does not find it.
    """
    if path.isascii() or not path.lower().endswith(".dll"):
        return os.fsencode(path)
    try:
        return path.encode("mbcs")
    except UnicodeEncodeError:
        return os.fsencode(path)


class JoinedLibrary:
    """The functions of several libraries as attributes of one object; of a name that two have, the first one's. Any thread."""

    def __init__(self, libraries: list[Any], error: type[Exception]) -> None:
        """`error` is what cffi raises for a name that is declared and not exported, beside AttributeError."""
        self._libraries = libraries
        self._error = error

    def __getattr__(self, name: str) -> Any:
        """Return the function `name`, and keep it; AttributeError where no library exports it."""
        for library in self._libraries:
            try:
                found = getattr(library, name)
            except (AttributeError, self._error):  # not kept: its traceback would keep the frames of every caller alive
                continue
            setattr(self, name, found)
            return found
        message = f"none of the libraries exports {name}"
        raise AttributeError(message)


def _add_folders(path: str) -> None:
    """Let Windows find what the DLL needs beside it, and the C++ runtime beside this Python."""
    if not hasattr(os, "add_dll_directory"):
        return
    binaries = os.path.dirname(sys.executable)  # noqa: PTH120 - pathlib takes 10 ms to import
    for folder in (os.path.dirname(path), binaries, os.path.dirname(binaries)):  # noqa: PTH120 - as above
        if os.path.isdir(folder):  # noqa: PTH112 - as above
            os.add_dll_directory(folder)
