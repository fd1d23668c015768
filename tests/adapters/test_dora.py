"""DoRA adapters as plain factors: against the formula, on every kind of base; PEFT's own merge is in `tests/peers/`."""

import json
import shutil

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFReader, quants
from helpers.baked_models import write_model
from helpers.dora_folders import SUFFIXES, dora_folder, magnitudes
from helpers.peft_folders import HEADS, KV_HEADS, SIZES, arrays_of, base_of, changes, reordered, safetensors_bytes, write_folder

from llamafu import Llamafu
from llamafu.adapters import convert_peft, read_base
from llamafu.cli.main import main
from llamafu.errors import InvalidAdapterFileError, LoraError, ModelLoadError


def dense(path):
    return {t.name: np.float64(quants.dequantize(t.data, t.tensor_type)) for t in GGUFReader(path).tensors}


def expected(weights, arrays, strength=2.0):
    """W' - W by DoRA's formula, by tensor, in GGUF's order: rows are moved by their numbers."""
    found = {}
    for module, length in magnitudes(arrays).items():
        layer, leaf = module.split(".")[4], module.split(".", 5)[5]
        kind, _, out = SIZES[leaf]
        heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(kind)
        order = np.arange(out) if heads is None else reordered(np.arange(out)[:, None], heads)[:, 0]
        name = f"blk.{layer}.{kind}.weight"
        base = np.empty_like(weights[name])
        base[order] = weights[name]
        a, b = (arrays[f"{module}.lora_{side}.weight"].astype("f8") for side in "AB")
        whole = base + strength * b @ a
        found[name] = (length[:, None] * whole / np.linalg.norm(whole, axis=1, keepdims=True) - base)[order]
    return found


def assert_near(found, wanted, tolerance=1e-3):
    assert found.keys() == wanted.keys()
    for name, change in wanted.items():
        assert np.linalg.norm(found[name] - change) <= tolerance * np.linalg.norm(change), name


