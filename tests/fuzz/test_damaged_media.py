"""Damaged images: each is an error of one line, or an answer, and never the end of the process.

A few hundred in `make test`; LLAMAFU_FUZZ_COUNT says how many, and LLAMAFU_FUZZ_SEED which, in `make fuzz`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

FUZZ, TESTS = Path(__file__).parent, Path(__file__).parents[1]
COUNT = max(int(os.environ.get("LLAMAFU_FUZZ_COUNT", "0")), 400)
SEED = int(os.environ.get("LLAMAFU_FUZZ_SEED", "0"))


def test_damaged_images(tiny_dir):
    command = [sys.executable, str(FUZZ / "read_images.py"), str(tiny_dir), str(COUNT), str(SEED)]
    places = [str(TESTS), str(TESTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"status {done.returncode} at {done.stderr[-1500:]}"
    outcomes = json.loads(done.stdout.splitlines()[-1])
    assert sum(outcomes.values()) == COUNT
    assert len(outcomes) == 2  # the damage is neither harmless nor always fatal
