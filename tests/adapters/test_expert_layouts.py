"""Parameters that hold all experts of a layer, as PEFT has written them: up to 0.19.0 with the sides of A and B exchanged.

`make test-peers` does the same with what PEFT 0.18 and the newest PEFT write.
"""

from pathlib import Path

import numpy as np
import pytest
from helpers.model_folders import changes
from helpers.peft_folders import write_folder
from tiny_model import Weights

from llamafu.adapters import BaseModel, convert_peft
from llamafu.errors import InvalidAdapterFileError

HIDDEN, EXPERTS, RANK = 64, 3, 4


def base_of(wide, *, fused=False):
    """Header of a model whose gate and up are (HIDDEN, wide): where 2 x wide is HIDDEN, sizes do not tell the layouts apart."""
    tensors = {}
    for layer in range(2):
        parts = {"gate_up": 2 * wide} if fused else {"gate": wide, "up": wide}
        tensors |= {f"blk.{layer}.ffn_{part}_exps.weight": (HIDDEN, size, EXPERTS) for part, size in parts.items()}
        tensors[f"blk.{layer}.ffn_down_exps.weight"] = (wide, HIDDEN, EXPERTS)
    return BaseModel(Path("base.gguf"), "base", "qwen3moe", tensors, {"qwen3moe.expert_count": EXPERTS})


def write(folder, wide, parameters, *, exchanged, **config):
    """Write a folder, and return dW of its parameters, (experts, out, in), by layer and name."""
    stream, arrays, wanted = Weights(9), {}, {}
    sizes = {"gate_up_proj": (HIDDEN, 2 * wide), "down_proj": (wide, HIDDEN)}
    for layer in range(2):
        for depth, name in enumerate(reversed(parameters)):
            n_in, n_out = sizes[name]
            a = stream.uniform((EXPERTS, RANK, n_in), 1.0)
            b = stream.uniform((EXPERTS, n_out, RANK), 1.0)
            wanted[layer, name] = 2 * b.astype("f8") @ a
            stored = (b.transpose(0, 2, 1), a.transpose(0, 2, 1)) if exchanged else (a, b)
            module = f"base_model.model.model.layers.{layer}.mlp.experts{'.base_layer' * depth}"
            arrays[f"{module}.lora_A.weight"] = stored[0].reshape(EXPERTS * RANK, -1)
            arrays[f"{module}.lora_B.weight"] = stored[1].transpose(1, 2, 0).reshape(-1, RANK * EXPERTS)
    write_folder(folder, arrays, target_parameters=[f"mlp.experts.{name}" for name in parameters], **config)
    return wanted


def check(path, wanted, wide, *, fused=False):
    found = changes(path)
    for (layer, name), change in wanted.items():
        parts = {"ffn_down_exps": change}
        if name == "gate_up_proj":
            parts = {"ffn_gate_exps": change[:, :wide], "ffn_up_exps": change[:, wide:]}
            parts = {"ffn_gate_up_exps": change} if fused else parts
        for part, expected in parts.items():
            np.testing.assert_allclose(found.pop(f"blk.{layer}.{part}.weight"), expected, atol=1e-5 * np.abs(expected).max())
    assert not found


@pytest.mark.parametrize("exchanged", [False, True])
@pytest.mark.parametrize("parameters", [("gate_up_proj",), ("down_proj",), ("gate_up_proj", "down_proj")])
@pytest.mark.parametrize("version", [None, "0.18.1", "0.21.2"])
def test_sizes_decide(parameters, exchanged, version, tmp_path):
    """Whatever the version says: PEFT loads the folders of another one, and saves them again."""
    wanted = write(tmp_path / "folder", 96, parameters, exchanged=exchanged, peft_version=version)
    convert_peft(tmp_path / "folder", tmp_path / "out.gguf", base=base_of(96), dtype="f32")
    check(tmp_path / "out.gguf", wanted, 96)


@pytest.mark.parametrize("exchanged", [False, True])
def test_sizes_of_another_parameter_decide(exchanged, tmp_path):
    """Gate and up fit both ways, and down, beside them, does not."""
    wanted = write(tmp_path / "folder", 32, ("gate_up_proj", "down_proj"), exchanged=exchanged)
    convert_peft(tmp_path / "folder", tmp_path / "out.gguf", base=base_of(32), dtype="f32")
    check(tmp_path / "out.gguf", wanted, 32)


@pytest.mark.parametrize(("wide", "parameter"), [(32, "gate_up_proj"), (64, "down_proj")])
@pytest.mark.parametrize(
    ("version", "exchanged"),
    [
        ("0.17.1", True),
        ("0.18.0", True),
        ("0.18.2.dev0@1a2b3c4", True),
        ("0.19.0", True),
        ("0.19.1", False),
        ("0.20.0.dev0", False),
        ("0.21.0@UNKNOWN", False),
        ("1.0.0", False),
        (None, None),
        ("0.19.1.dev0", None),
        ("newest", None),
        (["0.18.0"], None),
    ],
)
def test_else_the_version_decides(wide, parameter, version, exchanged, tmp_path):
    wanted = write(tmp_path / "folder", wide, (parameter,), exchanged=bool(exchanged), peft_version=version)
    if exchanged is None:
        with pytest.raises(InvalidAdapterFileError, match=r"both layouts .*peft_version is .*which does not say") as caught:
            convert_peft(tmp_path / "folder", tmp_path / "out.gguf", base=base_of(wide))
        assert len(caught.value.problems) == 1
        return
    convert_peft(tmp_path / "folder", tmp_path / "out.gguf", base=base_of(wide), dtype="f32")
    check(tmp_path / "out.gguf", wanted, wide)


@pytest.mark.parametrize("exchanged", [False, True])
def test_bases_that_hold_gate_and_up_in_one_tensor(exchanged, tmp_path):
    wanted = write(tmp_path / "folder", 96, ("gate_up_proj", "down_proj"), exchanged=exchanged)
    convert_peft(tmp_path / "folder", tmp_path / "out.gguf", base=base_of(96, fused=True), dtype="f32")
    check(tmp_path / "out.gguf", wanted, 96, fused=True)


@pytest.mark.parametrize("shape", [(), (4,), (2, 2, 2)])
@pytest.mark.parametrize("side", "AB")
def test_factors_that_are_no_matrices(side, shape, tmp_path):
    name = "base_model.model.model.layers.0.mlp.experts.lora_"
    arrays = {f"{name}{one}.weight": np.ones(shape if one == side else (12, 12), "f4") for one in "AB"}
    write_folder(tmp_path / "folder", arrays, target_parameters=["mlp.experts.down_proj"])
    with pytest.raises(InvalidAdapterFileError, match=r"must be \[12, in\]"):
        convert_peft(tmp_path / "folder", tmp_path / "out.gguf", base=base_of(96))
