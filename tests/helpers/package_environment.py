"""A client's package in an environment of its own, and a script that runs there against a live server.

Packages of clients disagree about each other's versions, so that none may share an environment. One is made once for a set of
requirements, and kept in the user's cache folder.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import platformdirs

from helpers.child import ROOT
from helpers.served import ADMIN, API

CLIENTS = ROOT / "tests" / "peers" / "clients"
OFFLINE = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "HF_HUB_OFFLINE": "1"}
"""Packages that fetch something when they are imported are told not to."""
_PLACE = Path(platformdirs.user_cache_dir("llamafu")) / "clients"


def python_with(*requirements):
    """Return the Python of an environment that has `requirements` (as pip takes them), which is made at the first use."""
    digest = hashlib.sha256("\n".join([sys.version, *requirements]).encode()).hexdigest()[:16]
    folder = _PLACE / digest
    python, made = folder / "bin" / "python", folder / "made.txt"
    _PLACE.mkdir(parents=True, exist_ok=True)
    with (_PLACE / f"{digest}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # files of one run may want the same environment
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            _succeed([sys.executable, "-m", "venv", "--without-pip", str(folder)])
            options = ("--quiet", "--disable-pip-version-check", "--no-input", "--no-compile")  # little of it is imported
            _succeed([sys.executable, "-m", "pip", "--python", str(python), "install", *options, *requirements])
            made.write_text("\n".join(requirements), encoding="utf-8")
    return python


def run_client(script, url, *requirements, seconds=120, **variables):
    """Run `tests/peers/clients/SCRIPT` with `requirements` installed; return what its last line of output has as JSON.

    The script finds the server's address and keys in LLAMAFU_URL, LLAMAFU_API_KEY and LLAMAFU_ADMIN_KEY, beside `variables`.
    """
    base = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "PYTHONIOENCODING": "utf-8", **OFFLINE}
    keys = {"LLAMAFU_URL": url, "LLAMAFU_API_KEY": API, "LLAMAFU_ADMIN_KEY": ADMIN}
    done = _succeed(
        [str(python_with(*requirements)), str(CLIENTS / script)], env={**base, **keys, **variables}, timeout=seconds
    )
    return json.loads(done.splitlines()[-1])


def requirements_of(*extras):
    """Return what Llamafu itself needs, with these extras, as pip takes it."""
    project = _project()
    needed = [*project["dependencies"], *(each for extra in extras for each in project["optional-dependencies"][extra])]
    return sorted({each for each in needed if not each.startswith("llamafu[")})


def our_package(folder, real):
    """Return the variables with which a program finds this tree's Llamafu, as if it were installed, and a libllama.

    `folder` gets the metadata of an installation: that is where other packages find its plugins.
    """
    about = folder / "llamafu-0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: llamafu\nVersion: 0\n", encoding="utf-8")
    groups = _project()["entry-points"].items()
    lines = [line for group, points in groups for line in (f"[{group}]", *(f"{name} = {at}" for name, at in points.items()))]
    (about / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    return {"PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]), "LLAMAFU_LIB": str(real.path)}


def _project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def _succeed(command, **options):
    """Run a command that has to succeed, and return what it wrote."""
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False, **options)
    assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout
