"""The child process that loads an unknown library first, so that a crash ends only this process.

    python -m llamafu.libraries.probe PATH [FAMILY_TO_SKIP...]

Prints "trying FAMILY" before the self-test, so that the parent knows which family was in use at a crash, and one
line of JSON at the end: {"ok", "family", "version", "devices", "system", "frees_adapters"} or {"ok", "cause", "mend"}.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from llamafu._util import system
from llamafu._util.system.files import library_system

_WRONG_CLASS = ("wrong ELF class", "cannot open shared object file: Exec format", "incompatible architecture")
_NOT_A_LIBRARY = ("invalid ELF header", "file too short", "not a mach-o file", "slice is not valid")
_MISSING_DLL, _NO_WINDOWS_FILE = "error 0x7e", "error 0xc1"
"""Windows' errors as cffi writes them: a module is not found, and a file that is no program of this machine's kind."""
_NEEDED = r"Library not loaded: (?:@rpath/|@loader_path/)?(\S+)|(\S+): cannot open shared object file"


def main(arguments: list[str]) -> int:
    """Probe one library; the exit status is 0 whenever an answer was printed."""
    path, *skipped = arguments
    sys.stdout.write(json.dumps(probe(Path(path), frozenset(skipped))) + "\n")
    sys.stdout.flush()
    return 0


def probe(path: Path, skipped: frozenset[str]) -> dict[str, Any]:
    """Check symbols, default parameters and use, in this order; the answer is a dictionary fit for JSON."""
    import cffi

    from llamafu._native.abi.shared_library import open_shared

    raw = cffi.FFI()
    try:
        handle = open_shared(raw, str(path))
    except OSError as error:
        return _loader_refusal(path, str(error))
    if (refusal := _missing_symbols(raw, handle)) is not None:
        return refusal
    from llamafu._native.abi import families, fingerprint
    from llamafu.errors import AbiMismatchError

    defaults = fingerprint.take(str(path))
    closest: tuple[str, list[str]] | None = None
    for name in families.names_for(path):
        if name in skipped:
            continue
        try:
            problems = defaults.mismatches(families.load(name).ffi)
        except AbiMismatchError as error:
            return _refused(str(error), "name a complete llama.h in LLAMAFU_HEADER, or unset it")
        if not problems:
            return _use(path, name)
        if closest is None or len(problems) < len(closest[1]):
            closest = (name, problems)
    return _no_family(closest, skipped)


def _use(path: Path, family: str) -> dict[str, Any]:
    """Run the self-test with a family that fits the default parameters."""
    from llamafu._native import backends, library
    from llamafu.errors import LlamafuError
    from llamafu.libraries import self_test

    sys.stdout.write(f"trying {family}\n")
    sys.stdout.flush()
    try:
        loaded = library.open_library(path, family)
        result = self_test.run(loaded)
    except LlamafuError as error:
        return _refused(f"the ABI family {family} fits its defaults but not its behaviour: {error}", _ADD_FAMILY)
    return {
        "ok": True,
        "family": family,
        "version": loaded.version,
        "devices": [[d.name, d.description, d.kind, d.total] for d in backends.devices(loaded.ffi, loaded.lib)],
        "system": loaded.ffi.string(loaded.lib.llama_print_system_info()).decode("utf-8", "replace"),
        "frees_adapters": result.frees_adapters,
    }


_ADD_FAMILY = (
    "put this build's llama.h, ggml.h and ggml-backend.h into an `include` folder beside it (or name llama.h in "
    "LLAMAFU_HEADER), or use another build: `llamafu lib install`"
)


def _refused(cause: str, mend: str) -> dict[str, Any]:
    return {"ok": False, "cause": cause, "mend": mend}


def _loader_refusal(path: Path, text: str) -> dict[str, Any]:
    """Turn the message of the system's loader into a cause and what to do."""
    if (match := re.search(r"version [`']((?:GLIBC|GLIBCXX|CXXABI)_[\d.]+)' not found", text)) is not None:
        wanted = match[1]
        return _refused(
            f"it was built for a newer system: it wants {wanted}, which this system's C library does not have",
            "use a build for older systems (`llamafu lib install`) or compile one here (`llamafu lib build`)",
        )
    if (wrong := _wrong_file(path, text)) is not None:
        return wrong
    if _MISSING_DLL in text:
        return _refused(
            "it needs a DLL that is not found, most often Microsoft's C++ runtime (MSVCP140.dll, VCRUNTIME140_1.dll)",
            "install the runtime (`pip install msvc-runtime`, or Microsoft's Visual C++ Redistributable), or a complete build",
        )
    match = re.search(_NEEDED, text)
    if match is not None and (needed := match[1] or match[2]) != str(path):
        return _refused(f"it needs {needed}, which is not found", f"put {needed} beside it, or install a complete build")
    return _refused(f"the loader says: {text}", "install a build for this machine: `llamafu lib install`")


def _wrong_file(path: Path, text: str) -> dict[str, Any] | None:
    """Refuse what is no shared library, or one for another machine; None where the message says something else."""
    kind = library_system(path)
    if kind is not None and kind != system.current().name:
        return _refused(f"it was built for another system ({kind})", "install a build for this one: `llamafu lib install`")
    if any(phrase in text for phrase in _NOT_A_LIBRARY) or (kind is None and _NO_WINDOWS_FILE in text):
        return _refused("the file is no shared library", "point at the libllama file itself or at the folder that holds it")
    if any(phrase in text for phrase in (*_WRONG_CLASS, _NO_WINDOWS_FILE)):
        return _refused(
            "it was built for another processor architecture", "install a build for this machine: `llamafu lib install`"
        )
    return None


def _missing_symbols(raw: Any, handle: Any) -> dict[str, Any] | None:
    """Refuse a library that lacks a function without which nothing works; None if it has all."""
    from llamafu._native.abi.symbols import REQUIRED, SET_GENERATIONS

    raw.cdef("".join(f"void {name}(void);" for name in sorted({*REQUIRED, *SET_GENERATIONS})))

    def lacks(name: str) -> bool:
        return not hasattr(handle, name)

    missing = sorted(name for name in REQUIRED if lacks(name))
    if "llama_backend_init" in missing:
        return _refused(
            "it is a shared library, but no libllama (it exports no llama_backend_init)", "point at libllama itself"
        )
    if all(lacks(name) for name in SET_GENERATIONS):
        missing.append(" or ".join(SET_GENERATIONS))
    if missing:
        lora = [name for name in missing if "adapter" in name]
        what = "it has no LoRA support" if lora else "it is older than mid 2025 or stripped"
        return _refused(
            f"{what}: missing {', '.join((lora or missing)[:4])}"
            + (f" and {len(missing) - 4} more" if len(missing) > 4 else ""),  # noqa: PLR2004
            "use a release since mid 2025: `llamafu lib install`",
        )
    return None


def _no_family(closest: tuple[str, list[str]] | None, skipped: frozenset[str]) -> dict[str, Any]:
    if closest is None:
        return _refused(f"it crashed while in use with {', '.join(sorted(skipped))}", _ADD_FAMILY)
    name, problems = closest
    known = f"any known ABI family; the closest is {name}"
    source = f"the {name.replace(':', ' ', 1)}" if name.startswith("header:") else known
    return _refused(f"its parameter structs do not match {source}: {'; '.join(problems[:3])}", _ADD_FAMILY)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
