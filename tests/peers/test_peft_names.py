"""Modules by the names of other models than those of text alone: PEFT's merge, and PEFT loading what is written here."""

import warnings

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_hf import HIDDEN, make_model, write_gguf
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

from llamafu.adapters import convert_peft, inspect_adapter, merge_adapters, read_adapter, read_base
from llamafu.adapters.merge.merge import merge_for_base
from llamafu.adapters.merge.methods import MergeOptions
from llamafu.errors import InvalidAdapterFileError


def pictured():
    """A tiny Gemma 3 with a vision tower."""
    torch.manual_seed(2)
    text = make_model("gemma3_text").config.to_dict()
    vision = {
        "hidden_size": HIDDEN,
        "intermediate_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "image_size": 28,
        "patch_size": 14,
    }
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=4)
    return AutoModelForImageTextToText.from_config(config).float().eval()


def headless():
    return AutoModel.from_config(make_model("qwen3").config).float().eval()


MODELS = {"pictured": (pictured, "gemma3_text"), "headless": (headless, "qwen3")}


def save(model, folder, seed, **options):
    """Save a random adapter; return what its merge adds to every weight."""
    before = {name: tensor.double().clone() for name, tensor in model.state_dict().items()}
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, **options))
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=stream))
    adapted.save_pretrained(folder)
    merged = adapted.merge_and_unload().state_dict()
    return {
        name: (merged[name].double() - old).numpy()
        for name, old in before.items()
        if not torch.equal(merged[name], old.float())
    }


@pytest.fixture(params=MODELS)
def made(request, tmp_path):
    """A model's maker, the header of its decoder as GGUF, and two adapters with their changes."""
    make, kind = MODELS[request.param]
    write_gguf(make_model(kind), tmp_path / "base.gguf")
    leaves = r"(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
    targets = rf".*(language_model\.|^)layers\.\d+\.{leaves}"
    changes = {name: save(make(), tmp_path / name, seed, target_modules=targets) for seed, name in enumerate("ab")}
    return make, read_base(tmp_path / "base.gguf"), changes


def test_every_layer_is_converted(made, tmp_path):
    _, base, changes = made
    convert_peft(tmp_path / "a", tmp_path / "a.gguf", base=base, dtype="f32")
    file = read_adapter(tmp_path / "a.gguf")
    assert len(file.pairs) == len(changes["a"]) == 7 * len(file.info.layers)
    strength = file.info.tensors[0].strength
    for name, change in changes["a"].items():
        layer, leaf = name.partition("layers.")[2].split(".", 1)
        target = (
            {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output"}.get(leaf.split(".")[1][0])
            if "attn" in leaf
            else None
        )
        target = target or f"ffn_{leaf.split('.')[1].removesuffix('_proj')}"
        pair = file.pairs[f"blk.{layer}.{target}.weight"]
        np.testing.assert_allclose(strength * file.matrix(pair.b).astype("f8") @ file.matrix(pair.a), change, atol=1e-3)


def test_peft_loads_what_is_merged(made, tmp_path):
    """With no warning of keys that are missing, and with the sum of both changes."""
    make, base, changes = made
    options = MergeOptions(method="cat")
    merge_for_base({tmp_path / "a": 0.5, tmp_path / "b": -1.0}, tmp_path / "merged", options, base=base, form="peft")
    for name in "ab":
        convert_peft(tmp_path / name, tmp_path / f"{name}.gguf", base=base, dtype="f32")
    merge_adapters({tmp_path / "a.gguf": 0.5, tmp_path / "b.gguf": -1.0}, tmp_path / "of-files", method="cat")
    for folder in ("merged", "of-files"):
        model = make()
        before = {name: tensor.double().clone() for name, tensor in model.state_dict().items()}
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*(missing|unexpected).*")
            after = PeftModel.from_pretrained(model, tmp_path / folder).merge_and_unload().state_dict()
        for name, old in before.items():
            wanted = 0.5 * changes["a"].get(name, 0.0) - changes["b"].get(name, 0.0)
            np.testing.assert_allclose(
                (after[name].double() - old).numpy(), wanted + np.zeros(old.shape), atol=1e-3, err_msg=name
            )


def test_factors_of_the_vision_tower_are_left_out(tmp_path):
    write_gguf(make_model("gemma3_text"), tmp_path / "base.gguf")
    changes = save(pictured(), tmp_path / "a", 3, target_modules=["q_proj", "v_proj"])
    with pytest.raises(InvalidAdapterFileError, match="--drop vision"):
        convert_peft(tmp_path / "a", tmp_path / "a.gguf", base=tmp_path / "base.gguf")
    pictured().config.save_pretrained(tmp_path / "config")
    matrices = {name: shape for name, shape in read_base(tmp_path / "base.gguf").tensors.items() if len(shape) > 1}
    assert read_base(tmp_path / "config").tensors == matrices
    convert_peft(tmp_path / "a", tmp_path / "a.gguf", base=tmp_path / "config", drop=["vision"])
    info = inspect_adapter(tmp_path / "a.gguf")
    assert len(info.tensors) == sum("language_model" in name for name in changes)
    assert len(info.metadata["llamafu.convert.dropped"]) == sum("vision" in name for name in changes) == 2
