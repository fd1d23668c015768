"""Every branch between operating systems, tried on this one: the facts are pretended, and the systems' own calls are played."""

import codecs
import ctypes
import errno
import os
import signal
import sys
from pathlib import Path

import pytest
from helpers.child import start
from helpers.other_systems import Kernel32, MacosSystem, pretend

from llamafu._native import library as native_library
from llamafu._native.abi.shared_library import JoinedLibrary, open_shared, plugin_path
from llamafu._util import system
from llamafu._util.system import files, hardware, processes
from llamafu.cli import main as command_line
from llamafu.engine import registry
from llamafu.errors import AbiMismatchError, LlamafuError
from llamafu.libraries import backend_names, build, discovery, install, probe
from llamafu.server.storage.adapter_folder import is_name

PACKAGE = Path(system.__file__).resolve().parents[2]


@pytest.fixture
def windows(monkeypatch):
    pretend(monkeypatch, "windows")


@pytest.fixture
def macos(monkeypatch):
    pretend(monkeypatch, "macos", "aarch64")


@pytest.fixture(autouse=True)
def fresh_flags():
    hardware.cpu_flags.cache_clear()
    yield
    hardware.cpu_flags.cache_clear()


@pytest.mark.parametrize(
    ("platform", "name"), [("linux", "linux"), ("darwin", "macos"), ("win32", "windows"), ("freebsd14", "linux")]
)
def test_system_of_a_platform(monkeypatch, platform, name):
    monkeypatch.setattr(system.sys, "platform", platform)
    assert system.current().name == name
    assert name not in [other.name for other in system.others()]


@pytest.mark.parametrize(
    ("said", "machine"), [("AMD64", "x86_64"), ("x86_64", "x86_64"), ("arm64", "aarch64"), ("ARM64", "aarch64")]
)
def test_machine_has_one_name(monkeypatch, said, machine):
    monkeypatch.setattr(system.platform, "machine", lambda: said)
    assert system.machine() == machine


def test_no_module_branches_by_itself():
    """Only `_util/system` asks which system this is."""
    asking = ("sys.platform", "os.name", "platform.system", "/proc/", "memfd_create", "WinDLL", "os.fork")
    found = {
        str(path.relative_to(PACKAGE)): [word for word in asking if word in text]
        for path in PACKAGE.rglob("*.py")
        if not path.name.startswith("layout") and path.parent.name != "system"
        if any(word in (text := path.read_text(encoding="utf-8")) for word in asking)
    }
    assert found == {
        "server/auth/keys.py": ["os.name"],  # rights of a file exist on POSIX only
        "_util/wheel_download.py": ["platform.system"],  # in a message
    }


@pytest.mark.parametrize(
    ("name", "code", "crashed", "text"),
    [
        ("linux", -11, True, "signal 11, SIGSEGV"),
        ("linux", 1, False, "exit status 0x1"),
        ("macos", -6, True, "signal 6, SIGABRT"),
        ("windows", 1, False, "exit status 0x1"),
        ("windows", 3, True, "exit status 0x3, abort"),
        ("windows", 0xC0000005, True, "exit status 0xc0000005, access violation"),
        ("windows", 0xC0000005 - 2**32, True, "exit status 0xc0000005, access violation"),
        ("windows", 0xC0000409, True, "exit status 0xc0000409, fail fast"),
        ("windows", 0xC0001234, True, "exit status 0xc0001234"),
    ],
)
def test_ends_of_processes(monkeypatch, name, code, crashed, text):
    pretend(monkeypatch, name)
    assert processes.crashed(code) == crashed
    assert processes.ending(code) == text


