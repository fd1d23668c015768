"""Tests on a GPU, which may be Mesa's software driver for Vulkan: `make test-vulkan`."""

from __future__ import annotations

import os

import pytest

# ggml leaves devices out that are a CPU, unless they are named. Read when the plug-in is loaded.
os.environ.setdefault("GGML_VK_VISIBLE_DEVICES", "0")

DEMAND = "LLAMAFU_DEMAND_DEVICE"
"""Set where tests without a device are failures, not skipped."""


@pytest.fixture(scope="session", autouse=True)
def device():
    """The name of the first GPU."""
    from llamafu._native import backends
    from llamafu._native.library import open_library
    from llamafu.libraries import discovery

    verified = discovery.find()
    library = open_library(verified.path, verified.family, gpu=True)
    found = [each.name for each in backends.devices(library.ffi, library.lib) if each.kind in backends.GPUS]
    if not found:
        message = f"{library.path} finds no GPU here, nor a driver that plays one (apt install mesa-vulkan-drivers libvulkan1)"
        (pytest.fail if os.environ.get(DEMAND) else pytest.skip)(message)
    return found[0]
