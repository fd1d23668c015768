"""Modules by the names that models give them: wrapped decoders, models without a head, and parts that no adapter reaches."""

import json

import numpy as np
import pytest
from helpers.hf_configs import TWO_LAYERS
from helpers.model_folders import arrays_of as all_arrays_of
from helpers.model_folders import base_of as base_of_kind
from helpers.peft_folders import arrays_of, base_of, changes, check_changes, write_folder
from tiny_model import Weights

from llamafu import Llamafu
from llamafu.adapters import AdapterReader, convert_peft, export_peft, merge_adapters
from llamafu.adapters.peft.module_name import decoder_module, part_of
from llamafu.adapters.peft.safetensors import read_safetensors
from llamafu.cli.main import main
from llamafu.errors import InvalidAdapterFileError, LoraError

HOMES = [
    "",
    "language_model.",
    "language_model.model.",
    "model.language_model.",
    "model.text_model.",
    "llm.model.",
    "thinker.model.",
    "model.model.",
]


def renamed(arrays, home):
    return {name.replace("base_model.model.model.", f"base_model.model.{home}"): array for name, array in arrays.items()}


@pytest.mark.parametrize("home", HOMES)
def test_decoders_are_found_in_whatever_they_are_wrapped_in(home, tmp_path):
    """Every layer of them, not the first alone."""
    arrays = arrays_of()
    folder = write_folder(tmp_path / "folder", renamed(arrays, home), rank_pattern={f"{home}layers.1.mlp.nothing": 3})
    convert_peft(folder, tmp_path / "out.gguf", base=base_of(), dtype="f32")
    check_changes(tmp_path / "out.gguf", arrays, lambda _: 2.0)


@pytest.mark.parametrize("home", HOMES)
def test_embeddings_and_heads_of_wrapped_decoders(home, tmp_path):
    arrays = {
        f"base_model.model.{home}embed_tokens.lora_embedding_A": np.ones((4, 317), "f4"),
        f"base_model.model.{home}embed_tokens.lora_embedding_B": np.ones((64, 4), "f4"),
        f"base_model.model.{home}lm_head.lora_A.weight": np.ones((4, 64), "f4"),
        f"base_model.model.{home}lm_head.lora_B.weight": np.ones((317, 4), "f4"),
    }
    folder = write_folder(tmp_path / "folder", arrays)
    info = convert_peft(folder, tmp_path / "out.gguf", base=base_of_kind("qwen2"))
    assert [tensor.name for tensor in info.tensors] == ["token_embd.weight", "output.weight"]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj", "vision"),
        ("vision_tower.vision_model.encoder.layers.0.mlp.fc1", "vision"),
        ("visual.blocks.0.attn.qkv", "vision"),
        ("model.visual.merger.mlp.0", "vision"),
        ("vpm.encoder.layers.0.self_attn.q_proj", "vision"),
        ("vision_model.layers.0.self_attn.q_proj", "vision"),
        ("model.image_encoder.layers.0.attn.q_proj", "vision"),
        ("audio_tower.layers.0.self_attn.q_proj", "audio"),
        ("model.speech_encoder.layers.3.self_attn.q_proj", "audio"),
        ("talker.model.layers.0.self_attn.q_proj", "audio"),
        ("multi_modal_projector.linear_1", "projector"),
        ("model.connector.modality_projection.proj", "projector"),
        ("model.layers.0.mlp.up_proj", None),
        ("language_model.model.layers.0.mlp.up_proj", None),
        ("model.decoder.layers.0.self_attn.q_proj", None),
    ],
)
def test_parts(name, part):
    assert part_of(name) == part
    assert (decoder_module(name) is not None) == (name.endswith("up_proj"))


TOWER = "base_model.model.model.vision_tower.vision_model.encoder.layers"


def with_tower():
    """The factors of a decoder, of a vision tower whose names and sizes could be the decoder's, and its bias."""
    arrays = arrays_of()
    for layer in range(2):
        for leaf in ("self_attn.q_proj", "self_attn.v_proj"):
            arrays[f"{TOWER}.{layer}.{leaf}.lora_A.weight"] = np.ones((4, 64), "f4")
            arrays[f"{TOWER}.{layer}.{leaf}.lora_B.weight"] = np.ones((64, 4), "f4")
    arrays["base_model.model.model.multi_modal_projector.linear_1.lora_A.weight"] = np.ones((4, 64), "f4")
    arrays["base_model.model.model.multi_modal_projector.linear_1.lora_B.weight"] = np.ones((64, 4), "f4")
    return arrays | {f"{TOWER}.0.self_attn.q_proj.bias": np.ones(64, "f4")}


