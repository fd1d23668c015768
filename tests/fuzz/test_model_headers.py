"""Damaged model files, opened as any other: an error or a model, never the end of this process.

A few in `make test`; LLAMAFU_FUZZ_COUNT says how many, and LLAMAFU_FUZZ_SEED which, in `make fuzz`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ, TESTS = Path(__file__).parent, Path(__file__).parents[1]
COUNT = int(os.environ.get("LLAMAFU_FUZZ_COUNT", "0"))
SEED = int(os.environ.get("LLAMAFU_FUZZ_SEED", "0"))
SOUND = ("tiny.gguf", "tiny-moe.gguf", "tiny-hybrid.gguf", "tiny-q4_0.gguf", "tiny-spm.gguf")


def opened(sound, scratch, first, count, how):
    """Return how often each outcome came, of `count` damaged files in a process of their own."""
    command = [sys.executable, str(FUZZ / "open_models.py"), str(sound), str(first), str(first + count), str(scratch), how]
    places = [str(TESTS), str(TESTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "LLAMAFU_CACHE": str(scratch / "cache")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"status {done.returncode} at {done.stderr[-1500:]}"
    return json.loads(done.stdout.splitlines()[-1])


def test_a_few_damaged_models_the_way_that_users_open_them(tiny_dir, tmp_path):
    outcomes = opened(tiny_dir / "tiny.gguf", tmp_path, 1000, 12, "real")
    assert sum(outcomes.values()) == 12
    assert len(outcomes) > 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the forked way needs fork")
@pytest.mark.parametrize("name", SOUND)
def test_damaged_models_are_an_error_or_a_model(tiny_dir, tmp_path, name):
    count = max(COUNT // len(SOUND), 8)
    first = SEED + 1_000_000 * SOUND.index(name)
    outcomes = opened(tiny_dir / name, tmp_path, first, count, "forked")
    sys.stderr.write(f"{name} {outcomes}\n")
    assert sum(outcomes.values()) == count
    assert len(outcomes) > 1  # the damage is neither harmless nor all of one kind
