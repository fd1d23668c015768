"""The ABI proof from the parent's side: real libraries, shims that lie, crashes, and the cache."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llamafu._native.abi import families
from llamafu._native.abi.symbols import REQUIRED, SET_GENERATIONS
from llamafu._util import child_process
from llamafu.errors import AbiMismatchError, LibraryNotFoundError
from llamafu.libraries import probe, verify
from llamafu.libraries.verify import Refusal, verify_library

ROOT = Path(__file__).resolve().parents[2]
COMPILER = shutil.which("cc") or shutil.which("gcc")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler to make a shim library with")


def prove(path):
    answer = verify_library(path)
    if isinstance(answer, Refusal):
        raise answer.error()
    return answer


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """Give every test an empty cache folder; return the folder of the proofs."""
    monkeypatch.setenv("LLAMAFU_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "abi"


@pytest.fixture
def beside(real, monkeypatch, tmp_path):
    """Folder with a copy of the real library and its ggml, for shims that must lie beside them."""
    folder = tmp_path / "beside"
    shutil.copytree(
        real.path.parent, folder, symlinks=True, ignore=shutil.ignore_patterns("*.py", "*mtmd*", "*server*", "*common*")
    )
    for plugin in (real.path.parent.parent / "bin").glob("*ggml-cpu*"):
        shutil.copy(plugin, folder)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(folder))  # builds that name their own folder absolutely
    return folder


def compile_shim(path, source, *options):
    code = path.with_suffix(".c")
    code.write_text(source)
    made = subprocess.run(
        [COMPILER, "-w", "-shared", "-fPIC", "-o", path, code, *options], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    return path


def compile_over(real, folder, source):
    """Compile a shim that defines some symbols itself and passes on all others of the real library."""
    needed = ["-Wl,--no-as-needed", str(folder / real.path.name), f"-Wl,-rpath,{folder}", "-ldl"]
    return compile_shim(folder / "libllama-shim.so", source, *needed)


def shifted_defaults(real, at, gap):
    """C source of a `llama_context_default_params` with `gap` bytes inserted at offset `at`."""
    size = families.load(real.family).ffi.sizeof("struct llama_context_params")
    return f"""
        #define _GNU_SOURCE
        #include <dlfcn.h>
        #include <string.h>
        typedef struct {{ char bytes[{size}]; }} true_params;
        typedef struct {{ char bytes[{size + gap}]; }} params;
        params llama_context_default_params(void) {{
            true_params (*real)(void) = (true_params (*)(void)) dlsym(RTLD_NEXT, "llama_context_default_params");
            true_params from = real();
            params to;
            memset(&to, 0, sizeof to);
            memcpy(to.bytes, from.bytes, {at});
            memcpy(to.bytes + {at + gap}, from.bytes + {at}, {size - at});
            return to;
        }}
    """


def write_headers(real, folder, change=lambda text: text):
    """Write what describes the real library as three headers, `llama.h` changed; return its path."""
    folder.mkdir()
    if real.family.startswith("header:"):
        source = Path(real.family.removeprefix("header:"))
        places = (source.parent, source.parent.parent / "ggml" / "include")
        for name in ("ggml.h", "ggml-backend.h"):
            shutil.copy(next(place / name for place in places if (place / name).is_file()), folder)
    else:
        source = ROOT / "cdefs" / real.family / "llama.h"
        for name in ("ggml.h", "ggml-backend.h"):
            (folder / name).write_text("")
    (folder / "llama.h").write_text(change(source.read_text(encoding="utf-8")))
    return folder / "llama.h"


def swap_thread_counts(text):
    """Swap two fields of one type whose defaults are equal: no fingerprint can see it."""
    one, other = (re.search(rf"\bint32_t\s+({name})\s*;", text).span(1) for name in ("n_threads", "n_threads_batch"))
    assert one < other
    return f"{text[: one[0]]}n_threads_batch{text[one[1] : other[0]]}n_threads{text[other[1] :]}"


def refusal(path):
    answer = verify_library(path)
    assert isinstance(answer, Refusal), answer
    assert answer.path == path.resolve()
    assert answer.mend
    return answer


def test_real_library_is_proven(real, cache):
    """What works is proven with its family, its devices and its digest."""
    proven = prove(real.path)
    assert proven == real
    assert proven.family in families.compiled_names() or proven.family.startswith("header:")
    assert any(kind == "cpu" for _, _, kind, _ in proven.devices)
    assert re.fullmatch(r"[0-9a-f]{64}", proven.digest)
    assert len(list(cache.iterdir())) == 1


def test_proof_is_remembered(real, monkeypatch):
    """A second look starts no child."""
    first = prove(real.path)
    monkeypatch.setattr(child_process, "run", lambda *_, **__: pytest.fail("a child was started"))
    assert prove(real.path) == first


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"family": 7}', b"\xff\xfe", b'{"family": "layout01", "version": 1}'])
def test_damaged_cache_file_is_ignored(real, cache, damage):
    """A half-written or foreign cache file costs a new proof, nothing else."""
    first = prove(real.path)
    (file,) = cache.iterdir()
    file.write_bytes(damage)
    assert prove(real.path) == first
    assert json.loads(file.read_text())["family"] == first.family


def test_unwritable_cache_is_tolerated(real, monkeypatch, tmp_path):
    """Where nothing can be written the proof is made each time."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLAMAFU_CACHE", str(tmp_path / "file" / "below"))
    assert prove(real.path) == real