def test_other_parts_are_said_and_left_out_when_asked(tmp_path, capsys):
    folder = write_folder(tmp_path / "folder", with_tower())
    with pytest.raises(
        InvalidAdapterFileError, match="vision_tower.*q_proj' and 3 more: it belongs to the vision tower"
    ) as caught:
        convert_peft(folder, tmp_path / "out.gguf", base=base_of())
    assert [problem for problem in caught.value.problems if "drop=['vision'] (llamafu convert --drop vision)" in problem]
    assert [problem for problem in caught.value.problems if "drop=['projector'] (llamafu convert --drop projector)" in problem]
    info = convert_peft(folder, tmp_path / "out.gguf", base=base_of(), dtype="f32", drop=["vision", "multi_modal_projector"])
    check_changes(tmp_path / "out.gguf", arrays_of(), lambda _: 2.0)
    dropped = info.metadata["llamafu.convert.dropped"]
    assert len(dropped) == 5
    assert dropped[0] == "model.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj"
    (tmp_path / "base.json").write_text(json.dumps(TWO_LAYERS))
    arguments = ["convert", str(folder), "-o", str(tmp_path / "out.gguf"), "--base", str(tmp_path / "base.json")]
    assert main([*arguments, "--force", "--drop", "vision", "--drop", "projector"]) == 0
    assert "left out 5 modules: model.vision_tower.vision_model" in capsys.readouterr().out
    assert main([*arguments, "--force", "--drop", "vision"]) == 1
    assert "--drop projector" in capsys.readouterr().err


def test_modules_of_the_decoder_are_left_out_by_name(tmp_path):
    folder = write_folder(tmp_path / "folder", arrays_of())
    info = convert_peft(folder, tmp_path / "out.gguf", base=base_of(), drop=["layers.0", "self_attn.q_proj", "mlp"])
    assert [tensor.name for tensor in info.tensors] == [f"blk.1.{name}.weight" for name in ("attn_k", "attn_v", "attn_output")]
    assert len(info.metadata["llamafu.convert.dropped"]) == 11
    for drop, words in (
        (["q_pro"], "no module has 'q_pro' in its name"),
        (["mlp", "vision"], "no module has 'vision'"),
        ([""], "drop has ''"),
        ([3], "drop has 3"),
    ):
        with pytest.raises(LoraError, match=words):
            convert_peft(folder, tmp_path / "out.gguf", base=base_of(), drop=drop)
    with pytest.raises(InvalidAdapterFileError, match="all of its modules were left out"):
        convert_peft(folder, tmp_path / "out.gguf", base=base_of(), drop="layers")


def test_modules_are_left_out_where_folders_are_loaded(tmp_path, tiny_model):
    folder = write_folder(tmp_path / "folder", with_tower())
    with Llamafu(tiny_model, n_ctx=128) as llm:
        with pytest.raises(InvalidAdapterFileError, match="--drop vision"):
            llm.load_lora_adapter(folder)
        adapter = llm.load_lora_adapter(folder, drop=["vision", "projector"])
        assert len(adapter.info.tensors) == 14
        assert len(adapter.info.metadata["llamafu.convert.dropped"]) == 5
        fewer = llm.load_lora_adapter(folder, name="fewer", drop=["vision", "projector", "mlp"])
        assert len(fewer.info.tensors) == 8


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.visual.blocks.0.attn.qkv.lora_A.weight", r"it belongs to the vision tower.*drop=\['vision'\]"),
        ("model.encoder.layers.0.self_attn.q_proj.lora_A.weight", r"its name is none of a decoder's .*drop="),
        (
            "model.layers.0.self_attn.z_proj.lora_A.weight",
            r"'llama' models have no such linear layer: theirs are .*give the base",
        ),
        ("model.layers.0.mlp.up_proj.lora_embedding_A", "factors of token embeddings, and is a linear layer"),
        ("model.embed_tokens.lora_A.weight", "factors of a linear layer, and is token embeddings"),
        ("model.layers.0.mlp.experts.up_proj.lora_A.weight", "a stack of all experts.*experts.0.up_proj"),
        ("model.layers.0.mlp.experts.lora_A.weight", "target_parameters in adapter_config.json does not name"),
    ],
)
def test_every_reason_has_words_of_its_own(name, words, tmp_path):
    folder = write_folder(tmp_path / "folder", {f"base_model.model.{name}": np.ones((4, 64), "f4")})
    with pytest.raises(InvalidAdapterFileError, match=words):
        convert_peft(folder, tmp_path / "out.gguf", base=base_of())


# -- written again --------------------------------------------------------------------------------------------------


def written(folder):
    names = read_safetensors((folder / "adapter_model.safetensors").read_bytes(), name="f")
    return set(names), json.loads((folder / "adapter_config.json").read_text())


