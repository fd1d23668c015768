"""What differs from one operating system to another: a table of facts, and in this package's modules what needs code.

Every other module asks here and has no branch of its own, so that the branches of all systems can be tested on one.
"""

from __future__ import annotations

import platform
import sys
from typing import NamedTuple


class System(NamedTuple):
    """Facts of one operating system."""

    name: str
    """"linux" (and what is like it), "macos" or "windows"."""
    libraries: tuple[str, ...]
    """File names of a libllama, the likeliest first."""
    versioned: tuple[str, ...]
    """Patterns of file names that carry a version."""
    native_folder: str
    """What packages that bring libraries for several systems call this one's folder, before "-" and the processor."""
    search_variable: str
    """Environment variable with the folders that the loader searches."""
    library_folders: tuple[str, ...]
    """Folders of libraries that were installed for all users."""
    has_ldconfig: bool
    """Whether the loader keeps an index that `ldconfig -p` prints."""
    by_path: bool
    """Whether libraries of one name in several folders are different ones to the loader."""
    origin: str
    """How a library names its own folder in its search path; empty where the loader always looks there."""


_SYSTEMS = {
    "linux": System(
        name="linux",
        libraries=("libllama.so",),
        versioned=("libllama.so.*",),
        native_folder="linux",
        search_variable="LD_LIBRARY_PATH",
        library_folders=("/usr/local/lib", "/usr/lib"),
        has_ldconfig=True,
        by_path=False,
        origin="$ORIGIN",
    ),
    "macos": System(
        name="macos",
        libraries=("libllama.dylib",),
        versioned=("libllama.*.dylib",),
        native_folder="darwin",
        search_variable="DYLD_LIBRARY_PATH",
        library_folders=("/opt/homebrew/lib", "/usr/local/lib"),
        has_ldconfig=False,
        by_path=True,
        origin="@loader_path",
    ),
    "windows": System(
        name="windows",
        libraries=("llama.dll", "libllama.dll"),
        versioned=(),
        native_folder="windows",
        search_variable="PATH",
        library_folders=(),
        has_ldconfig=False,
        by_path=False,
        origin="",
    ),
}
_BY_PLATFORM = {"darwin": "macos", "win32": "windows"}
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


def current() -> System:
    """Return the facts of this system; one that is not known is taken to be like Linux."""
    return _SYSTEMS[_BY_PLATFORM.get(sys.platform, "linux")]


def named(name: str) -> System:
    """Return the facts of the system `name`."""
    return _SYSTEMS[name]


def others() -> tuple[System, ...]:
    """Return the facts of the systems that this one is not."""
    return tuple(system for system in _SYSTEMS.values() if system.name != current().name)


def machine() -> str:
    """Return the processor's architecture as Linux names it: "x86_64", "aarch64"."""
    name = platform.machine().lower()
    return _MACHINES.get(name, name)