@pytest.mark.parametrize("model", ["tiny.gguf", "tiny-q4_0.gguf"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_full_rank_is_the_whole_change(tiny_dir, tmp_path, suffix, model):
    arrays = arrays_of()
    folder = dora_folder(tmp_path / "dora", arrays, suffix)
    info = convert_peft(folder, tmp_path / "out.gguf", base=tiny_dir / model, dora="svd", dora_rank=64)
    assert_near(changes(tmp_path / "out.gguf"), expected(dense(tiny_dir / model), arrays), 2e-3)
    assert max(info.metadata["llamafu.convert.dora.errors"]) < 1e-6
    assert info.rank == 64


def test_the_error_of_each_layer_is_told(tiny_model, tmp_path, capsys):
    arrays = arrays_of(layers=1)
    folder, out = dora_folder(tmp_path / "dora", arrays), tmp_path / "out.gguf"
    words = ["convert", str(folder), "-o", str(out), "--base", str(tiny_model)]
    assert main([*words, "--dora", "svd"]) == 0
    said = capsys.readouterr().out
    wanted, found = expected(dense(tiny_model), arrays), changes(out)
    info = convert_peft(folder, out, base=tiny_model, dora="svd")
    told = dict(zip(info.metadata["llamafu.convert.dora.tensors"], info.metadata["llamafu.convert.dora.errors"], strict=True))
    assert info.rank == 16  # four times the adapter's
    assert told.keys() == wanted.keys()
    for name, change in wanted.items():
        sizes = np.linalg.svd(change, compute_uv=False)
        assert told[name] == pytest.approx(np.linalg.norm(sizes[16:]) / np.linalg.norm(sizes), rel=1e-3)
        assert np.linalg.norm(found[name] - change) / np.linalg.norm(change) == pytest.approx(told[name], rel=1e-2)
        assert f"{name}: rank 16 leaves out {told[name] * 100:.3g} % of the change" in said
    assert main([*words, "--force", "--dora-rank", "3"]) == 2
    assert main([*words, "--force", "--dora", "svd", "--dora-rank", "3"]) == 0
    assert "rank 3 leaves out" in capsys.readouterr().out


def test_without_the_option_it_is_refused_and_the_option_named(tiny_model, tmp_path, capsys):
    folder = dora_folder(tmp_path / "dora", arrays_of(layers=1))
    with pytest.raises(InvalidAdapterFileError, match=r"use_dora.*dora='svd' \(llamafu convert --dora svd\)"):
        convert_peft(folder, tmp_path / "out.gguf", base=tiny_model)
    assert main(["convert", str(folder), "-o", str(tmp_path / "out.gguf"), "--base", str(tiny_model)]) == 1
    assert "--dora svd" in capsys.readouterr().err
    with Llamafu(tiny_model, n_ctx=64) as llm, pytest.raises(InvalidAdapterFileError, match="--dora svd"):
        llm.load_lora_adapter(folder)


def test_plain_adapters_stay_as_they_are(tiny_model, tmp_path):
    folder = write_folder(tmp_path / "plain", arrays_of())
    plain = convert_peft(folder, tmp_path / "plain.gguf", base=tiny_model)
    assert convert_peft(folder, tmp_path / "same.gguf", base=tiny_model, dora="svd") == plain


def test_weights_from_safetensors(tiny_model, tmp_path):
    """The folder of a model on the hub, whose rows are in the order of its own: the same factors as from the GGUF file."""
    arrays = arrays_of()
    folder, hub = dora_folder(tmp_path / "dora", arrays), tmp_path / "hub"
    hub.mkdir()
    weights, tensors = dense(tiny_model), {}
    for layer in range(2):
        for leaf, (kind, _, out) in SIZES.items():
            heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(kind)
            order = np.arange(out) if heads is None else reordered(np.arange(out)[:, None], heads)[:, 0]
            own = np.empty_like(weights[f"blk.{layer}.{kind}.weight"], dtype="f4")
            own[order] = weights[f"blk.{layer}.{kind}.weight"]
            tensors[f"model.layers.{layer}.{leaf}.weight"] = own
    half = len(tensors) // 2
    parts = {
        "model-1.safetensors": dict(list(tensors.items())[:half]),
        "model-2.safetensors": dict(list(tensors.items())[half:]),
    }
    for name, part in parts.items():
        (hub / name).write_bytes(safetensors_bytes(part))
    index = {"weight_map": {key: name for name, part in parts.items() for key in part}}
    (hub / "model.safetensors.index.json").write_text(json.dumps(index))
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 317}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS}
    (hub / "config.json").write_text(json.dumps({"model_type": "llama", **sizes, **heads}))
    one = convert_peft(folder, tmp_path / "one.gguf", base=tiny_model, dora="svd")
    assert convert_peft(folder, tmp_path / "two.gguf", base=hub, dora="svd").digest == one.digest
    (hub / "model-2.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"model-2.safetensors is not there: the base model's weights are needed"):
        convert_peft(folder, tmp_path / "x.gguf", base=hub, dora="svd")
    (hub / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ModelLoadError, match="no sound index"):
        convert_peft(folder, tmp_path / "x.gguf", base=hub, dora="svd")
    (hub / "model.safetensors.index.json").unlink()
    (hub / "model-1.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelLoadError, match="model-1.safetensors: the base model's weights cannot be read"):
        convert_peft(folder, tmp_path / "x.gguf", base=hub, dora="svd")


def test_a_fused_base(tiny_model, tmp_path):
    """q, k and v in one tensor: each is computed with its own rows of it."""
    arrays = {key: array for key, array in arrays_of(layers=1).items() if "self_attn" in key and "o_proj" not in key}
    folder = dora_folder(tmp_path / "dora", arrays)
    weights = dense(tiny_model)
    parts = [f"blk.0.attn_{part}.weight" for part in "qkv"]
    whole = np.concatenate([weights[part] for part in parts]).astype("f4")
    facts = [("llama.attention.head_count", HEADS), ("llama.attention.head_count_kv", KV_HEADS), ("llama.embedding_length", 64)]
    write_model(
        tmp_path / "fused.gguf", {"blk.0.attn_qkv.weight": whole}, kinds={"blk.0.attn_qkv.weight": Kind.F32}, extra=facts
    )
    convert_peft(folder, tmp_path / "out.gguf", base=tmp_path / "fused.gguf", dora="svd", dora_rank=64, dtype="f32")
    (change,) = changes(tmp_path / "out.gguf").values()
    wanted = expected(weights, arrays)
    assert_near({"all": change}, {"all": np.concatenate([wanted[part] for part in parts])})


def test_one_expert(tiny_dir, tmp_path):
    """A single expert's matrix out of the stack."""
    module = "base_model.model.model.layers.1.block_sparse_moe.experts.2.w1"
    random = np.random.default_rng(0)
    base = dense(tiny_dir / "tiny-moe.gguf")["blk.1.ffn_gate_exps.weight"]
    a, b = random.standard_normal((4, base.shape[2])).astype("f4"), random.standard_normal((base.shape[1], 4)).astype("f4")
    length = random.uniform(0.5, 2, base.shape[1]).astype("f4")
    arrays = {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b, f"{module}.lora_magnitude_vector": length}
    folder = write_folder(tmp_path / "dora", arrays, use_dora=True)
    info = convert_peft(folder, tmp_path / "out.gguf", base=tiny_dir / "tiny-moe.gguf", dora="svd", dora_rank=64, dtype="f32")
    assert info.metadata["llamafu.convert.dora.tensors"] == ("blk.1.ffn_gate_exps.weight#2",)
    whole = base[2] + 2.0 * b.astype("f8") @ a
    wanted = np.zeros_like(base)
    wanted[2] = length[:, None] * whole / np.linalg.norm(whole, axis=1, keepdims=True) - base[2]
    assert_near(changes(tmp_path / "out.gguf"), {"blk.1.ffn_gate_exps.weight": wanted})


def test_what_cannot_be_computed(tiny_model, tmp_path):
    arrays = arrays_of(layers=1)
    key = "base_model.model.model.layers.0.mlp.up_proj"
    lengths = {f"{module}{SUFFIXES[0]}": length for module, length in magnitudes(arrays).items()}
    for name, changed, words in (
        ("none", lengths | {f"{key}{SUFFIXES[0]}": None}, "up_proj': it has no magnitudes"),
        ("few", lengths | {f"{key}{SUFFIXES[0]}": np.ones(95, "f4")}, "it has 95 magnitudes, and there must be 96"),
        ("nan", lengths | {f"{key}{SUFFIXES[0]}": np.full(96, np.nan, "f4")}, "holds NaN"),
    ):
        whole = {**arrays, **{key: value for key, value in changed.items() if value is not None}}
        folder = write_folder(tmp_path / name, whole, use_dora=True)
        with pytest.raises(InvalidAdapterFileError, match=words):
            convert_peft(folder, tmp_path / "out.gguf", base=tiny_model, dora="svd")
    folder = dora_folder(tmp_path / "dora", arrays)
    for options, words in (
        ({"dora": "qr"}, "dora is 'qr'; it must be None or 'svd'"),
        ({"dora_rank": 4}, "it is for dora='svd'"),
        ({"dora": "svd", "dora_rank": 0}, "dora_rank is 0"),
    ):
        with pytest.raises(LoraError, match=words):
            convert_peft(folder, tmp_path / "out.gguf", base=tiny_model, **options)
    with pytest.raises(ModelLoadError, match="no such model file|is not there|cannot be read"):
        convert_peft(folder, tmp_path / "out.gguf", base=base_of(), dora="svd")
    cut = shutil.copy(tiny_model, tmp_path / "cut.gguf")
    base = read_base(cut)
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(ModelLoadError, match="truncated"):
        convert_peft(folder, tmp_path / "out.gguf", base=base, dora="svd")
    assert not (tmp_path / "out.gguf").exists()
