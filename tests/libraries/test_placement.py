"""Which devices compute how many layers: by what backends tell of their memory, and by what was asked for."""

from __future__ import annotations

import pytest

from llamafu._native.backends import Device
from llamafu._native.context_options import ContextOptions
from llamafu._native.device_options import DeviceOptions
from llamafu.adapters.gguf.base_model import read_base
from llamafu.libraries import placement
from llamafu.libraries.placement import layer_bytes, place

CPU = Device("CPU", "a processor", "cpu", 0, 1 << 34)
CONTEXT = ContextOptions(n_ctx=256, n_batch=64)


def gpu(name, free, kind="gpu", total=1 << 34):
    return Device(name, "a card", kind, free, total)


@pytest.fixture
def base(tiny_model):
    return read_base(tiny_model)


@pytest.fixture
def there(monkeypatch):
    """Set the devices of the machine; the library itself is not asked."""

    class Library:
        ffi = lib = None

    def devices(*found):
        monkeypatch.setattr(placement.backends, "devices", lambda _ffi, _lib: [*found, CPU])
        return Library()

    return devices


def free_for(size):
    """Free memory of which this much can be used."""
    return int(size + placement._MARGIN_BYTES + placement._MARGIN_SHARE * (1 << 34)) + 1


def test_no_gpu(base, there):
    """Without one, every number of layers means the CPU."""
    library = there()
    for layers in (1, 99, -1, "auto"):
        found = place(library, base, DeviceOptions(n_gpu_layers=layers), CONTEXT)
        assert not found.offloads
        assert found.layers == 0
        assert "no GPU" in found.note


def test_layers(base, there):
    """Two layers and the output are three; more are all."""
    library = there(gpu("Vulkan0", 1 << 33))
    for asked, got in ((1, 1), (2, 2), (99, 3), (-1, 3)):
        found = place(library, base, DeviceOptions(n_gpu_layers=asked), CONTEXT)
        assert (found.layers, found.devices) == (got, ("Vulkan0",))
    assert not place(library, base, DeviceOptions(), CONTEXT).offloads
    assert not place(library, base, DeviceOptions(n_gpu_layers=9, devices=()), CONTEXT).offloads


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_auto_takes_what_fits(base, there, layers):
    """Weights, KV memory and bank of each layer are counted, from the output on; a byte less is a layer less."""
    needed = layer_bytes(base, CONTEXT, bank_bytes=64.0)
    size = sum(needed.from_the_end[:layers]) + needed.graph
    found = place(there(gpu("CUDA0", free_for(size))), base, DeviceOptions(n_gpu_layers="auto"), CONTEXT, bank_bytes=64.0)
    assert found.layers == layers
    assert found.offloads == (layers > 0)
    assert "GB" in found.note
    if layers:
        found = place(
            there(gpu("CUDA0", free_for(size) - 8)), base, DeviceOptions(n_gpu_layers="auto"), CONTEXT, bank_bytes=64.0
        )
        assert found.layers == layers - 1


def test_what_a_layer_takes(base):
    """The KV memory grows with the context, and lies elsewhere without `offload_kqv`; the bank grows with its rank."""
    small = layer_bytes(base, CONTEXT).layers[0]
    weights = sum(size for name, size in base.sizes.items() if name.startswith("blk.0."))
    heads, width = 2, 16
    assert small == weights + 256 * 2 * heads * width * 2
    assert layer_bytes(base, ContextOptions(n_ctx=512, n_batch=64)).layers[0] - small == 256 * 2 * heads * width * 2
    assert layer_bytes(base, ContextOptions(n_ctx=256, n_batch=64, offload_kqv=False)).layers[0] == weights
    sides = sum(sum(shape) for name, shape in base.tensors.items() if name.startswith("blk.0.") and len(shape) == 2)
    assert layer_bytes(base, CONTEXT, bank_bytes=2.0).layers[0] - small == 2 * sides
    assert layer_bytes(base, CONTEXT).output == base.sizes["output.weight"] + base.sizes["output_norm.weight"]


def test_several_devices(base, there):
    """Memory adds up; shares bound it by the device that is full first; an integrated GPU is used where there is no other."""
    needed = layer_bytes(base, CONTEXT)
    whole = sum(needed.from_the_end) + 2 * needed.graph
    half = free_for(whole / 2)
    library = there(gpu("CUDA0", half), gpu("CUDA1", half), gpu("Vulkan0", half, kind="igpu"))
    assert place(library, base, DeviceOptions(n_gpu_layers="auto"), CONTEXT).devices == ("CUDA0", "CUDA1")
    assert place(library, base, DeviceOptions(n_gpu_layers="auto"), CONTEXT).layers == 3
    assert place(library, base, DeviceOptions(n_gpu_layers="auto", tensor_split=(9, 1)), CONTEXT).layers < 3
    one = place(library, base, DeviceOptions(n_gpu_layers=3, split_mode="none", main_gpu=1), CONTEXT)
    assert (one.devices, one.main_gpu) == (("CUDA1",), 0)
    assert place(there(gpu("Vulkan0", half, kind="igpu")), base, DeviceOptions(n_gpu_layers=1), CONTEXT).offloads


def test_memory_that_is_not_told(base, there):
    """All layers, and the note says that nothing was counted."""
    found = place(there(gpu("RPC0", 0, total=0)), base, DeviceOptions(n_gpu_layers="auto"), CONTEXT)
    assert found.layers == 3
    assert "not told" in found.note


def test_what_is_not_there(base, there):
    """A device, an index or a share too many is one error that says what there is."""
    library = there(gpu("CUDA0", 1 << 33))
    for options, text in (
        ({"devices": ["CUDA7"]}, r"'CUDA7'.*GPUs: CUDA0"),
        ({"main_gpu": 1}, r"main_gpu=1, but there are 1 devices"),
        ({"tensor_split": [1, 1]}, r"2 shares, but there are 1 devices"),
    ):
        with pytest.raises(ValueError, match=text):
            place(library, base, DeviceOptions(n_gpu_layers=1, **options), CONTEXT)
    with pytest.raises(ValueError, match="GPUs: none"):
        place(there(), base, DeviceOptions(n_gpu_layers=1, devices=["CUDA0"]), CONTEXT)