@pytest.mark.parametrize(
    ("home", "head", "task"),
    [
        ("model.language_model.", "lm_head", "CAUSAL_LM"),
        ("language_model.model.", "language_model.lm_head", "CAUSAL_LM"),
        ("", None, "FEATURE_EXTRACTION"),
        ("model.", "lm_head", "CAUSAL_LM"),
    ],
)
def test_merged_folders_have_the_sources_names(home, head, task, tmp_path):
    """Gemma 3 with pictures, before and since transformers 4.52, and a model without a head: PEFT goes by whole names."""
    arrays = renamed(all_arrays_of("gemma3_text"), home)
    if head:
        arrays[f"base_model.model.{head}.lora_A.weight"] = np.ones((4, 64), "f4")
        arrays[f"base_model.model.{head}.lora_B.weight"] = np.ones((317, 4), "f4")
    folders = [write_folder(tmp_path / name, arrays) for name in "ab"]
    base = base_of_kind("gemma3_text")
    reader = AdapterReader(base)
    files = [tmp_path / "a.gguf", tmp_path / "b.gguf"]
    for folder, file in zip(folders, files, strict=True):
        convert_peft(folder, file, base=base, dtype="f32")
        assert reader.read(folder).info.target_modules
    merge_adapters(dict.fromkeys(files, 0.5), tmp_path / "merged", method="cat")
    merge_adapters(dict.fromkeys(files, 0.5), tmp_path / "merged.gguf", method="cat")
    export_peft(tmp_path / "merged.gguf", tmp_path / "exported")
    for folder in (tmp_path / "merged", tmp_path / "exported"):
        names, config = written(folder)
        assert names == set(arrays)
        assert config["task_type"] == task
        assert set(config["target_modules"]) == {name.split(".", 2)[2].partition(".lora_")[0] for name in arrays}
    convert_peft(tmp_path / "merged", tmp_path / "again.gguf", base=base, dtype="f32")
    assert changes(tmp_path / "again.gguf").keys() == changes(files[0]).keys()


# -- gate and up ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leaves", [("gate", "up"), ("gate",), ("up",)])
def test_gate_and_up_of_a_split_model_are_joined(leaves, tmp_path):
    """A Phi-3 that was trained with gate and up apart, on a base that has them in one tensor, gate above up."""
    arrays, halves = {}, {}
    stream = Weights(4)
    for leaf in leaves:
        name = f"base_model.model.model.layers.1.mlp.{leaf}_proj"
        a = arrays[f"{name}.lora_A.weight"] = stream.uniform((2 if leaf == "up" else 4, 64), 1.0)
        b = arrays[f"{name}.lora_B.weight"] = stream.uniform((96, len(a)), 1.0)
        halves[leaf] = (5 / 2 if leaf == "up" else 2) * b.astype("f8") @ a
    config = {"rank_pattern": {"up_proj": 2}, "alpha_pattern": {"up_proj": 5}}
    convert_peft(
        write_folder(tmp_path / "folder", arrays, **config), tmp_path / "out.gguf", base=base_of_kind("phi3"), dtype="f32"
    )
    found = changes(tmp_path / "out.gguf")
    assert list(found) == ["blk.1.ffn_up.weight"]
    expected = np.concatenate([halves.get(leaf, np.zeros((96, 64))) for leaf in ("gate", "up")])
    np.testing.assert_allclose(found["blk.1.ffn_up.weight"], expected, atol=1e-5 * np.abs(expected).max())


def test_all_of_a_split_model_is_joined(tmp_path):
    arrays = arrays_of()
    base = base_of_kind("phi3")
    base.metadata["phi3.embedding_length"] = 64
    info = convert_peft(write_folder(tmp_path / "folder", arrays), tmp_path / "out.gguf", base=base, dtype="f32")
    assert info.target_modules == ("attn_output", "attn_qkv", "ffn_down", "ffn_up")
    found = changes(tmp_path / "out.gguf")

    def change(module):
        a, b = (arrays[f"base_model.model.model.layers.1.{module}.lora_{side}.weight"].astype("f8") for side in "AB")
        return 2 * b @ a

    qkv = np.concatenate([change(f"self_attn.{name}_proj") for name in "qkv"])
    gate_up = np.concatenate([change(f"mlp.{name}_proj") for name in ("gate", "up")])
    np.testing.assert_allclose(found["blk.1.attn_qkv.weight"], qkv, atol=1e-4)
    np.testing.assert_allclose(found["blk.1.ffn_up.weight"], gate_up, atol=1e-4)


def test_wholes_beside_their_parts_are_refused(tmp_path):
    for other in ("gate", "up"):
        arrays = {
            f"base_model.model.model.layers.0.mlp.{name}_proj.lora_{side}.weight": np.ones(shape, "f4")
            for name, rows in (("gate_up", 192), (other, 96))
            for side, shape in (("A", (4, 64)), ("B", (rows, 4)))
        }
        with pytest.raises(InvalidAdapterFileError, match="as a whole and in parts|which another module is already"):
            convert_peft(write_folder(tmp_path / other, arrays), tmp_path / "out.gguf", base=base_of_kind("phi3"))