def test_signals(monkeypatch, windows):
    """Windows has Ctrl-Break's, which Python defines there only, and no SIGHUP."""
    monkeypatch.setattr(signal, "SIGBREAK", signal.SIGUSR1, raising=False)
    monkeypatch.delattr(signal, "SIGHUP")
    assert processes.ending_signals() == [signal.SIGTERM, signal.SIGUSR1]
    assert processes.serving_signals() == [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
    monkeypatch.undo()
    assert processes.ending_signals() == [signal.SIGTERM, signal.SIGHUP]
    assert processes.serving_signals() == [signal.SIGINT, signal.SIGTERM]


def test_closed_pipe(monkeypatch, windows, capsys):
    """Windows' error of a write to a pipe that nobody reads is one, of a file it is not."""
    gone = OSError(errno.EINVAL, "Invalid argument")
    assert processes.is_closed_pipe(gone)
    assert processes.is_closed_pipe(BrokenPipeError())
    assert not processes.is_closed_pipe(OSError(errno.EINVAL, "Invalid argument", "model.gguf"))
    assert not processes.is_closed_pipe(FileNotFoundError())
    monkeypatch.setattr(command_line.os, "dup2", lambda *_: None)

    def fail(_arguments):
        raise gone

    monkeypatch.setattr("llamafu.cli.doctor.add_parser", lambda parsers: parsers.add_parser("doctor").set_defaults(run=fail))
    assert command_line.main(["doctor"]) == command_line.BROKEN_PIPE
    assert capsys.readouterr().err == ""
    monkeypatch.undo()
    assert not processes.is_closed_pipe(gone)


def test_text_that_is_piped(monkeypatch, windows):
    """Files and pipes get UTF-8 on Windows, unless the user said otherwise."""
    monkeypatch.delenv("PYTHONIOENCODING", raising=False)
    assert processes.piped_encoding() == "utf-8"
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    assert processes.piped_encoding() is None
    pretend(monkeypatch, "linux")
    assert processes.piped_encoding() is None


def test_memory_and_features_of_windows(monkeypatch, windows):
    monkeypatch.setattr(ctypes, "WinDLL", Kernel32(memory=16 << 30, features={39, 40}), raising=False)
    assert hardware.machine_bytes() == 16 << 30
    assert hardware.cpu_flags() == {"avx", "avx2"}
    monkeypatch.setattr(ctypes, "WinDLL", Kernel32(), raising=False)
    assert hardware.machine_bytes() == float("inf")


def test_features_of_macos(monkeypatch, macos):
    numbers = {"hw.optional.neon": 1, "hw.optional.arm.FEAT_DotProd": 1, "hw.optional.arm.FEAT_I8MM": 0}
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: MacosSystem(numbers=numbers))
    assert hardware.cpu_flags() == {"asimd", "asimddp"}


@pytest.mark.parametrize(
    ("machine", "text", "flags", "name"),
    [
        ("x86_64", "processor\t: 0\nmodel name\t: A CPU\nflags\t\t: fpu avx2 fma\n", {"fpu", "avx2", "fma"}, "A CPU"),
        ("aarch64", "processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU part\t: 0xd0c\n", {"fp", "asimd", "asimddp"}, None),
        ("aarch64", "processor\t: 0\nmodel name\t: A CPU\nflags\t\t: fpu avx2 fma\n", set(), "A CPU"),
        ("x86_64", "", set(), None),
    ],
)
def test_features_of_linux(monkeypatch, tmp_path, machine, text, flags, name):
    """Both spellings of the kernel's list, of x86 and of ARM, which names no model. An emulated ARM may show that of x86."""
    pretend(monkeypatch, "linux", machine)
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(hardware, "_CPUINFO", tmp_path / "cpuinfo")
    assert hardware.cpu_flags() == flags
    assert hardware.cpu_name() == (name or hardware.platform.processor() or hardware.platform.machine())


@pytest.mark.parametrize("name", ["windows", "macos"])
def test_private_file_instead_of_memory(monkeypatch, tmp_path, name):
    """Elsewhere than on Linux the private copy is a file, whole while it is used, and gone afterwards."""
    pretend(monkeypatch, name)
    monkeypatch.setattr(os, "memfd_create", lambda *_: pytest.fail("a memory file was made"), raising=False)
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path))
    with files.private_path(b"content") as path:
        assert Path(path).read_bytes() == b"content"
        assert Path(path).parent.stat().st_mode & 0o077 == 0
    assert list(tmp_path.iterdir()) == []


