"""The processor's instruction sets, and the memory of this machine."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

from llamafu._util import system

_CPUINFO = Path("/proc/cpuinfo")
_NAME_LINE = "model name"
_FLAG_LINES = {"aarch64": "Features"}
"""How the kernel names its list of instruction sets on a machine, where that is not "flags". No other list is read: an emulator
may show that of the machine below."""
_MACOS_FLAGS = {
    "hw.optional.avx1_0": "avx",
    "hw.optional.avx2_0": "avx2",
    "hw.optional.f16c": "f16c",
    "hw.optional.fma": "fma",
    "hw.optional.bmi2": "bmi2",
    "hw.optional.avx512f": "avx512f",
    "hw.optional.neon": "asimd",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
}
"""What macOS calls instruction sets (0 or 1), and what Linux does."""
_WINDOWS_FLAGS = {39: "avx", 40: "avx2", 41: "avx512f", 43: "asimddp"}
"""Numbers of `IsProcessorFeaturePresent` likewise."""


@cache
def cpu_flags() -> frozenset[str]:
    """Return the instruction sets of the first core as Linux spells them ("avx2", "asimddp"), as far as the system tells."""
    name = system.current().name
    if name == "windows":
        return frozenset(flag for number, flag in _WINDOWS_FLAGS.items() if _windows_has(number))
    if name == "macos":
        return frozenset(flag for key, flag in _MACOS_FLAGS.items() if _macos_number(key) == 1)
    return frozenset(_cpuinfo(_FLAG_LINES.get(system.machine(), "flags")).split())


def cpu_name() -> str:
    """Return what the processor calls itself."""
    named = _cpuinfo(_NAME_LINE) if system.current().name == "linux" else ""
    return named or platform.processor() or platform.machine()


def machine_bytes() -> float:
    """Return the memory of this machine; infinite where the system does not tell."""
    if system.current().name == "windows":
        return _windows_memory()
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return float("inf")


def _cpuinfo(wanted: str) -> str:
    """Return the value of the first of the kernel's lines with this name; empty where there is none."""
    try:
        with _CPUINFO.open(encoding="utf-8", errors="replace") as lines:
            pairs = (line.partition(":") for line in lines)
            return next((value.strip() for name, _, value in pairs if name.strip() == wanted), "")
    except OSError:
        return ""


def _macos_number(key: str) -> int | None:
    """Return a number that the kernel knows by this name; None where it does not."""
    import ctypes

    value = ctypes.c_int64(0)
    size = ctypes.c_size_t(ctypes.sizeof(value))
    failed = ctypes.CDLL(None).sysctlbyname(key.encode(), ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0))
    return None if failed else value.value


def _windows_has(feature: int) -> bool:
    import ctypes

    return bool(ctypes.WinDLL("kernel32").IsProcessorFeaturePresent(feature))  # type: ignore[attr-defined,unused-ignore] # on Windows only


def _windows_memory() -> float:
    import ctypes

    class Status(ctypes.Structure):
        """`MEMORYSTATUSEX`."""

        _fields_ = (
            ("length", ctypes.c_uint32),
            ("load", ctypes.c_uint32),
            ("total", ctypes.c_uint64),
            *((name, ctypes.c_uint64) for name in ("free", "pages", "free_pages", "virtual", "free_virtual", "extended")),
        )

    status = Status(length=ctypes.sizeof(Status))
    done = ctypes.WinDLL("kernel32").GlobalMemoryStatusEx(ctypes.byref(status))  # type: ignore[attr-defined,unused-ignore] # on Windows only
    return float(status.total) if done else float("inf")
