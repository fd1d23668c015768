"""ggml's compute backends. Many builds keep them as plug-ins beside libllama, and have no CPU device until one is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llamafu._native.abi.shared_library import plugin_path
from llamafu.errors import LibraryNotFoundError

if TYPE_CHECKING:
    from pathlib import Path

_TYPES = ("cpu", "gpu", "igpu", "accel", "meta")
_SUFFIXES = (".so", ".dylib", ".dll")
GPUS = frozenset({"gpu", "igpu"})
"""Kinds of devices that layers can be given to."""
_NO_GPUS = ("ggml-cpu", "ggml-blas", "ggml-rpc")
"""Plug-ins that bring none here. BLAS, which macOS builds have, would take products off the CPU, where adapters are mixed."""


@dataclass(frozen=True, slots=True)
class Device:
    """One compute device: memory in bytes (0 where the backend does not tell)."""

    name: str
    description: str
    kind: str
    free: int
    total: int


def devices(ffi: Any, lib: Any) -> list[Device]:
    """Every registered device."""
    return [device(ffi, lib, lib.ggml_backend_dev_get(index)) for index in range(lib.ggml_backend_dev_count())]


def device(ffi: Any, lib: Any, pointer: Any) -> Device:
    """Return what a backend tells of one of its devices (`ggml_backend_dev_t`)."""
    free, total = ffi.new("size_t *"), ffi.new("size_t *")
    kind = int(lib.ggml_backend_dev_type(pointer))
    lib.ggml_backend_dev_memory(pointer, free, total)
    return Device(
        ffi.string(lib.ggml_backend_dev_name(pointer)).decode("utf-8", "replace"),
        ffi.string(lib.ggml_backend_dev_description(pointer)).decode("utf-8", "replace"),
        _TYPES[kind] if kind < len(_TYPES) else str(kind),
        int(free[0]),
        int(total[0]),
    )


def load_cpu(ffi: Any, lib: Any, library: Path) -> Path | None:
    """Load a CPU backend where there is none, the plug-in that scores best on this processor; return the plug-in, if any."""
    if any(each.kind == "cpu" for each in devices(ffi, lib)):
        return None
    plugins = [p for p in _plugins(library) if "ggml-cpu" in p.name]
    for plugin in sorted(plugins, key=_score, reverse=True):
        lib.ggml_backend_load(plugin_path(str(plugin)))
        if any(each.kind == "cpu" for each in devices(ffi, lib)):
            return plugin
    tried = ", ".join(p.name for p in plugins) or "none there"
    folders = ", ".join(map(str, _plugin_folders(library)))
    message = (
        f"{library} has no CPU backend: looked for libggml-cpu plug-ins in {folders} ({tried}); "
        "install a complete build with `llamafu lib install`"
    )
    raise LibraryNotFoundError(message)


def load_accelerators(ffi: Any, lib: Any, library: Path) -> None:
    """Load every plug-in that may bring a GPU; one whose driver is absent refuses by itself."""
    if any(each.kind in GPUS for each in devices(ffi, lib)):
        return
    for plugin in _plugins(library):
        if not any(name in plugin.name for name in _NO_GPUS):
            lib.ggml_backend_load(plugin_path(str(plugin)))


def _plugin_folders(library: Path) -> list[Path]:
    folder = library.parent
    near = (folder, folder.parent / "bin", folder / "bin", folder.parent / "lib")
    return [place for place in near if place.is_dir()]


def _plugins(library: Path) -> list[Path]:
    """Backend plug-ins near `library`: never the core libraries, which the loader maps by itself."""
    seen: dict[str, Path] = {}
    for place in _plugin_folders(library):
        for path in sorted(place.iterdir()):
            stem = path.name.removeprefix("lib").split(".")[0]
            if stem.startswith("ggml-") and stem != "ggml-base" and path.suffix in _SUFFIXES:
                seen.setdefault(path.name, path)
    return list(seen.values())


def _score(plugin: Path) -> int:
    """The plug-in's own rating of this processor: 0 when it cannot run here, 1 where it has no rating."""
    import cffi

    ffi = cffi.FFI()
    ffi.cdef("int ggml_backend_score(void);")
    try:
        return int(ffi.dlopen(str(plugin)).ggml_backend_score())
    except AttributeError:
        return 1
    except OSError:
        return 0
