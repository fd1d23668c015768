"""A slice of `make test-vulkan` in every run, where there is a driver that plays a GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import dev
import pytest

MOST_SECONDS = 150
"""With what a software driver compiled before it takes 15; what never ends fails in `make test-vulkan`."""


def test_devices():
    """In a process of its own: drivers stay in the process that has loaded them."""
    if not dev.has_vulkan():
        pytest.skip(f"Vulkan has no driver here (apt install {' '.join(dev.VULKAN)})")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/devices/test_smoke.py"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=dev.ROOT, env=dict(os.environ), timeout=MOST_SECONDS
        )
    except subprocess.TimeoutExpired:
        pytest.skip("the driver compiles its programs for the first time, which takes minutes: make test-vulkan")
    if done.returncode == 0 and "skipped" in done.stdout:
        pytest.skip(done.stdout.splitlines()[-2])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