def test_private_file_of_a_thread_that_ends_with_the_process(tmp_path):
    """The copy is removed without a word; one that the parent of a forked child has stays."""
    program = """
import os, sys, tempfile, threading
from llamafu._util import system
from llamafu._util.system import files

tempfile.tempdir = sys.argv[1]
system.current = lambda: system.named("macos")
entered = threading.Event()
def work():
    with files.private_path(b"content"):
        entered.set()
        threading.Event().wait()
threading.Thread(target=work, daemon=True).start()
assert entered.wait(20)
if "forked" in sys.argv:
    files._folders = dict.fromkeys(files._folders, os.getppid())
"""
    for arguments, left in (([], 0), (["forked"], 1)):
        assert start(["-c", program, str(tmp_path), *arguments], seconds=30) == (0, "", "")
        assert len(list(tmp_path.iterdir())) == left


def test_time_of_change_on_windows(monkeypatch, windows, tmp_path):
    """A rewrite that keeps size and time of writing is seen by the time of change; `st_ctime` is the file's birth there."""
    path = tmp_path / "a.gguf"
    path.write_bytes(b"1")
    before, after = Kernel32(change_time=10_000), Kernel32(change_time=10_001)
    monkeypatch.setattr(ctypes, "WinDLL", before, raising=False)
    first = registry._signature(path)
    assert before.calls == [str(path), 7]  # asked, and closed again
    monkeypatch.setattr(ctypes, "WinDLL", after, raising=False)
    assert registry._signature(path) != first
    monkeypatch.setattr(ctypes, "WinDLL", before, raising=False)
    assert registry._signature(path) == first


def test_device_names(monkeypatch):
    """CON and its like are names of adapters everywhere but on Windows."""
    names = ["CON", "nul", "com1", "Aux.old", "lpt9 "]
    assert not any(map(files.is_device_name, names))
    assert is_name("CON")
    pretend(monkeypatch, "windows")
    assert all(map(files.is_device_name, names))
    assert not is_name("CON")
    assert is_name("CONSOLE")
    assert not files.is_device_name("com10")


@pytest.fixture
def place(tmp_path):
    """Folders of two builds, each with its ggml."""
    for folder in ("ours", "theirs"):
        (tmp_path / folder).mkdir()
        for name in ("libggml-base.so.0", "ggml-base.dll", "libggml-base.0.dylib"):
            (tmp_path / folder / name).touch()
    return tmp_path


def test_second_ggml_on_windows(monkeypatch, windows, place):
    """The module of that name which is loaded already is looked at before ours is loaded: it would bind to it at once."""
    ours, theirs = place / "ours" / "llama.dll", str(place / "theirs" / "ggml-base.dll").replace("/", "\\")
    monkeypatch.setattr(ctypes, "WinDLL", Kernel32(), raising=False)
    native_library._refuse_foreign_ggml(ours, loaded=False)
    monkeypatch.setattr(ctypes, "WinDLL", Kernel32(modules={"ggml-base.dll": theirs}), raising=False)
    with pytest.raises(AbiMismatchError, match="another build's ggml .*theirs.ggml-base.dll"):
        native_library._refuse_foreign_ggml(ours, loaded=False)
    own = str(ours.with_name("ggml-base.dll")).replace("/", "\\")
    monkeypatch.setattr(ctypes, "WinDLL", Kernel32(modules={"ggml-base.dll": own}), raising=False)
    native_library._refuse_foreign_ggml(ours, loaded=False)
    native_library._refuse_foreign_ggml(ours, loaded=True)