def test_another_header_is_another_proof(real, cache, monkeypatch, tmp_path):
    """A cached proof does not survive a change of the header that described the library."""
    header = write_headers(real, tmp_path / "include")
    monkeypatch.setenv("LLAMAFU_HEADER", str(header))
    assert prove(real.path).family == f"header:{header}"
    header.write_text(swap_thread_counts(header.read_text()))
    refusal(real.path)
    assert len(list(cache.iterdir())) == 1


def test_swapped_fields_are_seen_by_use_alone(real, monkeypatch, tmp_path):
    """Two swapped thread counts have the same defaults: setting and reading them back tells."""
    monkeypatch.setenv("LLAMAFU_HEADER", str(write_headers(real, tmp_path / "include", swap_thread_counts)))
    answer = refusal(real.path)
    assert "fits its defaults but not its behaviour" in answer.cause
    assert "n_threads" in answer.cause


WITHOUT_WRITTEN_BYTES = """
import json, sys
from pathlib import Path
from llamafu._util import system
system.machine = lambda: "aarch64"
from llamafu._native.abi import families, fingerprint
from llamafu.libraries import probe
path, *family = sys.argv[1:]
seen = fingerprint.take(path)
answer = probe._use(Path(path), *family) if family else probe.probe(Path(path), frozenset())
print(json.dumps({**answer, "written": [value is not None for value in seen.written.values()]}))
"""


@pytest.mark.parametrize("change", [0, -1, -2])
def test_arm_tells_layouts_apart_without_the_written_bytes(real, change):
    """Where written bytes cannot be seen the same family is found; and its forerunners, were they to fit, would fail in use."""
    known = sorted(families.compiled_names())
    if real.family not in known[2:]:
        pytest.skip("this library's family is a header's, or has no forerunners")
    wrong = [known[known.index(real.family) + change]] if change else []
    command = [sys.executable, "-c", WITHOUT_WRITTEN_BYTES, str(real.path), *wrong]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    if wrong and done.returncode < 0:
        return  # the wrong family crashed this process, as it would the probe's
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["written"] == [False, False]
    if wrong:
        assert f"{wrong[0]} fits its defaults but not its behaviour" in answer["cause"]
    else:
        assert answer["family"] == real.family


def test_unusable_header_is_named(real, monkeypatch, tmp_path):
    """A header that cannot be read as one is blamed, not the library."""
    (tmp_path / "llama.h").write_text("struct llama_model_params { nonsense")
    monkeypatch.setenv("LLAMAFU_HEADER", str(tmp_path / "llama.h"))
    cause = refusal(real.path).cause
    assert str(tmp_path / "llama.h") in cause
    assert "ggml.h is not beside it" in cause


@pytest.mark.parametrize("content", [b"", b"this is no library\n", b"\x7fELF" + bytes(60)])
def test_file_that_is_no_library(tmp_path, cache, content):
    """Text, an empty file and an empty ELF header are refused, and the refusal is not remembered."""
    path = tmp_path / "libllama.so"
    path.write_bytes(content)
    refusal(path)
    assert not cache.exists()
    with pytest.raises(AbiMismatchError, match=re.escape(str(path))):
        prove(path)


def test_missing_file_and_empty_folder(tmp_path):
    """A path that leads nowhere is `LibraryNotFoundError` with the command that mends it."""
    with pytest.raises(LibraryNotFoundError, match=r"there is no such file.*llamafu lib install"):
        prove(tmp_path / "libllama.so")
    with pytest.raises(LibraryNotFoundError, match="no libllama in this folder"):
        prove(tmp_path)


