"""Base models from a config.json: the sizes that the GGUF model has, and one error for everything else.

`make test-peers` compares every model type with the GGUF form of a model that transformers made.
"""

import json
from pathlib import Path

import pytest
from helpers.hf_configs import TINY
from helpers.peft_folders import arrays_of, base_of, write_folder

from llamafu.adapters import convert_peft, inspect_adapter
from llamafu.adapters.peft.architectures import ARCHITECTURES
from llamafu.adapters.peft.hf_config import MODEL_TYPES, read_any_base
from llamafu.cli.main import main
from llamafu.errors import LoraIncompatibleError, ModelLoadError

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "adapters"
SMOLLM2 = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "vocab_size": 49152,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
ATTENTION = {"attn_q": (64, 64), "attn_k": (64, 32), "attn_v": (64, 32), "attn_output": (64, 64)}
DENSE = {"ffn_gate": (64, 96), "ffn_up": (64, 96), "ffn_down": (96, 64)}
WIDE_HEADS = {"attn_q": (64, 1024), "attn_k": (64, 512), "attn_v": (64, 512), "attn_output": (1024, 64)}
STACKS = {"ffn_gate_inp": (64, 3), "ffn_gate_exps": (64, 32, 3), "ffn_up_exps": (64, 32, 3), "ffn_down_exps": (32, 64, 3)}


