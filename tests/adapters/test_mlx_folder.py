"""Adapter folders of mlx-lm: A and B the other way round, one scale, the last layers, and keys."""

import json

import numpy as np
import pytest
from helpers.model_folders import base_of as base_of_kind
from helpers.peft_folders import HEADS, KV_HEADS, SIZES, base_of, changes, reordered, safetensors_bytes
from tiny_model import Weights

from llamafu import Engine, Llamafu
from llamafu.adapters import bake, convert_peft, inspect_adapter
from llamafu.cli.main import main
from llamafu.errors import InvalidAdapterFileError, LlamafuError, LoraLoadError

RANK, SCALE = 4, 5.0
PARAMETERS = {"rank": RANK, "dropout": 0.0, "scale": SCALE}


def arrays_of(modules=SIZES, layers=range(2), dtype="f4"):
    stream, arrays = Weights(6), {}
    for layer in layers:
        for module in modules:
            _, n_in, n_out = SIZES[module]
            arrays[f"model.layers.{layer}.{module}.lora_a"] = stream.uniform((n_in, RANK), 1.0).astype(dtype)
            arrays[f"model.layers.{layer}.{module}.lora_b"] = stream.uniform((RANK, n_out), 1.0).astype(dtype)
    return arrays


def write(folder, arrays, parameters=PARAMETERS, **config):
    """Write a folder with what mlx-lm writes into its configuration."""
    folder.mkdir()
    whole = {
        "adapter_path": "adapters",
        "batch_size": 4,
        "fine_tune_type": "lora",
        "iters": 1000,
        "lora_parameters": parameters,
        "model": "mlx-community/Tiny-4bit",
        "num_layers": -1,
        "optimizer_config": {"adam": {}},
        "train": True,
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps({key: value for key, value in whole.items() if value is not ...}))
    (folder / "adapters.safetensors").write_bytes(safetensors_bytes(arrays))
    return folder


def expected(arrays, architecture="llama"):
    found = {}
    for name in arrays:
        module = name.removesuffix(".lora_a")
        if module == name:
            continue
        _, _, layer, leaf = module.split(".", 3)
        target = SIZES[leaf][0]
        change = SCALE * (arrays[name].astype("f8") @ arrays[f"{module}.lora_b"]).T
        heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(target)
        found[f"blk.{layer}.{target}.weight"] = reordered(change, heads) if heads and architecture == "llama" else change
    return found


def check(path, wanted):
    found = changes(path)
    assert found.keys() == wanted.keys()
    for name, change in wanted.items():
        np.testing.assert_allclose(found[name], change, rtol=0, atol=1e-5 * np.abs(change).max())


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("dtype", ["f4", "f2"])
def test_changes(architecture, dtype, tmp_path):
    arrays = arrays_of(dtype=dtype)
    info = convert_peft(write(tmp_path / "mlx", arrays), tmp_path / "out.gguf", base=base_of(architecture), dtype="f32")
    assert (info.rank, info.tensors[0].strength, info.base_model) == (RANK, SCALE, "Tiny 4bit")
    check(tmp_path / "out.gguf", expected(arrays, architecture))


@pytest.mark.parametrize(
    ("config", "acting"),
    [
        ({"num_layers": 1}, lambda layer, leaf: layer == 1),
        ({"num_layers": ..., "lora_layers": 1}, lambda layer, leaf: layer == 1),
        ({"num_layers": 2}, lambda layer, leaf: True),
        ({"num_layers": 16}, lambda layer, leaf: True),
        ({"num_layers": 0}, lambda layer, leaf: True),
        (
            {"parameters": {**PARAMETERS, "keys": ["self_attn.q_proj", "mlp.up_proj"]}},
            lambda layer, leaf: leaf in ("self_attn.q_proj", "mlp.up_proj"),
        ),
        (
            {"parameters": {**PARAMETERS, "keys": ["model.layers.0.mlp.up_proj"]}},
            lambda *place: place == (0, "mlp.up_proj"),
        ),
        (
            {"num_layers": 1, "parameters": {**PARAMETERS, "keys": ["mlp.up_proj"]}},
            lambda *place: place == (1, "mlp.up_proj"),
        ),
    ],
)
def test_layers_and_keys(config, acting, tmp_path, capsys):
    """As mlx-lm loads it: the last layers, and of those what is named; what else is in the file is told."""
    arrays = arrays_of()
    folder = write(tmp_path / "mlx", arrays, **config)
    info = convert_peft(folder, tmp_path / "out.gguf", base=base_of(), dtype="f32")
    parts = {name: name[: -len(".lora_a")].split(".", 3) for name in arrays}
    acts = {name: array for name, array in arrays.items() if acting(int(parts[name][2]), parts[name][3])}
    check(tmp_path / "out.gguf", expected(acts))
    idle = [name.removesuffix(".lora_a") for name in arrays if name not in acts and name.endswith("a")]
    assert list(info.metadata.get("llamafu.convert.dropped", ())) == idle


