"""The report of `llamafu doctor`: the library in use, this machine, the caches, and what to mend."""

from __future__ import annotations

import os
import platform
import re
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llamafu._native import cpu
from llamafu._util import paths
from llamafu._util.system import hardware
from llamafu._version import __version__
from llamafu.errors import LlamafuError
from llamafu.examples import model as example_model
from llamafu.libraries import devices as device_list
from llamafu.libraries import discovery

if TYPE_CHECKING:
    from pathlib import Path

    from llamafu.libraries.verify import VerifiedLibrary

# What the kernel calls a feature, and what libllama's own report calls it.
_FEATURES = {
    "avx": "AVX",
    "avx2": "AVX2",
    "f16c": "F16C",
    "fma": "FMA",
    "bmi2": "BMI2",
    "avx_vnni": "AVX_VNNI",
    "avx512f": "AVX512",
    "avx512vbmi": "AVX512_VBMI",
    "avx512_vnni": "AVX512_VNNI",
    "avx512_bf16": "AVX512_BF16",
    "amx_int8": "AMX_INT8",
    "asimd": "NEON",
    "asimddp": "DOTPROD",
    "i8mm": "MATMUL_INT8",
    "sve": "SVE",
}


@dataclass(frozen=True, slots=True)
class Mend:
    """One command and why; `needed` is False for what would only be better."""

    command: str
    why: str
    needed: bool


@dataclass(frozen=True, slots=True)
class Report:
    """One examination. Memory and sizes in bytes; `devices` is None when listing them crashed."""

    library: VerifiedLibrary | None
    devices: list[dict[str, Any]] | None
    cpu_used: tuple[str, ...]
    cpu_unused: tuple[str, ...]
    cores: tuple[int, int]
    """Usable by this process, and in the machine."""
    folders: dict[str, tuple[Path, int]]
    example_model: bool
    extras: dict[str, tuple[str, ...]]
    """Missing packages of each optional extra; empty when all are there."""
    mends: tuple[Mend, ...] = field(default=())

    @property
    def healthy(self) -> bool:
        """True when nothing has to be mended."""
        return not any(mend.needed for mend in self.mends)

    def as_json(self) -> dict[str, Any]:
        """Return the report as values fit for JSON."""
        used = self.library
        return {
            "llamafu": __version__,
            "python": platform.python_version(),
            "executable": sys.executable,
            "platform": platform.platform(),
            "library": None
            if used is None
            else {
                "path": str(used.path),
                "version": used.version,
                "family": used.family,
                "frees_adapters": used.frees_adapters,
                "sha256": used.digest,
            },
            "cpu": {"used": list(self.cpu_used), "unused": list(self.cpu_unused)},
            "devices": self.devices,
            "cores": {"usable": self.cores[0], "total": self.cores[1]},
            "folders": {name: {"path": str(path), "size": size} for name, (path, size) in self.folders.items()},
            "example_model": self.example_model,
            "extras": {name: {"present": not missing, "missing": list(missing)} for name, missing in self.extras.items()},
            "mend": [{"command": mend.command, "why": mend.why, "needed": mend.needed} for mend in self.mends],
            "healthy": self.healthy,
        }


def examine() -> Report:
    """Make the report; takes about a second, because drivers are loaded in a child process."""
    mends: list[Mend] = []
    try:
        library = discovery.find()
    except LlamafuError as error:
        library = None
        mends.append(_mend_of(str(error)))
    devices = device_list.list_devices(library) if library is not None else None
    if library is not None and devices is None:
        mends.append(Mend("llamafu lib list", "loading the accelerators' drivers crashes; use n_gpu_layers=0", needed=False))
    present = {name for flag, name in _FEATURES.items() if flag in hardware.cpu_flags()}
    reported = set(re.findall(r"(\w+) = 1", library.system)) if library is not None else set()
    unused = tuple(sorted(present - reported)) if library is not None else ()
    if library is not None and unused and paths.library_dir() / discovery.BUILT not in library.path.parents:
        why = f"this CPU has {', '.join(unused)}, which this libllama does not use: one compiled here may be up to 2x as fast"
        mends.append(Mend("llamafu lib build", why, needed=False))
    return Report(
        library=library,
        devices=devices,
        cpu_used=tuple(sorted(present & reported)),
        cpu_unused=unused,
        cores=(cpu.usable_cpus(), os.cpu_count() or 1),
        folders={
            "libraries": _sized(paths.library_dir()),
            "proofs": _sized(paths.cache_dir() / "abi"),
            "models": _sized(paths.model_dir()),
        },
        example_model=(paths.model_dir() / example_model.NAME).is_file(),
        extras=_extras(),
        mends=tuple(mends),
    )


def _mend_of(message: str) -> Mend:
    """Turn an error message into a command: the one it names, unless the user's own setting is what fails."""
    commands = re.findall(r"`(llamafu [^`]+)`", message)
    if os.environ.get(discovery.ENVIRONMENT):
        return Mend(f"unset {discovery.ENVIRONMENT}", message, needed=True)
    return Mend(commands[-1] if commands else "llamafu lib install", message, needed=True)


def _sized(folder: Path) -> tuple[Path, int]:
    return folder, sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


_FOR_DEVELOPERS = frozenset({"test", "peers"})
"""Extras for work on Llamafu itself, which nobody who uses it lacks."""


def _extras() -> dict[str, tuple[str, ...]]:
    """Read the metadata of the installed package; empty when this runs from a bare checkout."""
    from importlib import metadata

    try:
        requirements = metadata.requires("llamafu") or []
    except metadata.PackageNotFoundError:
        return {}
    missing: dict[str, list[str]] = {}
    for requirement in requirements:
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", requirement)
        name = re.match(r"[\w.-]+", requirement)
        if extra is None or name is None or extra[1] in _FOR_DEVELOPERS:
            continue
        absent = missing.setdefault(extra[1], [])
        try:
            metadata.distribution(name[0])
        except metadata.PackageNotFoundError:
            absent.append(name[0])
    return {extra: tuple(names) for extra, names in missing.items()}
