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
from pathlib import Path

import platformdirs

from helpers.child import ROOT
from helpers.served import ADMIN, API

CLIENTS = ROOT / "tests" / "peers" / "clients"
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
            quiet = ("--quiet", "--disable-pip-version-check", "--no-input")
            _succeed([sys.executable, "-m", "pip", "--python", str(python), "install", *quiet, *requirements])
            made.write_text("\n".join(requirements), encoding="utf-8")
    return python


def run_client(script, url, *requirements, seconds=120, **variables):
    """Run `tests/peers/clients/SCRIPT` with `requirements` installed; return what its last line of output has as JSON.

    The script finds the server's address and keys in LLAMAFU_URL, LLAMAFU_API_KEY and LLAMAFU_ADMIN_KEY, beside `variables`.
    """
    base = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "PYTHONIOENCODING": "utf-8"}
    keys = {"LLAMAFU_URL": url, "LLAMAFU_API_KEY": API, "LLAMAFU_ADMIN_KEY": ADMIN}
    done = _succeed(
        [str(python_with(*requirements)), str(CLIENTS / script)], env={**base, **keys, **variables}, timeout=seconds
    )
    return json.loads(done.splitlines()[-1])


def _succeed(command, **options):
    """Run a command that has to succeed, and return what it wrote."""
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False, **options)
    assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout
