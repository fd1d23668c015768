"""Generate the out-of-line ABI-mode cffi modules `llamafu/_native/abi/layout*.py` from `cdefs/`.

    python build_ffi.py

One module for each ABI family (a folder of `cdefs/`), of libllama and of libmtmd. They are plain Python: no C compiler is
involved.
The wheel build calls the same code as a hatchling hook.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import cffi

ROOT = Path(__file__).resolve().parent
TARGET = ROOT / "llamafu" / "_native" / "abi"

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # hatchling is there for packaging only

    class BuildHookInterface:  # type: ignore[no-redef]
        """Stands in where nothing is packaged."""


def declared_functions(cdef: str) -> dict[str, str]:
    """Map each function that a cdef text declares to its declaration."""
    lines = (line for line in cdef.splitlines() if not line.startswith(("typedef", "struct", "enum", "union")))
    return {match[1]: line for line in lines if (match := re.match(r"[\w\s*]*?\b(\w+)\s*\(", line)) is not None}


def family_sources() -> dict[str, str]:
    """Cdef text of every family.

    One layout spans several releases, so a family also gets the functions that its own header lacks and a
    neighbour has: cffi looks a symbol up only when it is used.
    """
    shared = "".join((ROOT / "cdefs" / name).read_text(encoding="utf-8") for name in ("ggml.h", "libc.h"))
    texts = {path.parent.name: path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("cdefs/*/llama.h"))}
    pool: dict[str, str] = {}
    for text in texts.values():
        pool.update(declared_functions(text))
    completed = {}
    for family, text in texts.items():
        own = declared_functions(text)
        known_types = set(re.findall(r"\w+", text))
        extra = [line for name, line in pool.items() if name not in own and _types_of(line) <= known_types]
        completed[family] = text + "".join(f"{line}\n" for line in extra) + shared
    return completed


def media_sources() -> dict[str, str]:
    """Cdef text of every family of libmtmd: its structs, then the functions, whose types are opaque in all of them."""
    shared = (ROOT / "cdefs" / "mtmd.h").read_text(encoding="utf-8")
    paths = sorted(ROOT.glob("cdefs/*/mtmd.h"))
    return {f"layout_{path.parent.name}": path.read_text(encoding="utf-8") + shared for path in paths}


def _types_of(declaration: str) -> set[str]:
    """The library's own type names in a function declaration."""
    arguments = declaration.partition("(")[2]
    return set(re.findall(r"\b(?:struct|enum)\s+(\w+)", arguments)) | set(re.findall(r"\b(?:llama|ggml)_\w+_t\b", arguments))


def generate() -> list[Path]:
    """Write the modules anew and return their paths."""
    TARGET.mkdir(parents=True, exist_ok=True)
    written = []
    for family, text in {**family_sources(), **media_sources()}.items():
        ffi = cffi.FFI()
        ffi.cdef(text)
        ffi.set_source(f"llamafu._native.abi.{family}", None)
        path = TARGET / f"{family}.py"
        ffi.emit_python_code(str(path))
        written.append(path)
    return written


class CustomBuildHook(BuildHookInterface):
    """Adds the generated modules to the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Generate, and name the files that are in no version control."""
        del version
        build_data["artifacts"].extend(str(path.relative_to(ROOT)) for path in generate())


if __name__ == "__main__":
    for module in generate():
        sys.stdout.write(f"{module.relative_to(ROOT)}\n")
