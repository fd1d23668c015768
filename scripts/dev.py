"""Set up `.venv` and run one of the project's jobs in it.

    python scripts/dev.py demo|test|test-peers|test-vulkan|device-check|soak|fuzz|lint|bench|clean|help [ARGUMENT...]
    python scripts/dev.py matrix|matrix-arm64|matrix-windows [ARGUMENT...]

What is installed stays until its sources change, so later runs need no network. Only the standard library is used, and
an old Python is enough to get as far as finding a newer one. The make targets have the same names.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
OLD_PEFT, OLD_PEFT_VENV = "peft==0.18.1", VENV / "peft-0.18"
OLD_PEFT_PYTHON = OLD_PEFT_VENV / BIN.name / "python"
OLDEST = (3, 11)
NEWER = [f"python3.{minor}" for minor in (14, 13, 12, 11)]

JOBS = {
    "demo": "a real model changes its voice as adapters are applied, blended and faded, and in one batch (92 MB, fetched once)",
    "test": "lint, then every test, in two processes; ARGS='-k name' goes to pytest",
    "test-peers": "compare with PEFT, upstream, clients' packages, Go and Chromium, in tests/peers (all of them fetched once)",
    "test-vulkan": "adapters and mixing on a GPU, in tests/devices: Mesa's software driver, which is installed on Debian",
    "device-check": "prove and measure this machine's GPUs in less than five minutes; device_check.json has what was found",
    "soak": "the engine under random load, in tests/soak: six minutes, or ARGS='--seconds 60'",
    "fuzz": "wild requests, damaged files, random schemas and every pre-tokenizer, in tests/fuzz and others: half an hour",
    "lint": "ruff, mypy and the direction of imports",
    "bench": "every benchmark in bench/, one after another",
    "matrix": "the tests against several builds of libllama",
    "matrix-arm64": "the first steps on Linux for ARM, emulated (Debian, as root; a quarter of an hour)",
    "matrix-windows": "the first steps on Windows, by Wine (Debian, as root; some minutes)",
    "clean": "remove .venv and everything generated; what was downloaded stays in the user's cache folder",
    "help": "this list",
}
EXTRAS = {"demo": ["prebuilt", "fast"], "test-peers": ["prebuilt", "test", "peers"]}
"""What a job needs of pyproject.toml's extras, where that is not `prebuilt` and `test`."""
SIDE_BY_SIDE = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
"""How pytest-xdist shares the test files out: a file's tests stay in one process, which opens what they share once."""
VULKAN = ("mesa-vulkan-drivers", "libvulkan1")
"""Debian's packages of Vulkan's loader and of drivers, a software one among them."""
FUZZED = ("tests/native/test_tokenizing.py", "tests/generation/test_grammar_random.py", "tests/adapters/test_mutation.py")
"""Tests beside tests/fuzz that try more where LLAMAFU_FUZZ_COUNT is set."""
COMPILED = ("llamafu._native.batched_lora.lora_kernels", "llamafu._native.batched_lora.attention_kernels")
"""Modules that numba compiles when they are first imported, and caches. Done beside the linters, which leave a CPU idle: else
each of pytest's processes would compile them."""
LINT = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
    ("lint-imports",),
)
GENERATED = (
    *(".venv", "dist", "build", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis", ".import_linter_cache"),
    "tests/.fixtures",
)


def main(arguments: list[str]) -> int:
    """Run one job and return its exit status."""
    job, *rest = arguments or ["help"]
    if job not in JOBS:
        return fail(f"there is no job {job!r}; there are: {', '.join(JOBS)}")
    if job in ("help", "clean"):
        return {"help": show_help, "clean": clean}[job]()
    if sys.version_info < OLDEST:
        return in_newer_python(arguments)
    try:
        set_up(EXTRAS.get(job, ["prebuilt", "test"]))
    except SetupError as error:
        return fail(str(error))
    jobs = {
        "demo": demo,
        "test": test,
        "test-peers": test_peers,
        "test-vulkan": test_vulkan,
        "device-check": device_check,
        "soak": soak,
        "fuzz": fuzz,
        "lint": lint,
        "bench": bench,
        "matrix": matrix,
        "matrix-arm64": partial(on_other_machine, "arm64"),
        "matrix-windows": partial(on_other_machine, "windows"),
    }
    return jobs[job](rest)


def demo(rest: list[str]) -> int:
    """Show the main job of the library."""
    return run("llamafu", "demo", *rest)


def test(rest: list[str]) -> int:
    """Lint, then test, whatever lint said: pytest's summary comes last."""
    with ThreadPoolExecutor(1) as beside:
        beside.submit(run, "python", "-c", f"import {', '.join(COMPILED)}")
        linted = lint([])
    if linted:
        say("lint failed, see above; the tests run all the same")
    tested = run("python", "-m", "pytest", *SIDE_BY_SIDE, *rest)
    return linted or tested


def test_peers(rest: list[str]) -> int:
    """Compare with the programs that do the same job."""
    return run("python", "-m", "pytest", "tests/peers", *rest)


def test_vulkan(rest: list[str]) -> int:
    """Test on a GPU, or on the driver that plays one."""
    if not has_vulkan():
        if not (shutil.which("apt-get") and os.geteuid() == 0):
            return fail(f"there is no driver for Vulkan here; install one, such as: sudo apt install {' '.join(VULKAN)}")
        say(f"installing {' '.join(VULKAN)}")
        demand(["apt-get", "install", "-y", "--no-install-recommends", *VULKAN])
    os.environ.setdefault("GGML_VK_VISIBLE_DEVICES", "0")  # ggml leaves out devices that are a CPU unless they are named
    os.environ["LLAMAFU_DEMAND_DEVICE"] = "1"
    return run("python", "-m", "pytest", "tests/devices", *rest)


def device_check(rest: list[str]) -> int:
    """Prove and measure the GPUs of this machine."""
    return run("python", "scripts/device_check.py", *rest)


def has_vulkan() -> bool:
    """Whether Vulkan's loader and a driver are installed."""
    import ctypes.util

    folders = (Path("/usr/share/vulkan/icd.d"), Path("/etc/vulkan/icd.d"))
    return ctypes.util.find_library("vulkan") is not None and any(any(folder.glob("*.json")) for folder in folders)


def soak(rest: list[str]) -> int:
    """Load the engine at random, and compare every answer."""
    return run("python", "-m", "pytest", "tests/soak", "-s", *rest)


def fuzz(rest: list[str]) -> int:
    """Send what no client should, and open what no file should be."""
    os.environ.setdefault("LLAMAFU_FUZZ_COUNT", "20000")
    return run("python", "-m", "pytest", "tests/fuzz", *FUZZED, "-s", *rest)


def lint(rest: list[str]) -> int:
    """Run every linter and return the first status that is not 0."""
    if rest:
        return fail(f"lint takes no arguments, not {' '.join(rest)}")
    statuses = [run(*command) for command in LINT]
    return next((status for status in statuses if status), 0)


def bench(rest: list[str]) -> int:
    """Run every benchmark in turn."""
    scripts = sorted((ROOT / "bench").glob("[!_]*.py"))
    if not scripts:
        return fail("there is no benchmark in bench/ yet")
    statuses = [run("python", str(script.relative_to(ROOT)), *rest) for script in scripts]
    return next((status for status in statuses if status), 0)


def matrix(rest: list[str]) -> int:
    """Test against several libllamas."""
    if not (ROOT / "tests" / "matrix").is_dir():
        return fail("there is no tests/matrix yet")
    return run("python", "-m", "pytest", "tests/matrix", *rest)


def on_other_machine(machine: str, rest: list[str]) -> int:
    """Test on a machine that is not there."""
    return run("python", "scripts/other_machines.py", machine, *rest)


def show_help() -> int:
    """List the jobs."""
    sys.stdout.writelines(f"  make {name:<16}{text}\n" for name, text in JOBS.items())
    return 0


def clean() -> int:
    """Remove what this program and the tools generate."""
    for name in GENERATED:
        shutil.rmtree(ROOT / name, ignore_errors=True)
    for module in (ROOT / "llamafu" / "_native" / "abi").glob("layout*.py"):
        module.unlink()
    for folder in ("llamafu", "tests", "scripts", "bench"):
        for cache in (ROOT / folder).rglob("__pycache__"):
            shutil.rmtree(cache, ignore_errors=True)
    return 0


class SetupError(Exception):
    """Why `.venv` is not ready, and what the user can do about it."""


def set_up(extras: list[str]) -> None:
    """Make the virtual environment and install the project there, editable, unless that was done for these sources."""
    digest = sources_digest()
    stamps = {name: VENV / f".installed-{name}" for name in ("prebuilt", "fast", "test", "peers")}
    if PYTHON.exists() and all(is_current(stamps[extra], digest) for extra in extras):
        return
    if not PYTHON.exists():
        make_venv()
    install([*build_requirements(), "editables"], "the build tools")
    install(["--no-build-isolation", "--editable", f"{ROOT}[{','.join(extras)}]"], f"Llamafu with {', '.join(extras)}")
    if "peers" in extras:
        make_old_peft()
    for name, stamp in stamps.items():
        if name in extras:
            stamp.write_text(digest, encoding="utf-8")


def is_current(stamp: Path, digest: str) -> bool:
    """Whether what `stamp` stands for was installed from these sources."""
    return stamp.exists() and stamp.read_text(encoding="utf-8") == digest


def sources_digest() -> str:
    """Digest of what the installation and the generated modules depend on."""
    paths = [ROOT / "pyproject.toml", ROOT / "build_ffi.py", *sorted(ROOT.glob("cdefs/**/*.h"))]
    content = b"".join(path.read_bytes() for path in paths)
    return hashlib.sha256(content + str(ROOT).encode() + sys.version.encode()).hexdigest()


def make_venv() -> None:
    """Create `.venv` with pip in it."""
    import importlib.util

    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        message = f"{sys.executable} has no ensurepip; install it: apt install python{version}-venv (or your system's equal)"
        raise SetupError(message)
    say(f"making .venv with Python {sys.version.split()[0]}")
    demand([sys.executable, "-m", "venv", "--clear", str(VENV)])


def make_old_peft() -> None:
    """Create the environment of the last PEFT that laid experts out otherwise; it borrows all but PEFT from `.venv`."""
    say(f"making {OLD_PEFT_VENV.name} with {OLD_PEFT}")
    demand([str(PYTHON), "-m", "venv", "--clear", "--without-pip", str(OLD_PEFT_VENV)])
    places = [
        subprocess.run(
            [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for python in (OLD_PEFT_PYTHON, PYTHON)
    ]
    install(["--target", places[0], "--no-deps", OLD_PEFT], OLD_PEFT)
    Path(places[0], "borrowed.pth").write_text(f"{places[1]}\n", encoding="utf-8")


def build_requirements() -> list[str]:
    """Read what building needs from pyproject.toml: installed once, it serves later runs without a network."""
    import tomllib

    requirements: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["build-system"]["requires"]
    return requirements


def install(requirements: list[str], what: str) -> None:
    """Install with pip, whose cache makes the second time fast."""
    say(f"installing {what}")
    command = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", *requirements]
    demand(command)


def demand(command: list[str]) -> None:
    """Run a command of the set-up, which has to succeed."""
    status = subprocess.run(command, check=False).returncode
    if status:
        message = f"`{' '.join(command)}` failed with status {status}, see above; `make clean` starts anew"
        raise SetupError(message)


def run(program: str, *arguments: str) -> int:
    """Run a program of the virtual environment from the project's folder."""
    command = [str(BIN / program), *arguments]
    say(" ".join([program, *arguments]))
    # Programs that a test starts find those of the environment, and not others of the same name.
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}", "VIRTUAL_ENV": str(VENV)}
    try:
        return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    except KeyboardInterrupt:
        return 130


def in_newer_python(arguments: list[str]) -> int:
    """Do it with a newer Python of this machine."""
    for name in NEWER:
        found = shutil.which(name)
        if found:
            return subprocess.run([found, __file__, *arguments], check=False).returncode
    version = ".".join(map(str, sys.version_info[:2]))
    return fail(f"Llamafu needs Python 3.11 or newer, and this is {version}; install one, such as: apt install python3.12-venv")


def say(text: str) -> None:
    """Tell what is being done."""
    sys.stderr.write(f"-- {text}\n")
    sys.stderr.flush()


def fail(text: str) -> int:
    """Tell what went wrong and return the exit status for it."""
    sys.stderr.write(f"dev.py: error: {text}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
