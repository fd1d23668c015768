"""llama.cpp's own programs, which some benchmarks are measured against: named, found, or compiled once from the sdist."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from llamafu._native.cpu import usable_cpus
from llamafu._util.paths import cache_dir

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

from upstream_tree import REQUIREMENT, UpstreamError, upstream_tree

ENVIRONMENT = "LLAMAFU_BENCH_TOOLS"
PROGRAMS = ("llama-server", "llama-export-lora", "llama-quantize")
_OPTIONS = (
    *("-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON", "-DGGML_NATIVE=ON", "-DLLAMA_OPENSSL=OFF"),
    *("-DLLAMA_BUILD_SERVER=ON", "-DLLAMA_BUILD_TOOLS=ON", "-DLLAMA_BUILD_COMMON=ON"),
    *(f"-DLLAMA_BUILD_{part}=OFF" for part in ("TESTS", "EXAMPLES", "UI", "MTMD")),
)


def find_tools(named: str | None) -> Path | None:
    """Folder of the programs: the one named, that of the variable, or one compiled from the sdist, which takes minutes once.

    None, after saying why, where they cannot be compiled.
    """
    named = named or os.environ.get(ENVIRONMENT)
    folder = Path(named) if named else cache_dir() / "bench" / REQUIREMENT.replace("==", "-") / "bin"
    if not named and not all((folder / program).is_file() for program in PROGRAMS):
        try:
            _compile(folder.parent)
        except (UpstreamError, subprocess.CalledProcessError, OSError) as error:
            print(f"   no llama-server to measure against: {error}")
            return None
    missing = [program for program in PROGRAMS if not (folder / program).is_file()]
    if missing:
        message = f"{folder} holds no {', '.join(missing)}; name the folder that they were built into"
        raise SystemExit(message)
    return folder


def _compile(folder: Path) -> None:
    tree = upstream_tree()
    print(f"   compiling {', '.join(PROGRAMS)} from {REQUIREMENT}, once; this takes some minutes", file=sys.stderr)
    places = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
    cmake = shutil.which("cmake", path=places)
    if cmake is None:
        message = "cmake is missing; install it (`pip install cmake`)"
        raise UpstreamError(message)
    folder.mkdir(parents=True, exist_ok=True)
    ninja = ["-G", "Ninja"] if shutil.which("ninja", path=places) else []
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        for command in (
            [cmake, "-S", tree, "-B", folder, *ninja, *_OPTIONS],
            [cmake, "--build", folder, "--parallel", str(usable_cpus()), "--target", *PROGRAMS],
        ):
            subprocess.run(list(map(str, command)), check=True, stdout=log, stderr=log)