@pytest.mark.parametrize("flat", [False, True])
def test_experts(flat, tmp_path):
    """Stacks of all experts; older versions have those of A in one matrix."""
    stream, arrays = Weights(8), {}
    sizes = {"gate_proj": (64, 96), "up_proj": (64, 96), "down_proj": (96, 64)}
    for name, (n_in, n_out) in sizes.items():
        stem = f"model.layers.1.mlp.switch_mlp.{name}"
        a = stream.uniform((4, RANK, n_in), 1.0)
        arrays[f"{stem}.lora_a"] = a.reshape(4 * RANK, n_in) if flat else a
        arrays[f"{stem}.lora_b"] = stream.uniform((4, n_out, RANK), 1.0)
    arrays["model.layers.1.mlp.gate.lora_a"] = stream.uniform((64, RANK), 1.0)
    arrays["model.layers.1.mlp.gate.lora_b"] = stream.uniform((RANK, 4), 1.0)
    convert_peft(write(tmp_path / "mlx", arrays), tmp_path / "out.gguf", base=base_of_kind("qwen3_moe"), dtype="f32")
    wanted = {
        f"blk.1.ffn_{name.removesuffix('_proj')}_exps.weight": SCALE
        * arrays[f"model.layers.1.mlp.switch_mlp.{name}.lora_b"].astype("f8")
        @ arrays[f"model.layers.1.mlp.switch_mlp.{name}.lora_a"].reshape(4, RANK, -1)
        for name in sizes
    }
    gate = arrays["model.layers.1.mlp.gate.lora_a"].astype("f8") @ arrays["model.layers.1.mlp.gate.lora_b"]
    check(tmp_path / "out.gguf", wanted | {"blk.1.ffn_gate_inp.weight": SCALE * gate.T})


def test_embeddings_and_wrapped_decoders(tmp_path):
    stream = Weights(2)
    arrays = {
        "language_model.model.embed_tokens.lora_a": stream.uniform((317, RANK), 1.0),
        "language_model.model.embed_tokens.lora_b": stream.uniform((RANK, 64), 1.0),
        "language_model.model.layers.1.mlp.up_proj.lora_a": stream.uniform((64, RANK), 1.0),
        "language_model.model.layers.1.mlp.up_proj.lora_b": stream.uniform((RANK, 96), 1.0),
        "vision_tower.blocks.0.attn.lora_a": stream.uniform((64, RANK), 1.0),
        "vision_tower.blocks.0.attn.lora_b": stream.uniform((RANK, 64), 1.0),
    }
    folder = write(tmp_path / "mlx", arrays)
    info = convert_peft(folder, tmp_path / "out.gguf", base=base_of_kind("qwen2"), drop=["vision"])
    assert [(tensor.name, tensor.shape) for tensor in info.tensors] == [
        ("token_embd.weight", (317, 64)),
        ("blk.1.ffn_up.weight", (96, 64)),
    ]


def test_taken_wherever_a_folder_is(tmp_path, tiny_model, capsys):
    arrays = arrays_of()
    folder, file, base = write(tmp_path / "mlx1.5", arrays), tmp_path / "out.gguf", str(tiny_model)
    assert main(["convert", str(folder), "-o", str(file), "--base", base]) == 0
    assert main(["inspect", str(folder), "--base", base]) == 0
    assert main(["check", str(folder), "-m", base]) == 0
    assert main(["compare", str(folder), str(file), "--base", base]) == 0
    assert main(["merge", str(folder), str(file), "-o", str(tmp_path / "merged"), "--base", base]) == 0
    assert capsys.readouterr().err == ""
    digest = inspect_adapter(file).digest
    with Llamafu(tiny_model, n_ctx=128) as llm:
        adapter = llm.load_lora_adapter(folder)
        assert (adapter.name, adapter.digest) == ("mlx1.5", digest)
    with Engine(tiny_model, n_ctx=256) as engine:
        assert engine.add_adapter(folder).digest == digest
    bake(tiny_model, {folder: 1.0}, tmp_path / "baked.gguf", dtype="f32")


