"""A slice of `make test-vulkan` in every run, where there is a driver that plays a GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import dev
import pytest


def test_devices():
    """In a process of its own: drivers stay in the process that has loaded them. The first run compiles for minutes, once."""
    if not dev.has_vulkan():
        pytest.skip(f"Vulkan has no driver here (apt install {' '.join(dev.VULKAN)})")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/devices/test_smoke.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=dev.ROOT, env=dict(os.environ))
    if done.returncode == 0 and "skipped" in done.stdout:
        pytest.skip(done.stdout.splitlines()[-2])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
