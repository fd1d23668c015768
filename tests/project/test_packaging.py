"""The sdist and the wheel: what is in them, and that the wheel works where the checkout is not."""

import email.parser
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from llamafu import Llamafu, __version__

ROOT = Path(__file__).resolve().parents[2]
DEPENDENCIES = ("cffi", "_cffi_backend", "numpy", "gguf", "platformdirs")
FAMILIES = sorted(
    [path.parent.name for path in ROOT.glob("cdefs/*/llama.h")]
    + [f"layout_{path.parent.name}" for path in ROOT.glob("cdefs/*/mtmd.h")]
)
NOT_COPIED = shutil.ignore_patterns(
    *(
        ".git",
        ".venv",
        "__pycache__",
        ".*_cache",
        ".hypothesis",
        ".fixtures",
        "layout[0-9]*.py",
        "layout_mtmd*.py",
        "dist",
        "build",
    )
)
LITTER = ("llamafu/__pycache__/x.cpython-311.pyc", "tests/.fixtures/x.gguf", ".venv/x.py", ".hypothesis/x", "dist/x.whl")

IMPORT_TIME = """
import sys, time
before = time.perf_counter()
import llamafu
print(time.perf_counter() - before)
heavy = {"numpy", "cffi", "_cffi_backend", "gguf", "platformdirs", "jinja2", "asyncio"} & set(sys.modules)
assert not heavy, heavy
"""
COMPLETE = """
import sys
import llamafu
with llamafu.Llamafu(sys.argv[1], n_ctx=64) as llm:
    adapter = llm.load_lora_adapter(sys.argv[2])
    print(llm.complete("Once", lora={adapter: 0.5}, temperature=0, max_tokens=8).tokens)
"""


