"""What works on each device, asked in a child process."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from llamafu._native.batched_lora.device import DeviceLoraHook
from llamafu._native.library import open_library
from llamafu.cli.doctor import told
from llamafu.libraries import device_proof, devices
from llamafu.libraries.device_proof import prove_device
from llamafu.libraries.devices import list_devices


def test_a_gpu_is_proven(real, monkeypatch):
    """Models, adapters and mixing work on the driver that plays a GPU. It compiles for half a minute of CPU time, once."""
    monkeypatch.setenv("GGML_VK_VISIBLE_DEVICES", "0")
    found = list_devices(real)
    assert found is not None
    gpus = [each for each in found if "works" in each]
    if not gpus:
        pytest.skip("this libllama finds no GPU here, nor a driver that plays one (mesa-vulkan-drivers)")
    for each in gpus:
        assert each["works"] == {"models": "", "adapters": "", "mixing": ""}
        assert told(each) == ["models, adapters, mixing: proven to work"]


def test_the_proof_itself(real, monkeypatch):
    """On the CPU: it passes, and sees rows that are swapped, wrong logits and what raises."""
    library = open_library(real.path, real.family)
    assert prove_device(library, "") == {"models": "", "adapters": "", "mixing": ""}
    plain = DeviceLoraHook._factors_of
    with monkeypatch.context() as patch:
        patch.setattr(DeviceLoraHook, "_factors_of", lambda self, table: plain(self, table)[:, ::-1].copy())
        swapped = prove_device(library, "")
    assert "in a mixed batch are off by" in swapped["mixing"]
    assert not swapped["adapters"]
    with monkeypatch.context() as patch:
        patch.setattr(device_proof, "_TOLERANCE", -1.0)
        assert all("off by" in why for why in prove_device(library, "").values())


@pytest.mark.parametrize(
    ("code", "text"), [("import os; os.abort()", "SIGABRT"), ("import time; time.sleep(9)", "did not end")]
)
def test_a_driver_that_crashes_or_hangs(real, monkeypatch, code, text):
    """The device is listed, with how the process that tried it ended."""
    listing = '[{"name": "CUDA0", "description": "a card", "kind": "gpu", "free": 1, "total": 1}]'

    def run(_module, _path, _family, *device, timeout):
        import subprocess

        program = code if device else f"print({listing!r})"
        return subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=timeout, check=False)

    monkeypatch.setattr("llamafu._util.child_process.run", run)
    monkeypatch.setattr(devices, "_PROOF_TIMEOUT", 2.0)
    (device,) = list_devices(SimpleNamespace(path="lib", family="layout16"))
    assert all(text in why for why in device["works"].values())
    assert len(told(device)) == 3
