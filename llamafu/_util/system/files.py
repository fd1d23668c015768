"""Files: private copies, when they changed, and names that are no files."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from llamafu._util import system

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAGIC = {b"\x7fELF": "linux", b"MZ": "windows", b"\xcf\xfa\xed\xfe": "macos", b"\xca\xfe\xba\xbe": "macos"}
"""How shared libraries of each system begin."""
_DEVICES = frozenset({"con", "prn", "aux", "nul", *(f"{kind}{number}" for kind in ("com", "lpt") for number in range(1, 10))})
"""File names that mean a device on Windows, in every folder and with any suffix."""

_folders: dict[str, int] = {}
"""Folders of private copies that are in use, and the processes that made them: a forked child leaves its parent's alone."""


@contextmanager
def private_path(content: bytes) -> Iterator[str]:
    """Give `content` a path that nobody else can write: an anonymous memory file, or one in a temporary folder."""
    if system.current().name == "linux" and hasattr(os, "memfd_create") and Path("/proc/self/fd").exists():
        descriptor = os.memfd_create("llamafu-adapter", os.MFD_CLOEXEC)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view) :]
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
        return
    # A TemporaryDirectory would say on stderr that it was left, where the process ends while a daemon thread is in here.
    folder = tempfile.mkdtemp(prefix="llamafu-")
    _folders[folder] = os.getpid()
    try:
        path = Path(folder) / "adapter.gguf"
        path.write_bytes(content)
        yield str(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _folders.pop(folder, None)


@atexit.register
def _remove_folders() -> None:
    """Remove what threads left that end with the process: after models are closed, since those register their end later."""
    for folder, process in list(_folders.items()):
        if process == os.getpid():
            shutil.rmtree(folder, ignore_errors=True)


def changed_ns(path: Path, status: os.stat_result) -> int:
    """Return when a file, or what is known of it, last changed, in nanoseconds, whatever times it was given since.

    On Windows `st_ctime` is when the file was made, and the time wanted here is asked for by its path.
    """
    if system.current().name == "windows":
        return _windows_change_time(path) or status.st_mtime_ns
    return status.st_ctime_ns


def is_device_name(name: str) -> bool:
    """Tell whether a file of this name would be a device on this system."""
    return system.current().name == "windows" and name.split(".", maxsplit=1)[0].rstrip(" ").lower() in _DEVICES


def library_system(path: Path) -> str | None:
    """Return the name of the system that the shared library at `path` is for, by its first bytes; None for other files."""
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError:
        return None
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


def _windows_change_time(path: Path) -> int | None:
    """Return a file's time of change in nanoseconds; None where it cannot be had."""
    import ctypes

    kernel = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined,unused-ignore] # on Windows only
    kernel.CreateFileW.restype = ctypes.c_void_p
    word, pointer = ctypes.c_uint32, ctypes.c_void_p
    kernel.CreateFileW.argtypes = [ctypes.c_wchar_p, word, word, pointer, word, word, pointer]
    kernel.CloseHandle.argtypes = [ctypes.c_void_p]
    kernel.GetFileInformationByHandleEx.argtypes = [pointer, ctypes.c_int, pointer, word]
    read_attributes, share_all, open_existing, may_be_folder = 0x80, 7, 3, 0x02000000
    handle = kernel.CreateFileW(str(path), read_attributes, share_all, None, open_existing, may_be_folder, None)
    if handle in {None, ctypes.c_void_p(-1).value}:
        return None
    times = (ctypes.c_int64 * 5)()  # made, read, written, changed, attributes
    try:
        told = kernel.GetFileInformationByHandleEx(handle, 0, times, ctypes.sizeof(times))
    finally:
        kernel.CloseHandle(handle)
    return times[3] * 100 if told and times[3] > 0 else None
