"""What a user does first, with everything taken away that only POSIX systems have."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import ctypes, json, sys
from pathlib import Path
import pytest
from helpers.other_systems import Kernel32, pretend, without_posix

library, model, adapter, folder, name = sys.argv[1:]
monkeypatch = pytest.MonkeyPatch()
import asyncio, numba, platformdirs, tempfile, uvicorn  # other people's modules may look where they like
pretend(monkeypatch, name)
monkeypatch.setattr(ctypes, "WinDLL", Kernel32(memory=64 << 30), raising=False)
proc = without_posix(monkeypatch)

from llamafu import Engine, Llamafu
from llamafu.doctor import examine
from llamafu.server.auth.keys import read_keys, write_new_keys

report = examine()
with Llamafu(model, library=library, n_ctx=256, n_threads=1) as llm:
    loaded = llm.load_lora_adapter(adapter)
    llm.apply_lora_adapter(loaded, scale=0.5)
    one = llm.complete("Once", max_tokens=4, temperature=0).tokens
with Engine(model, library=library, n_ctx=256, n_threads=1) as engine:
    engine.add_adapter(adapter, name="a")
    many = engine.complete("Once", lora={"a": 0.5}, max_tokens=4, temperature=0).tokens
write_new_keys(Path(folder) / "keys.toml")
keys = bool(read_keys(Path(folder) / "keys.toml"))
print(json.dumps({"healthy": report.healthy, "same": one == many, "keys": keys, "proc": proc()}))
"""
TESTS = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", ["windows"])
def test_first_steps_without_posix(home, real, tiny_model, tiny_adapter_a, name):
    """No file of /proc is opened, no memory file, fork, POSIX signal or module is used: all of them are gone or recorded."""
    files = [str(path) for path in (real.path, tiny_model, tiny_adapter_a, home)]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *files, name], cwd=TESTS, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"healthy": True, "same": True, "keys": True, "proc": []}
