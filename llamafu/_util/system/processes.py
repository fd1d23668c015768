"""How processes end, and what ends them."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

from llamafu._util import system

_ABORTED = 3
"""Exit status of C's `abort` on Windows."""
_EXCEPTIONS = 0x80000000
"""From here on an exit status of Windows is the number of an exception that nobody handled."""
_NAMES = {
    0xC0000005: "access violation",
    0xC000001D: "illegal instruction",
    0xC0000094: "division by zero",
    0xC00000FD: "stack overflow",
    0xC0000135: "a DLL was not found",
    0xC0000374: "damaged heap",
    0xC0000409: "fail fast",
    _ABORTED: "abort",
}


def crashed(code: int) -> bool:
    """Tell whether a process with this exit code crashed, rather than ended by itself with a status of its own."""
    if system.current().name == "windows":
        return code == _ABORTED or code % 2**32 >= _EXCEPTIONS
    return code < 0


def ending(code: int) -> str:
    """Describe the exit code of a process that failed."""
    if system.current().name == "windows":
        status = code % 2**32
        name = f", {_NAMES[status]}" if status in _NAMES else ""
        return f"exit status {status:#x}{name}"
    try:
        return f"signal {-code}, {signal.Signals(-code).name}"
    except ValueError:
        return f"exit status {code:#x}"


def ending_signals() -> list[signal.Signals]:
    """Return the signals, beside Ctrl-C's, that end a program which does not handle them."""
    return _signals("SIGTERM", "SIGBREAK" if system.current().name == "windows" else "SIGHUP")


def serving_signals() -> list[signal.Signals]:
    """Return the signals that ask a server to finish: Ctrl-C's, a service manager's, and on Windows that of Ctrl-Break."""
    return _signals("SIGINT", "SIGTERM", *(["SIGBREAK"] if system.current().name == "windows" else []))


def _signals(*names: str) -> list[signal.Signals]:
    return [getattr(signal, name) for name in names if hasattr(signal, name)]


def is_closed_pipe(error: OSError) -> bool:
    """Tell whether the reader of this process's output has gone. Windows says that a write to it was no valid call."""
    if system.current().name == "windows" and error.errno == errno.EINVAL and error.filename is None:
        return True
    return isinstance(error, BrokenPipeError)


def piped_encoding() -> str | None:
    """Return the encoding of text that goes to a file or a pipe; None for what Python chose."""
    return "utf-8" if system.current().name == "windows" and "PYTHONIOENCODING" not in os.environ else None


def mapped_files(stem: str) -> list[Path]:
    """Return the libraries in this process whose file name begins with `stem`, with or without "lib" before it.

    Windows finds a library that another one needs by its name alone among those that are loaded; there only the first one of
    its name is returned.
    """
    name = system.current().name
    if name == "windows":
        found = [path for file in (f"{stem}.dll", f"lib{stem}.dll") if (path := _windows_module(file))]
    elif name == "macos":
        found = _macos_images()
    else:
        found = _linux_maps()
    return sorted({Path(path) for path in found if os.path.basename(path).removeprefix("lib").startswith(stem)})  # noqa: PTH119 - of text


def _linux_maps() -> list[str]:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return []
    lines = maps.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    return [line[line.index("/") :] for line in lines if "/" in line]


def _macos_images() -> list[str]:
    import ctypes

    dyld = ctypes.CDLL(None)
    dyld._dyld_get_image_name.restype = ctypes.c_char_p  # noqa: SLF001 - the system's name
    count, name = dyld._dyld_image_count, dyld._dyld_get_image_name  # noqa: SLF001 - the system's names
    return [os.fsdecode(name(index)) for index in range(count()) if name(index)]


def _windows_module(file: str) -> str | None:
    """Return the path of the module that is loaded under this file name; None where there is none."""
    import ctypes

    kernel = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined,unused-ignore] # on Windows only
    kernel.GetModuleHandleW.restype = ctypes.c_void_p
    kernel.GetModuleHandleW.argtypes = [ctypes.c_wchar_p]
    kernel.GetModuleFileNameW.argtypes = [ctypes.c_void_p, ctypes.c_wchar_p, ctypes.c_uint32]
    handle = kernel.GetModuleHandleW(file)
    if not handle:
        return None
    buffer = ctypes.create_unicode_buffer(32768)  # the longest path of Windows
    kernel.GetModuleFileNameW(handle, buffer, len(buffer))
    return buffer.value