def written(folder, config, name="config.json"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(config if isinstance(config, bytes) else json.dumps(config).encode())
    return folder / name


@pytest.mark.parametrize(
    ("changes", "architecture", "tied", "modules"),
    [
        ({}, "llama", False, ATTENTION | DENSE),
        ({"tie_word_embeddings": True}, "llama", True, ATTENTION | DENSE),
        ({"model_type": "mistral", "head_dim": None}, "llama", False, ATTENTION | DENSE),
        ({"num_key_value_heads": None}, "llama", False, ATTENTION | DENSE | {"attn_k": (64, 64), "attn_v": (64, 64)}),
        ({"model_type": "qwen2"}, "qwen2", False, ATTENTION | DENSE),
        ({"model_type": "gemma2"}, "gemma2", True, WIDE_HEADS | DENSE),
        ({"model_type": "gemma3_text", "head_dim": 16}, "gemma3", True, ATTENTION | DENSE),
        ({"model_type": "granite"}, "granite", False, ATTENTION | DENSE),
        (
            {"model_type": "phi3"},
            "phi3",
            False,
            {"attn_qkv": (64, 128), "attn_output": (64, 64), "ffn_up": (64, 192), "ffn_down": (96, 64)},
        ),
        ({"model_type": "qwen3", "head_dim": 16}, "qwen3", False, ATTENTION | DENSE),
        (
            {"model_type": "qwen3_moe", "head_dim": 16, "num_experts": 3, "moe_intermediate_size": 32},
            "qwen3moe",
            False,
            ATTENTION | STACKS,
        ),
        ({"model_type": "mixtral", "num_local_experts": 3, "intermediate_size": 32}, "llama", False, ATTENTION | STACKS),
    ],
)
def test_sizes(changes, architecture, tied, modules, tmp_path):
    base = read_any_base(written(tmp_path / "model", TINY | changes))
    assert base.architecture == architecture
    assert base.tied is tied
    assert base.vocabulary_size == 317
    inside = {name.split(".")[2]: shape for name, shape in base.tensors.items() if name.startswith("blk.0.")}
    assert inside == modules
    assert base.metadata[f"{architecture}.attention.head_count"] == 4
    assert base.metadata.get(f"{architecture}.expert_count") == (3 if "ffn_up_exps" in modules else None)
    assert base == read_any_base(tmp_path / "model")


def test_models_with_pictures(tmp_path):
    """Gemma 3's own configurations leave out what is as in transformers."""
    text = {"model_type": "gemma3_text", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
    config = {
        "model_type": "gemma3",
        "_name_or_path": "google/gemma",
        "text_config": text,
        "vision_config": {"hidden_size": 32},
    }
    base = read_any_base(written(tmp_path / "model", config))
    assert (base.architecture, base.name, base.tied) == ("gemma3", "google/gemma", True)
    assert base.tensors["blk.0.attn_q.weight"] == (64, 8 * 256)
    assert base.tensors["blk.0.attn_k.weight"] == (64, 4 * 256)
    assert base.vocabulary_size == 262_208
    base = read_any_base(
        written(tmp_path / "model", config | {"text_config": text | {"head_dim": 16, "num_attention_heads": 4}})
    )
    assert base.tensors["blk.0.attn_q.weight"] == (64, 4 * 16)
    with pytest.raises(ModelLoadError, match="its model_type is 'gemma3'"):
        read_any_base(written(tmp_path / "model", {"model_type": "gemma3"}))


def test_layers_without_experts(tmp_path):
    changes = {"model_type": "qwen3_moe", "num_hidden_layers": 6, "num_experts": 2, "moe_intermediate_size": 8}
    base = read_any_base(written(tmp_path, TINY | changes | {"mlp_only_layers": [3], "decoder_sparse_step": 2}))
    assert {int(name.split(".")[1]) for name in base.tensors if "_exps" in name} == {1, 5}
    assert {int(name.split(".")[1]) for name in base.tensors if "ffn_up.weight" in name} == {0, 2, 3, 4}


def test_every_type_is_of_an_architecture_that_can_be_converted():
    assert {kind.architecture for kind in MODEL_TYPES.values()} == set(ARCHITECTURES)


@pytest.mark.parametrize("name", ["pirate", "shout"])
def test_the_examples_need_no_model(name, tmp_path, capsys):
    config = written(tmp_path, SMOLLM2, "smollm2.json")
    convert_peft(EXAMPLES / name, tmp_path / "out.gguf", base=config)
    assert (tmp_path / "out.gguf").read_bytes() == (EXAMPLES / f"{name}.gguf").read_bytes()
    assert main(["convert", str(EXAMPLES / name), "-o", str(tmp_path / "cli.gguf"), "--base", str(config)]) == 0
    assert f"rank {inspect_adapter(EXAMPLES / f'{name}.gguf').rank}, " in capsys.readouterr().out
    assert (tmp_path / "cli.gguf").read_bytes() == (tmp_path / "out.gguf").read_bytes()


def test_a_folder_that_does_not_fit_is_refused(tmp_path):
    folder = write_folder(tmp_path / "folder", arrays_of())
    config = written(tmp_path / "model", TINY)  # of one layer
    with pytest.raises(LoraIncompatibleError, match=r"blk\.1\..*which has attn_q in layer 0 only"):
        convert_peft(folder, tmp_path / "out.gguf", base=config)
    with pytest.raises(LoraIncompatibleError, match=r"fit config\.json"):
        convert_peft(folder, tmp_path / "out.gguf", base=tmp_path / "model")
    convert_peft(folder, tmp_path / "out.gguf", base=written(tmp_path / "model", TINY | {"num_hidden_layers": 2}))
    convert_peft(folder, tmp_path / "other.gguf", base=base_of())
    assert inspect_adapter(tmp_path / "out.gguf").digest == inspect_adapter(tmp_path / "other.gguf").digest


def without(key):
    return {name: value for name, value in TINY.items() if name != key}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (b"", "no sound JSON"),
        (b"\xff", "no sound JSON"),
        (b"[" * 100_000, "no sound JSON"),
        (b"[]", "no JSON object; known are llama, mistral"),
        (b"{}", "model_type is 'None'; known are llama, mistral, .*Give the GGUF model instead"),
        ({"model_type": ["llama"]}, "model_type is"),
        ({"model_type": "mamba"}, "model_type is 'mamba'"),
        (without("hidden_size"), "hidden_size is 'None'; it must be a whole number from 1"),
        (TINY | {"hidden_size": -1}, "hidden_size is '-1'"),
        (TINY | {"hidden_size": 64.0}, "hidden_size is '64.0'"),
        (TINY | {"num_attention_heads": True}, "num_attention_heads is 'True'"),
        (TINY | {"num_attention_heads": 0}, "num_attention_heads is '0'"),
        (TINY | {"num_attention_heads": 100}, "num_attention_heads is 100, which does not divide"),
        (TINY | {"model_type": "qwen3_moe", "num_experts": 2}, "moe_intermediate_size is 'None'"),
        (TINY | {"num_hidden_layers": 1 << 20}, "num_hidden_layers is 1048576; at most 4096"),
        (TINY | {"vocab_size": 1 << 40}, "vocab_size is '1099511627776'"),
        (TINY | {"intermediate_size": [96, 96]}, "intermediate_size is"),
        (TINY | {"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no"),
        (TINY | {"model_type": "mixtral"}, "num_experts is 'None'"),
        (
            TINY | {"model_type": "qwen3_moe", "num_experts": 2, "moe_intermediate_size": 8, "mlp_only_layers": 1},
            "mlp_only_layers is '1'",
        ),
    ],
)
def test_damaged(config, words, tmp_path):
    with pytest.raises(ModelLoadError, match=words) as caught:
        read_any_base(written(tmp_path, config))
    assert len(str(caught.value)) < 600


def test_missing(tmp_path):
    with pytest.raises(ModelLoadError, match="is not there; give a GGUF model, or the config.json"):
        read_any_base(tmp_path)
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ModelLoadError, match="is no file"):
        read_any_base(tmp_path)
    with pytest.raises(ModelLoadError, match="no such model file"):
        read_any_base(tmp_path / "model.gguf")
    (tmp_path / "large.json").write_bytes(b"{}")
    with (tmp_path / "large.json").open("ab") as file:
        file.truncate(11_000_000)
    with pytest.raises(ModelLoadError, match="11000000 bytes"):
        read_any_base(tmp_path / "large.json")