def test_other_shared_library():
    """A shared library that is no libllama is told apart."""
    spec = importlib.util.find_spec("_cffi_backend")
    assert "no libllama" in refusal(Path(spec.origin)).cause


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            (
                "cannot load library '/opt/a/libllama.so': /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.38' not found "
                "(required by /opt/a/libllama.so).  Additionally, ctypes.util.find_library() did not manage to locate a "
                "library called '/opt/a/libllama.so'"
            ),
            ("GLIBC_2.38", "newer system", "llamafu lib install"),
        ),
        (
            (
                "cannot load library '/opt/a/libllama.so': /lib/libstdc++.so.6: version `GLIBCXX_3.4.32' not found "
                "(required by /opt/a/libllama.so)"
            ),
            ("GLIBCXX_3.4.32", "newer system", "llamafu lib build"),
        ),
        (
            "cannot load library '/opt/a/libllama.so': /opt/a/libllama.so: wrong ELF class: ELFCLASS32",
            ("another processor architecture", "llamafu lib install"),
        ),
        (
            "cannot load library '/opt/a/libllama.so': libggml.so.0: cannot open shared object file: No such file or directory",
            ("libggml.so.0", "put libggml.so.0 beside it"),
        ),
        ("cannot load library '/opt/a/libllama.so': /opt/a/libllama.so: invalid ELF header", ("no shared library",)),
        ("cannot load library '/opt/a/libllama.so': something new", ("something new",)),
    ],
)
def test_words_of_the_loader(text, words):
    """Recorded messages of the loader become a cause and a mend."""
    answer = probe._loader_refusal(Path("/opt/a/libllama.so"), text)
    assert not answer["ok"]
    assert all(word in f"{answer['cause']}; {answer['mend']}" for word in words)


@needs_compiler
def test_library_without_lora(tmp_path):
    """A libllama that lacks the adapter calls is refused by its symbols."""
    names = sorted(name for name in (*REQUIRED, *SET_GENERATIONS) if "adapter" not in name)
    path = compile_shim(tmp_path / "libllama.so", "\n".join(f"void {name}(void) {{}}" for name in names))
    cause = refusal(path).cause
    assert "no LoRA support" in cause
    assert "llama_adapter_lora_init" in cause


@needs_compiler
def test_moved_field(real, beside):
    """The same library passes through a shim as it is, and is refused once a field has moved by 8 bytes."""
    at = families.load(real.family).ffi.offsetof("struct llama_context_params", "cb_eval")
    answer = verify_library(compile_over(real, beside, shifted_defaults(real, at, 0)))
    assert not isinstance(answer, Refusal), answer
    cause = refusal(compile_over(real, beside, shifted_defaults(real, at, 8))).cause
    assert "its parameter structs do not match" in cause
    assert "llama_context_params" in cause


@needs_compiler
def test_crash_on_loading_is_contained(tmp_path):
    """A constructor that crashes takes the child with it, and only the child."""
    source = "#include <signal.h>\n__attribute__((constructor)) static void start(void) { raise(SIGSEGV); }"
    answer = refusal(compile_shim(tmp_path / "libllama.so", source))
    assert "it crashed on loading (signal 11, SIGSEGV)" in answer.cause
    assert "llamafu lib" in answer.mend


@needs_compiler
def test_crash_in_use_is_contained(real, beside):
    """A crash while a family is tried names the family, and the others are tried as well."""
    source = "#include <stdlib.h>\nvoid *llama_model_load_from_file(void) { abort(); }"
    cause = refusal(compile_over(real, beside, source)).cause
    assert "it crashed while in use with" in cause
    assert real.family in cause or real.family.startswith("header:")


@needs_compiler
def test_hang_is_stopped(tmp_path, monkeypatch):
    """A library that never returns is given up."""
    monkeypatch.setattr(verify, "_TIMEOUT", 1.0)
    source = "#include <unistd.h>\n__attribute__((constructor)) static void start(void) { sleep(30); }"
    assert "did not answer within 1 s" in refusal(compile_shim(tmp_path / "libllama.so", source)).cause


def test_working_directory_does_not_matter(real, tmp_path, monkeypatch):
    """Files of the working directory that are named like modules are never run."""
    for name in ("json.py", "cffi.py", "llamafu.py"):
        (tmp_path / name).write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert prove(real.path) == real


def test_strange_path(real, tmp_path):
    """Blanks, quotes and letters beyond ASCII in a path are no obstacle."""
    folder = tmp_path / "a 'b' ü"
    folder.symlink_to(real.path.parent, target_is_directory=True)
    assert prove(folder / real.path.name) == real
    missing = folder / "nö such 'file'.so"
    assert "there is no such file" in refusal(missing).cause


def test_child_finds_the_package_without_help(tmp_path):
    """The probe answers in a bare environment too."""
    path = tmp_path / "libllama.so"
    path.write_text("no library")
    done = child_process.run("llamafu.libraries.probe", str(path), timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ok"] is False


def test_every_required_symbol_is_called():
    """A library without a symbol that nobody calls is not refused for it."""
    package = Path(families.__file__).parents[2]
    calling = [path for path in package.rglob("*.py") if path.parent.name != "abi"]
    words = set(re.findall(r"\w+", "".join(path.read_text(encoding="utf-8") for path in calling)))
    assert set(REQUIRED) <= words
