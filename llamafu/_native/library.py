"""The one libllama of this process."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llamafu._native import backends
from llamafu._native.abi import families
from llamafu._native.abi.shared_library import open_shared
from llamafu._native.logs import LogBridge
from llamafu._util import system
from llamafu._util.system.processes import mapped_files
from llamafu.errors import AbiMismatchError, LibraryNotFoundError

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Library:
    """A loaded libllama whose ABI family is known; every object of the process shares it.

    `operations` and `types` map names ("MUL_MAT", "f16") to this build's numbers, asked of the library itself:
    enum values drift between releases that share a layout. `process` is the one that loaded it, `plugin` the CPU
    backend that it needed, None where that is part of the library.
    """

    path: Path
    family: str
    ffi: Any
    lib: Any
    logs: LogBridge
    operations: dict[str, int] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)
    process: int = field(default_factory=os.getpid)
    plugin: Path | None = None

    def has(self, symbol: str) -> bool:
        """Tell whether this build exports `symbol`."""
        return exports(self.ffi, self.lib, symbol)

    @property
    def version(self) -> str:
        """What the build says of itself; empty on builds before `llama_version`."""
        return self.ffi.string(self.lib.llama_version()).decode() if self.has("llama_version") else ""

    @property
    def sets_whole(self) -> bool:
        """True where one call replaces the whole adapter set, False where adapters are added one by one."""
        return self.has("llama_set_adapters_lora")

    @property
    def keeps_vectors(self) -> bool:
        """True where a token's vector keeps its memory until it is read.

        In builds of 2025, the operations of an adapter for the output matrix, which come after it, may take that memory.
        The symbol is one day younger than the change.
        """
        return self.has("llama_model_n_embd_out")

    @property
    def parts_memory(self) -> bool:
        """True where a context may give each sequence memory of its own; in older builds all sequences share one."""
        return "kv_unified" in self.context_fields

    @property
    def context_fields(self) -> frozenset[str]:
        """The fields of this build's `llama_context_params`."""
        return frozenset(name for name, _ in self.ffi.typeof("struct llama_context_params").fields)


_lock = threading.Lock()
_loaded: Library | None = None


def loaded_library() -> Library | None:
    """Return the library that this process uses; None before the first `open_library`."""
    return _loaded


def open_library(path: Path, family: str, *, gpu: bool = False) -> Library:
    """Load `path` with the verified `family`, once a process.

    A second libllama would bind to the first one's ggml (same SONAME) and mix with it, so asking for another
    path afterwards is an `AbiMismatchError`. `gpu` loads accelerator plug-ins too, the first time it is asked for.
    """
    global _loaded  # noqa: PLW0603 - one library a process is the point
    path = path.resolve()
    with _lock:
        if _loaded is None:
            _loaded = _open(path, family)
        elif _loaded.path != path:
            message = f"this process already uses {_loaded.path}; a second libllama ({path}) needs a process of its own"
            raise AbiMismatchError(message)
        if gpu:
            backends.load_accelerators(_loaded.ffi, _loaded.lib, path)
        return _loaded


def _open(path: Path, family: str) -> Library:
    """Load the library and what it needs: its log callback, and a CPU backend."""
    declarations = families.load(family)
    ffi = declarations.ffi
    _refuse_foreign_ggml(path, loaded=False)
    try:
        lib = open_shared(ffi, str(path))
    except OSError as error:
        message = f"cannot load {path}: {error}; run `llamafu lib list` to see what else there is"
        raise LibraryNotFoundError(message) from error
    _refuse_foreign_ggml(path, loaded=True)
    if not exports(ffi, lib, "llama_set_adapters_lora"):
        # Builds of that generation may reuse the last graph although the adapters changed, and so ignore the
        # change without a word (they compare the address of the adapter list only).
        os.environ.setdefault("LLAMA_GRAPH_REUSE_DISABLE", "1")
    logs = LogBridge(ffi, lib)
    lib.llama_backend_init()
    plugin = backends.load_cpu(ffi, lib, path)
    return Library(
        path=path,
        family=family,
        ffi=ffi,
        lib=lib,
        logs=logs,
        operations=_numbers(ffi, lib.ggml_op_name, len(ffi.typeof("enum ggml_op").elements)),
        types=_numbers(ffi, lib.ggml_type_name, len(ffi.typeof("enum ggml_type").elements)),
        plugin=plugin,
    )


def exports(ffi: Any, lib: Any, symbol: str) -> bool:
    """Tell whether the library behind a cffi object exports `symbol`, which must be declared there."""
    try:
        getattr(lib, symbol)
    except (AttributeError, getattr(ffi, "error", AttributeError)):  # in-line cffi objects have no error class of their own
        return False
    return True


def _numbers(ffi: Any, name_of: Any, count: int) -> dict[str, int]:
    """Map names to numbers through the library's own naming function; entry `count` is its end marker."""
    names = ((number, name_of(number)) for number in range(count - 1))
    return {ffi.string(name).decode(): number for number, name in names if name != ffi.NULL}


def _refuse_foreign_ggml(path: Path, *, loaded: bool) -> None:
    """Raise `AbiMismatchError` where a libggml-base of this process is not beside libllama: two builds would mix.

    `loaded` tells whether libllama is in memory already. Before, nothing of it has been bound to the wrong one yet.
    """
    mapped = mapped_files("ggml-base")
    foreign = [file for file in mapped if _folder(file) != _folder(path)]
    own = len(mapped) - len(foreign) if loaded else 1
    needed = any(path.parent.glob("*ggml-base*"))
    if not foreign or (system.current().by_path and (own or not needed)):
        return
    message = (
        f"{path} would run on another build's ggml ({', '.join(map(str, foreign))}); "
        "start a process that loads only one of them"
    )
    raise AbiMismatchError(message)


def _folder(file: Path) -> str:
    return os.path.normcase(os.path.realpath(file.parent))
