"""The limits of a server under load, with the example model: 256 idle and 64 active connections, loads, first bytes.

What is measured and what may be is in `bench/serve.py`, which says so with its status.
"""

import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench" / "serve.py"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.mark.parametrize("part", ["cost", "first", "load", "cold", "connections"])
def test_limits(part):
    done = subprocess.run([sys.executable, BENCH, "--part", part], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("   ok   ") == {"cost": 1, "first": 2, "load": 2, "cold": 1, "connections": 6}[part]
