"""What several test files share: the tiny models and adapters, written once into `tests/.fixtures/`."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
SCRIPTS = TESTS.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))
# OpenMP's threads spin while they wait, which slows tiny models a hundredfold on a busy machine. Read when libllama loads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's threads spin too, and bring nothing at these sizes
_TIERS = ("devices", "matrix", "peers", "soak")


def pytest_ignore_collect(collection_path, config):
    """Collect the slow tiers only when they are named: `pytest tests/matrix`."""
    if collection_path.parent != TESTS or collection_path.name not in _TIERS:
        return None
    named = {part for argument in config.args for part in Path(argument.partition("::")[0]).parts}
    return True if collection_path.name not in named else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config, specs):
    """Write the fixtures before there are several processes: each would write them under the others' eyes."""
    _fixtures()


def _maker_digest() -> str:
    sources = [
        (SCRIPTS / f"{name}.py").read_bytes()
        for name in ("make_fixtures", "tiny_model", "tiny_kinds", "tiny_encoders", "tiny_media", "tiny_vocabularies")
    ]
    return hashlib.sha256(b"".join([*sources, version("gguf").encode()])).hexdigest()


def _is_current(directory: Path, manifest: Path) -> bool:
    """Whether the folder holds what today's scripts would write, byte for byte."""
    from tiny_model import sha256

    if not manifest.exists():
        return False
    known = json.loads(manifest.read_text("utf-8"))
    return known["maker"] == _maker_digest() and all(
        (directory / name).exists() and sha256(directory / name) == digest for name, digest in known["files"].items()
    )


def _fixtures() -> Path:
    from make_fixtures import write_fixtures

    directory = TESTS / ".fixtures"
    manifest = directory / "manifest.json"
    if not _is_current(directory, manifest):
        files = write_fixtures(directory)
        unfinished = directory / f"manifest.{os.getpid()}"  # another process may read it meanwhile
        unfinished.write_text(json.dumps({"maker": _maker_digest(), "files": files}), encoding="utf-8")
        unfinished.replace(manifest)
    return directory


@pytest.fixture(scope="session")
def tiny_dir():
    """Folder of every file that `scripts/make_fixtures.py` writes; tests must not write there."""
    return _fixtures()


@pytest.fixture(scope="session")
def tiny_model(tiny_dir):
    """F32 llama model: 2 layers, 64 wide, 317 tokens, ChatML, separate output matrix."""
    return tiny_dir / "tiny.gguf"


@pytest.fixture(scope="session")
def tiny_adapter_a(tiny_dir):
    """F32 adapter of rank 4, alpha 8, on all seven projections."""
    return tiny_dir / "a.gguf"


@pytest.fixture(scope="session")
def tiny_adapter_b(tiny_dir):
    """F32 adapter of rank 2, alpha 1, on attn_q and attn_v."""
    return tiny_dir / "b.gguf"


@pytest.fixture(scope="session")
def reference(tiny_model):
    """Return the independent forward pass of `tiny_model`."""
    from helpers.reference import Reference

    return Reference(tiny_model)


@pytest.fixture(scope="module")
def real():
    """A verified libllama."""
    from llamafu.errors import LibraryNotFoundError
    from llamafu.libraries import discovery

    try:
        return discovery.find(os.environ.get("LLAMAFU_TEST_LIB") or None)
    except LibraryNotFoundError as error:
        pytest.skip(f"no libllama to test with: {error}")


@pytest.fixture
def home(real, monkeypatch, tmp_path):
    """Empty data and cache folders; the real library named by the setting."""
    monkeypatch.setenv("LLAMAFU_LIB", str(real.path))
    monkeypatch.setenv("LLAMAFU_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("LLAMAFU_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LLAMAFU_EXAMPLE_MODEL", raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_adapter_a, tiny_adapter_b):
    """A folder of a module's own with the two tiny adapters, to be served."""
    folder = tmp_path_factory.mktemp("adapters")
    shutil.copy(tiny_adapter_a, folder / "a.gguf")
    shutil.copy(tiny_adapter_b, folder / "b.gguf")
    return folder


@pytest.fixture(scope="module")
def alone(real, tiny_model, folder):
    """The same model and adapters without server and engine: what every answer has to be."""
    from llamafu import Llamafu

    with Llamafu(tiny_model, n_ctx=2048, n_threads=1, library=real.path) as llm:
        for path in sorted(folder.iterdir()):
            llm.load_lora_adapter(path)
        yield llm