def test_second_ggml_on_linux(monkeypatch, place):
    """Any other build's ggml is refused, also before ours is loaded; the maps name it."""
    lines = f"7f00 r-xp 0 0 1   {place}/theirs/libggml-base.so.0\n7f01 r-xp 0 0 1   /usr/lib/libc.so.6\n7f02 rw-p 0 0 0 \n"
    monkeypatch.setattr(processes, "Path", lambda path: FakeMaps(lines) if path == "/proc/self/maps" else Path(path))
    with pytest.raises(AbiMismatchError, match="another build's ggml"):
        native_library._refuse_foreign_ggml(place / "ours" / "libllama.so", loaded=False)
    native_library._refuse_foreign_ggml(place / "theirs" / "libllama.so", loaded=False)


class FakeMaps:
    def __init__(self, lines):
        self._lines = lines

    def exists(self):
        return True

    def read_text(self, **_options):
        return self._lines


def test_second_ggml_on_macos(monkeypatch, macos, place):
    """Libraries are told apart by path there: refused is only a libllama that runs on another's although it has its own."""
    ours, theirs = place / "ours" / "libllama.0.dylib", place / "theirs" / "libggml-base.0.dylib"

    def with_images(*images):
        monkeypatch.setattr(ctypes, "CDLL", lambda _name: MacosSystem(images=[str(image) for image in images]))

    with_images(theirs)
    native_library._refuse_foreign_ggml(ours, loaded=False)
    with pytest.raises(AbiMismatchError, match="another build's ggml"):
        native_library._refuse_foreign_ggml(ours, loaded=True)
    with_images(theirs, ours.with_name("libggml-base.0.dylib"))
    native_library._refuse_foreign_ggml(ours, loaded=True)
    with_images(theirs)
    ours.with_name("libggml-base.0.dylib").unlink()
    for name in ("libggml-base.so.0", "ggml-base.dll"):
        ours.with_name(name).unlink()
    native_library._refuse_foreign_ggml(ours, loaded=True)  # it has its ggml inside


class Exports:
    """A library that cffi opened: a missing function is an error of cffi's own."""

    def __init__(self, **functions):
        self.asked = []
        self._functions = functions

    def __getattr__(self, name):
        self.asked.append(name)
        if name not in self._functions:
            message = f"function {name} not found"
            raise ForeignError(message)
        return self._functions[name]


class ForeignError(Exception):
    """What compiled cffi modules raise in place of AttributeError."""


def test_joined_library():
    """A function comes from the first library that exports it, is looked up once, and a missing one is an AttributeError."""
    first, second = Exports(both="first"), Exports(both="second", only="second")
    joined = JoinedLibrary([first, second], ForeignError)
    assert (joined.both, joined.only, joined.only) == ("first", "second", "second")
    assert second.asked == ["only"]
    with pytest.raises(AttributeError, match="exports absent") as caught:
        _ = joined.absent
    assert caught.value.__context__ is None  # no traceback of a lookup that failed is kept
    assert not native_library.exports(FfiWithError, joined, "absent")


class FfiWithError:
    error = ForeignError


class RecordingFfi:
    """Remembers what is opened, and how."""

    error = ForeignError
    RTLD_NOW, RTLD_LOCAL = 2, 0

    def __init__(self):
        self.opened = []

    def dlopen(self, path, *flags):
        self.opened.append((Path(path).name, *flags))
        return Exports(
            **{"llama": {"llama_backend_init": 1}, "ggml": {"ggml_backend_load": 2}}.get(Path(path).stem, {"ggml_op_name": 3})
        )


def test_dlls_are_joined(monkeypatch, tmp_path):
    """With a DLL its ggml is opened too, from its own folder, and Windows is told where DLLs lie."""
    folders = []
    monkeypatch.setattr(os, "add_dll_directory", folders.append, raising=False)
    for name in ("llama.dll", "ggml.dll", "ggml-base.dll", "ggml-cpu.dll"):
        (tmp_path / name).touch()
    ffi = RecordingFfi()
    joined = open_shared(ffi, str(tmp_path / "llama.dll"))
    assert ffi.opened == [("llama.dll",), ("ggml.dll",), ("ggml-base.dll",)]
    assert (joined.llama_backend_init, joined.ggml_backend_load, joined.ggml_op_name) == (1, 2, 3)
    assert folders[0] == str(tmp_path)
    assert str(Path(sys.executable).parent) in folders