@pytest.mark.parametrize(
    ("parameters", "config", "words"),
    [
        (PARAMETERS, {"fine_tune_type": "dora"}, "fine_tune_type is 'dora': a magnitude of every row"),
        (PARAMETERS, {"fine_tune_type": ..., "use_dora": True}, "fine_tune_type is 'dora'"),
        (PARAMETERS, {"fine_tune_type": "full"}, "fine_tune_type is 'full': whole matrices and no factors"),
        (PARAMETERS, {"fine_tune_type": "other"}, "fine_tune_type is 'other': not known here"),
        (PARAMETERS, {"peft_type": "LORA"}, "it is PEFT's, and the weights are mlx-lm's"),
        (PARAMETERS, {"num_layers": "all"}, "num_layers is 'all'; it must be a whole number"),
        (PARAMETERS, {"model": 3}, "base_model_name_or_path is 3"),
        (..., {}, "lora_parameters is None; it must have the rank and the scale"),
        ([], {}, r"lora_parameters is \[\]"),
        ({**PARAMETERS, "rank": 0}, {}, "rank is 0; it must be a whole number from 1"),
        ({**PARAMETERS, "rank": None}, {}, "rank is None"),
        ({**PARAMETERS, "scale": 0}, {}, "scale is 0; it must be a number other than 0"),
        ({**PARAMETERS, "scale": float("nan")}, {}, "scale is nan"),
        ({**PARAMETERS, "scale": 1e300}, {}, "lora_alpha is 4e"),
        ({**PARAMETERS, "alpha": 16}, {}, "alpha is 16: mlx-lm of before 2025 multiplied the scale by alpha / rank"),
        ({**PARAMETERS, "alpha": RANK}, {}, None),
        ({**PARAMETERS, "keys": "mlp"}, {}, "keys is 'mlp'; it must be a list"),
        ({**PARAMETERS, "rank": 8}, {}, r"lora_a' is \[64, 4\]; it must be \[in, 8\]"),
    ],
)
def test_configurations(parameters, config, words, tmp_path):
    folder = write(tmp_path / "mlx", arrays_of(), parameters, **config)
    if words is None:
        convert_peft(folder, tmp_path / "out.gguf", base=base_of())
        return
    with pytest.raises(InvalidAdapterFileError, match=words):
        convert_peft(folder, tmp_path / "out.gguf", base=base_of())
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("model.layers.0.mlp.up_proj.m", (96,), "m' is no LoRA factor .*DoRA's magnitudes"),
        ("model.layers.0.mlp.up_proj.linear.weight", (96, 64), "no LoRA factor"),
        ("model.layers.0.mlp.up_proj.lora_b", (3, 96), r"lora_b' is \[3, 96\]; it must be \[4, out\]"),
        ("model.layers.0.mlp.up_proj.lora_b", (4,), "lora_b' is .*must be"),
        ("model.layers.0.mlp.switch_mlp.up_proj.lora_b", (4, 96, 3), r"must be \[experts, out, 4\]"),
        ("model.layers.0.mlp.up_proj.lora_a", (0,), "is empty .*ZeRO-3"),
        ("model.layers.0.mlp.other.lora_a", (64, 4), "no such linear layer"),
    ],
)
def test_tensors_refused_by_name(name, shape, words, tmp_path):
    folder = write(tmp_path / "mlx", arrays_of() | {name: np.ones(shape, "f4")})
    with pytest.raises(InvalidAdapterFileError, match=words):
        convert_peft(folder, tmp_path / "out.gguf", base=base_of())


def test_folders_of_which_nothing_acts(tmp_path):
    folder = write(tmp_path / "mlx", arrays_of(layers=[0]), num_layers=1)
    with pytest.raises(InvalidAdapterFileError, match="mlx-lm would use none of its 7 modules"):
        convert_peft(folder, tmp_path / "out.gguf", base=base_of())


def test_folders_with_nothing_and_damaged_ones(tmp_path):
    folder = write(tmp_path / "mlx", arrays_of())
    (folder / "adapters.safetensors").write_bytes(b"x")
    (folder / "adapter_config.json").write_text("[]")
    with pytest.raises(InvalidAdapterFileError) as caught:
        convert_peft(folder, tmp_path / "out.gguf", base=base_of())
    assert len(caught.value.problems) == 2
    (folder / "adapters.safetensors").unlink()
    with pytest.raises(LoraLoadError, match="mlx-lm's has adapters.safetensors"):
        convert_peft(folder, tmp_path / "out.gguf", base=base_of())


def test_numbers_as_they_are_found(tmp_path):
    """A whole rank written as 4.0, no number of layers, and a scale that subtracts."""
    arrays = arrays_of()
    folder = write(tmp_path / "mlx", arrays, {**PARAMETERS, "rank": float(RANK), "scale": -SCALE}, num_layers=None)
    convert_peft(folder, tmp_path / "out.gguf", base=base_of(), dtype="f32")
    check(tmp_path / "out.gguf", {name: -change for name, change in expected(arrays).items()})


def test_checkpoints_alone_are_named(tmp_path):
    folder = write(tmp_path / "mlx", arrays_of())
    (folder / "adapters.safetensors").rename(folder / "0000100_adapters.safetensors")
    with pytest.raises(LlamafuError, match=r"0000100_adapters.safetensors: copy .* to adapters.safetensors"):
        convert_peft(folder, tmp_path / "out.gguf", base=base_of())
