"""What must work on every system: the doctor, the proof, one libllama a process, a server that answers with an adapter.

Runs on the machine at hand, and on those of `scripts/other_machines.py`.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from llamafu import Llamafu
from llamafu._util import system
from llamafu.libraries.verify import VerifiedLibrary, verify_library

ROOT = Path(__file__).resolve().parents[2]


def python(*arguments, **variables):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **variables},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def test_doctor(real):
    """The library that was found is the one in use, and computes on the CPU."""
    done = python("-m", "llamafu", "doctor", "--json", LLAMAFU_LIB=str(real.path))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["healthy"]
    assert Path(report["library"]["path"]) == real.path
    assert "cpu" in [device["kind"] for device in report["devices"]]


def test_proof(real, monkeypatch, tmp_path):
    """Without the cache the library is proven anew, in a child process, and its family is the same."""
    monkeypatch.setenv("LLAMAFU_CACHE", str(tmp_path))
    answer = verify_library(real.path)
    assert isinstance(answer, VerifiedLibrary), answer
    assert answer == real


@pytest.mark.parametrize("name", ["wrong.so", "wrong.dylib", "wrong.dll"])
def test_text_is_no_library(tmp_path, name):
    (tmp_path / name).write_text("no library")
    answer = verify_library(tmp_path / name)
    assert not isinstance(answer, VerifiedLibrary)
    assert answer.cause == "the file is no shared library"


@pytest.fixture(scope="module")
def other(real, tmp_path_factory):
    """Another build: a copy of the library and all that lies beside it, in a folder with letters beyond ASCII."""
    folder = tmp_path_factory.mktemp("anders-ü") / "package"
    home = real.path.parent.parent
    for name in ("lib", "bin"):
        if (home / name).is_dir():
            shutil.copytree(home / name, folder / name, ignore=shutil.ignore_patterns("*vulkan*", "*server*", "*mtmd*"))
    return folder / real.path.relative_to(home)


def test_library_in_a_folder_beyond_ascii(other, real, tiny_model, tiny_adapter_a, tmp_path):
    """Paths of the library, of its plug-ins, of the model and of adapters are passed on as they are."""
    folder = tmp_path / "modèle 漢"
    folder.mkdir()
    for path in (tiny_model, tiny_adapter_a):
        shutil.copy(path, folder)
    program = """
import sys
from llamafu import Llamafu
library, model, adapter = sys.argv[1:]
with Llamafu(model, library=library, n_ctx=128, n_threads=1) as llm:
    llm.apply_lora_adapter(llm.load_lora_adapter(adapter), scale=0.5)
    print(*llm.complete("Once", max_tokens=4, temperature=0, ignore_eos=True).tokens)
"""
    done = python("-c", program, other, folder / tiny_model.name, folder / tiny_adapter_a.name)
    assert done.returncode == 0, done.stderr
    with Llamafu(tiny_model, library=real.path, n_ctx=128, n_threads=1) as llm:
        llm.apply_lora_adapter(llm.load_lora_adapter(tiny_adapter_a), scale=0.5)
        wanted = llm.complete("Once", max_tokens=4, temperature=0, ignore_eos=True).tokens
    assert [int(token) for token in done.stdout.split()] == list(wanted)


def test_second_library_is_refused(other, real, tiny_model):
    """One process uses one libllama."""
    program = """
import sys
from llamafu import Llamafu
from llamafu.errors import AbiMismatchError
library, other, model = sys.argv[1:]
with Llamafu(model, library=library, n_ctx=64, n_threads=1):
    try:
        Llamafu(model, library=other, n_ctx=64, n_threads=1)
    except AbiMismatchError as error:
        print(error)
"""
    done = python("-c", program, real.path, other, tiny_model)
    assert done.returncode == 0, done.stderr
    assert "a second libllama" in done.stdout
    assert "needs a process of its own" in done.stdout


@pytest.mark.skipif(system.current().by_path, reason="here libraries of one name are told apart by their paths")
def test_foreign_ggml_is_refused(other, real, tiny_model):
    """A ggml that another package has loaded is seen: libllama would run on it."""
    (base,) = (path for path in other.parent.iterdir() if path.name in {"ggml-base.dll", "libggml-base.so.0"})
    program = """
import ctypes, sys
base, library, model = sys.argv[1:]
ctypes.CDLL(base)
from llamafu import Llamafu
from llamafu.errors import AbiMismatchError
try:
    Llamafu(model, library=library, n_ctx=64, n_threads=1)
except AbiMismatchError as error:
    print(error)
"""
    done = python("-c", program, base, real.path, tiny_model)
    assert done.returncode == 0, done.stderr
    assert "another build's ggml" in done.stdout
    assert base.name in done.stdout


def test_serve_answers(real, tiny_model, folder, alone, tmp_path):
    """A server that was started from the command line computes what the library does, with and without an adapter."""
    command = [sys.executable, "-m", "llamafu", "serve", "-m", tiny_model, "--adapters", folder, "--port", 0, "--threads", 1]
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(
            [*map(str, command), "--no-auth"],
            cwd=ROOT,
            env={**os.environ, "LLAMAFU_LIB": str(real.path)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            encoding="utf-8",
        ) as server,
    ):
        try:
            url = next((line.split()[-1] for line in server.stdout if line.startswith("listening on ")), None)
            assert url is not None, (tmp_path / "log").read_text(encoding="utf-8", errors="replace")
            for lora in ({}, {"a": 0.5}):
                wanted = alone.complete("Once", max_tokens=6, temperature=0, lora=lora).text
                assert (
                    _ask(f"{url}/v1/completions", {"prompt": "Once", "max_tokens": 6, "temperature": 0, "lora": lora}) == wanted
                )
            if system.current().name != "windows":
                server.send_signal(signal.SIGTERM)
                assert server.wait(60) == 0
        finally:
            server.kill()


def _ask(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})  # noqa: S310 - loopback
    with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310 - loopback
        return json.load(answer)["choices"][0]["text"]