def run(*command, cwd):
    """Run a program that sees neither the checkout nor a PYTHONPATH; return what it printed."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    return tmp_path_factory.mktemp("packaging")


@pytest.fixture(scope="module")
def sources(room):
    """A copy of the checkout with litter in it, so that building does not touch the modules that tests use."""
    copy = shutil.copytree(ROOT, room / "sources", ignore=NOT_COPIED)
    for name in LITTER:
        path = copy / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return copy


@pytest.fixture(scope="module")
def sdist(room, sources):
    run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", str(room / "sdist"), cwd=sources)
    return room / "sdist" / f"llamafu-{__version__}.tar.gz"


@pytest.fixture(scope="module")
def unpacked(room, sdist):
    with tarfile.open(sdist) as archive:
        archive.extractall(room / "unpacked", filter="data")
    return room / "unpacked" / f"llamafu-{__version__}"


def build_wheel(folder, target):
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(target), cwd=folder)
    return target / f"llamafu-{__version__}-py3-none-any.whl"


@pytest.fixture(scope="module")
def wheel(room, unpacked):
    """The wheel, built from the sdist as an installer would."""
    return build_wheel(unpacked, room / "wheel")


@pytest.fixture(scope="module")
def python(room, wheel):
    """Python of a new environment with the wheel in it; the dependencies are those of the running one."""
    folder = room / "environment"
    venv.create(folder)
    found = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(found),
        "install",
        "--no-deps",
        "--no-index",
        "--quiet",
        str(wheel),
        cwd=room,
    )
    # A path that comes from a .pth file has its own .pth files ignored: the checkout stays out of sight.
    homes = {Path(importlib.util.find_spec(name).origin) for name in DEPENDENCIES}
    homes = {path.parent.parent if path.name == "__init__.py" else path.parent for path in homes}
    packages = next(folder.glob("lib/python*/site-packages"), folder / "Lib" / "site-packages")
    (packages / "dependencies.pth").write_text("".join(f"{home}\n" for home in sorted(homes)), encoding="utf-8")
    return found


def names_in(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def test_sdist_has_every_source_and_no_litter(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = [
        *ROOT.glob("llamafu/**/*.py"),
        *ROOT.glob("tests/**/*.py"),
        *ROOT.glob("scripts/*.py"),
        *ROOT.glob("cdefs/**/*.h"),
    ]
    expected = {path.relative_to(ROOT).as_posix() for path in sources if not path.stem.startswith("layout")}
    expected |= {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "Makefile", "build_ffi.py", "llamafu/py.typed"}
    expected |= {"examples/adapters/pirate/adapter_model.safetensors", "tests/data/peft_answers.json"}
    assert not expected - names
    assert not [name for name in names if name in LITTER or "__pycache__" in name or "/abi/layout" in name]


def test_wheel_has_the_package_and_nothing_else(wheel):
    names = names_in(wheel)
    metadata = {name for name in names if name.startswith(f"llamafu-{__version__}.dist-info/")}
    modules = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("llamafu/**/*.py") if not path.stem.startswith("layout")}
    modules |= {f"llamafu/_native/abi/{family}.py" for family in FAMILIES}
    data = {
        "llamafu/py.typed",
        "llamafu/baking/calibration_sample.txt",
        "llamafu/examples/pirate.gguf",
        "llamafu/examples/shout.gguf",
    }
    data |= {path.relative_to(ROOT).as_posix() for path in ROOT.glob("llamafu/libraries/proof/*")}
    data |= {path.relative_to(ROOT).as_posix() for path in ROOT.glob("llamafu/server/page/*")}
    assert len(FAMILIES) > 10
    assert len(data) >= 6
    assert names - metadata == modules | data


def test_wheel_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        info = f"llamafu-{__version__}.dist-info"
        metadata = email.parser.Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        assert b"llamafu = llamafu.cli.main:main" in archive.read(f"{info}/entry_points.txt")
        assert archive.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
        pirate = (ROOT / "examples" / "adapters" / "pirate.gguf").read_bytes()
        assert archive.read("llamafu/examples/pirate.gguf") == pirate
    assert (metadata["Version"], metadata["Requires-Python"], metadata["License-Expression"]) == (__version__, ">=3.11", "MIT")
    required = {line.partition(">")[0] for line in metadata.get_all("Requires-Dist") if "extra" not in line}
    assert required == {"cffi", "platformdirs", "numpy", "gguf"}
    assert {"lora", "gguf"} <= set(metadata["Keywords"].split(","))
    assert "Typing :: Typed" in metadata.get_all("Classifier")
    assert metadata["Description-Content-Type"] == "text/markdown"


def test_wheel_is_the_same_from_the_checkout(wheel, sources, room):
    direct = build_wheel(sources, room / "direct")
    assert names_in(direct) == names_in(wheel)
    with zipfile.ZipFile(direct) as one, zipfile.ZipFile(wheel) as other:
        assert not [name for name in one.namelist() if one.read(name) != other.read(name)]


def test_installed_wheel_works_without_the_checkout(python, tiny_model, tiny_adapter_a, room):
    where = run(python, "-c", "import llamafu; print(llamafu.__file__)", cwd=room)
    assert Path(where.strip()).is_relative_to(room / "environment")
    assert run(python.parent / "llamafu", "--version", cwd=room) == f"llamafu {__version__}\n"
    with Llamafu(tiny_model, n_ctx=64) as llm:
        adapter = llm.load_lora_adapter(tiny_adapter_a)
        expected = llm.complete("Once", lora={adapter: 0.5}, temperature=0, max_tokens=8).tokens
    assert run(python, "-c", COMPLETE, tiny_model, tiny_adapter_a, cwd=room) == f"{expected}\n"


def test_installed_wheel_brings_its_examples(python, room):
    code = "from llamafu.examples.adapters import example_adapters; [print(path) for path in example_adapters().values()]"
    paths = [Path(line) for line in run(python, "-c", code, cwd=room).splitlines()]
    assert [path.name for path in paths] == ["pirate.gguf", "shout.gguf"]
    assert all(path.is_relative_to(room / "environment") for path in paths)
    assert "SmolLM2 135M Instruct" in run(python, "-X", "utf8", "-m", "llamafu", "inspect", paths[0], cwd=room)


def test_import_is_instant(python, room):
    times = [float(run(python, "-c", IMPORT_TIME, cwd=room)) for _ in range(5)]
    assert min(times) < 0.1
