"""The system that the code under test runs on, pretended to be another one, without what only POSIX has."""

import ctypes
import os
import signal
import sys

from llamafu._util import system

MACHINES = [
    ("linux", "x86_64"),
    ("linux", "aarch64"),
    ("macos", "aarch64"),
    ("macos", "x86_64"),
    ("windows", "x86_64"),
    ("windows", "aarch64"),
]
_POSIX_ONLY = ["memfd_create", "fork", "sysconf", "sched_getaffinity", "getloadavg", "getuid", "geteuid", "mkfifo", "killpg"]
_POSIX_MODULES = ["resource", "fcntl", "termios", "pwd", "grp"]


def pretend(monkeypatch, name, machine="x86_64"):
    """Answer as the system `name` would; what is asked of the operating system itself is not changed."""
    facts = system.named(name)
    monkeypatch.setattr(system, "current", lambda: facts)
    monkeypatch.setattr(system, "machine", lambda: machine)


def without_posix(monkeypatch):
    """Take away what Windows lacks, and fail where the code under test opens anything of /proc."""
    for name in _POSIX_ONLY:
        monkeypatch.delattr(os, name, raising=False)
    for name in _POSIX_MODULES:
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("SIGHUP", "SIGALRM"):
        monkeypatch.delattr(signal, name)
    monkeypatch.delattr(signal, "alarm")
    opened = []
    sys.addaudithook(lambda event, details: opened.append(str(details[0])) if event == "open" else None)
    return lambda: [path for path in opened if path.startswith("/proc")]


class Kernel32:
    """What of Windows' kernel32.dll is called, with answers that a test chooses."""

    def __init__(self, *, modules=None, memory=0, features=(), change_time=0):
        self.calls = []
        self._modules, self._memory, self._features, self._change_time = modules or {}, memory, features, change_time
        self._handles = dict(enumerate(self._modules.values(), 1))
        for name in ("GetModuleHandleW", "GetModuleFileNameW", "CreateFileW", "CloseHandle", "GetFileInformationByHandleEx"):
            setattr(self, name, _Function(getattr(self, f"_{name}")))

    def __call__(self, name):
        assert name == "kernel32"
        return self

    def IsProcessorFeaturePresent(self, number):  # noqa: N802 - Windows' name
        return int(number in self._features)

    def GlobalMemoryStatusEx(self, status):  # noqa: N802 - Windows' name
        found = status._obj
        assert found.length == ctypes.sizeof(found) == 64  # as Windows' headers say
        found.total = self._memory
        return int(self._memory > 0)

    def _GetModuleHandleW(self, name):  # noqa: N802 - Windows' name
        return next((number for number, path in self._handles.items() if path.split("\\")[-1] == name), None)

    def _GetModuleFileNameW(self, handle, buffer, _size):  # noqa: N802 - Windows' name
        buffer.value = self._handles[handle].replace("\\", "/")

    def _CreateFileW(self, path, *_rest):  # noqa: N802 - Windows' name
        self.calls.append(path)
        return 7

    def _GetFileInformationByHandleEx(self, handle, kind, times, size):  # noqa: N802 - Windows' name
        assert (handle, kind, size) == (7, 0, 40)
        times[3] = self._change_time
        return 1

    def _CloseHandle(self, handle):  # noqa: N802 - Windows' name
        self.calls.append(handle)


class _Function:
    """A C function, whose types may be set."""

    def __init__(self, function):
        self._function = function

    def __call__(self, *arguments):
        return self._function(*arguments)


class MacosSystem:
    """What of macOS' own library is called."""

    def __init__(self, *, images=(), numbers=None):
        self._images, self._numbers = images, numbers or {}
        self._dyld_get_image_name = _Function(lambda index: os.fsencode(self._images[index]))
        self._dyld_image_count = lambda: len(self._images)

    def sysctlbyname(self, key, value, _size, _new, _new_size):
        if key.decode() not in self._numbers:
            return -1
        value._obj.value = self._numbers[key.decode()]
        return 0