@pytest.mark.parametrize("name", ["libllama.so.0", "libllama.dylib"])
def test_others_are_opened_alone(name):
    """Elsewhere the loader looks through what a library is linked to, and its symbols stay its own."""
    ffi = RecordingFfi()
    open_shared(ffi, f"/opt/{name}")
    assert ffi.opened == [(name, 2)]


def test_path_of_a_plug_in():
    """Windows' ggml takes it in ANSI; what that cannot spell, and every other system's, is as the file system has it."""

    def ansi(name):
        return codecs.lookup("cp1252") if name == "mbcs" else None

    codecs.register(ansi)
    try:
        assert plugin_path("C:\\ü\\ggml-cpu.dll") == b"C:\\\xfc\\ggml-cpu.dll"
        assert plugin_path("C:\\漢\\ggml-cpu.dll") == "C:\\漢\\ggml-cpu.dll".encode()
        assert plugin_path("/ü/libggml-cpu.so") == "/ü/libggml-cpu.so".encode()
    finally:
        codecs.unregister(ansi)


WORDS = [
    (
        "windows",
        b"MZ\x90\x00",
        "cannot load library '{path}': error 0x7e.  Additionally, ctypes.util.find_library() did not manage to locate it",
        ("a DLL that is not found", "MSVCP140.dll", "pip install msvc-runtime"),
    ),
    ("windows", b"MZ\x90\x00", "cannot load library '{path}': error 0xc1", ("another processor architecture",)),
    ("windows", b"text", "cannot load library '{path}': error 0xc1", ("no shared library",)),
    ("windows", b"\x7fELF", "cannot load library '{path}': error 0xc1", ("another system (linux)", "llamafu lib install")),
    ("linux", b"MZ\x90\x00", "{path}: invalid ELF header", ("another system (windows)",)),
    (
        "macos",
        b"\xcf\xfa\xed\xfe",
        "dlopen({path}, 0x0002): Library not loaded: @rpath/libggml.0.dylib\n  Referenced from: <F6> {path}\n  Reason: tried",
        ("it needs libggml.0.dylib", "put libggml.0.dylib beside it"),
    ),
    (
        "macos",
        b"\xcf\xfa\xed\xfe",
        "dlopen({path}, 0x0002): tried: '{path}' (mach-o file, but is an incompatible architecture (have 'x86_64'))",
        ("another processor architecture",),
    ),
    ("macos", b"text", "dlopen({path}, 0x0002): tried: '{path}' (not a mach-o file)", ("no shared library",)),
]


@pytest.mark.parametrize(("name", "head", "text", "words"), WORDS)
def test_words_of_each_loader(monkeypatch, tmp_path, name, head, text, words):
    pretend(monkeypatch, name)
    path = tmp_path / "library"
    path.write_bytes(head)
    answer = probe._loader_refusal(path, text.format(path=path))
    assert all(word in f"{answer['cause']}; {answer['mend']}" for word in words), answer


def test_search_path_of_each_system(monkeypatch, tmp_path):
    """Each loader's own variable and folders are looked at, and ldconfig is asked where it is one."""
    monkeypatch.setattr(discovery, "_indexed_by_ldconfig", lambda: iter([Path("/indexed/libllama.so")]))
    names = {"linux": "libllama.so.0", "macos": "libllama.0.dylib", "windows": "llama.dll"}
    variables = {"linux": "LD_LIBRARY_PATH", "macos": "DYLD_LIBRARY_PATH", "windows": "PATH"}
    for name, file in names.items():
        (tmp_path / name).mkdir()
        for other in names.values():
            (tmp_path / name / other).touch()
        pretend(monkeypatch, name)
        monkeypatch.setenv(variables[name], str(tmp_path / name))
        found = list(discovery._known_to_the_system())
        assert found[0] == tmp_path / name / file
        assert (Path("/indexed/libllama.so") in found) == (name == "linux")


def test_folder_in_use_is_not_replaced(monkeypatch, tmp_path):
    """Where the system does not rename a folder whose library is loaded, both copies stay, and the cause is said."""
    target, stage = tmp_path / "prebuilt", tmp_path / "stage"
    for folder, text in ((target, "old"), (stage, "new")):
        folder.mkdir()
        (folder / "text").write_text(text)
    rename = Path.replace
    for refused in (target, stage):

        def replace(path, new, refused=refused):
            if path == refused:
                raise PermissionError(13, "Access is denied", str(path))
            return rename(path, new)

        monkeypatch.setattr(Path, "replace", replace)
        with pytest.raises(LlamafuError, match=r"cannot be replaced \(Access is denied\): a program may be using"):
            install._replace(target, stage, tmp_path / "old")
        assert (target / "text").read_text() == "old"
        assert (stage / "text").read_text() == "new"
    monkeypatch.setattr(Path, "replace", rename)
    install._replace(target, stage, tmp_path / "old")
    assert (target / "text").read_text() == "new"


@pytest.mark.parametrize(
    ("name", "backend", "wanted", "unwanted"),
    [
        ("linux", "cpu", ["-DGGML_METAL=OFF", "-DGGML_BLAS=OFF", "-DCMAKE_INSTALL_RPATH=$ORIGIN"], ["-DGGML_CUDA=ON"]),
        ("linux", "cuda", ["-DGGML_CUDA=ON", "-DGGML_NATIVE=ON"], ["-DGGML_VULKAN=ON"]),
        ("linux", "rocm", ["-DGGML_HIP=ON"], []),
        ("windows", "vulkan", ["-DGGML_VULKAN=ON"], ["-DCMAKE_INSTALL_RPATH=$ORIGIN"]),
        ("macos", "cpu", ["-DGGML_METAL=OFF", "-DCMAKE_INSTALL_RPATH=@loader_path"], ["-DGGML_METAL=ON"]),
        ("macos", "metal", ["-DGGML_METAL=ON"], []),
    ],
)
def test_settings_of_builds(monkeypatch, name, backend, wanted, unwanted):
    """The compilation gets the backend's option after the ones that turn it off, of which it takes the last."""
    pretend(monkeypatch, name)
    settings = build._settings(backend)
    assert set(wanted) <= set(settings)
    assert not set(unwanted) & set(settings)
    metal = [option for option in settings if option.startswith("-DGGML_METAL=")]
    assert metal[-1] == ("-DGGML_METAL=ON" if backend == "metal" else "-DGGML_METAL=OFF")


def test_ninja_needs_the_compiler_on_windows(monkeypatch, windows):
    """Without the compiler's own console cmake chooses the generator."""
    there = {"ninja"}
    monkeypatch.setattr(build.shutil, "which", lambda name, **_options: name if name in there else None)
    assert "Ninja" not in build._settings("cpu")
    there.add("cl")
    assert "Ninja" in build._settings("cpu")


@pytest.mark.parametrize("backend", ["cuda", "rocm", "vulkan"])
def test_tools_of_a_backend(monkeypatch, backend):
    """A missing compiler of a backend is one line that says where it comes from."""
    pretend(monkeypatch, "linux")
    there = {"cmake", "c++"}
    monkeypatch.setattr(build.shutil, "which", lambda name, **_options: name if name in there else None)
    chosen = backend_names.BACKENDS[backend]
    with pytest.raises(LlamafuError, match=f"with {chosen.title} without {chosen.tools[0]}.*install"):
        build._demand_tools(backend)
    there.add(chosen.tools[-1])
    assert build._demand_tools(backend) == "cmake"


def test_backend_of_another_system(monkeypatch):
    pretend(monkeypatch, "linux")
    with pytest.raises(LlamafuError, match="there is no Metal on linux; choose another --backend: cpu, cuda"):
        build._demand_tools("metal")
    pretend(monkeypatch, "macos")
    with pytest.raises(LlamafuError, match="there is no CUDA on macos"):
        build._demand_tools("cuda")
