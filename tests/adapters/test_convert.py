"""PEFT folders: the changes they make are the ones that PEFT would make, and what cannot be said is refused by name.

UPSTREAM holds `tensor_digest` of what the converter of llama.cpp build 11434 makes of `write_folder(..., arrays_of())`:

    python convert_lora_to_gguf.py --base BASE --outtype f16 --outfile OUT.gguf FOLDER

BASE is a folder with a config.json of the sizes below ("hidden_size": 64, "num_hidden_layers": 2, "head_dim": 16, ...)
and "architectures" MistralForCausalLM, Qwen2ForCausalLM or Qwen3ForCausalLM. The last two change names only.
"""

import contextlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
from helpers.damage import damages, mutate
from helpers.digests import tensor_digest
from helpers.peft_folders import (
    HIDDEN,
    WIDE,
    arrays_of,
    base_of,
    changes,
    check_changes,
    safetensors_bytes,
    tiny_factors,
    with_tensor,
    write_folder,
)
from hypothesis import given, settings

from llamafu import Llamafu
from llamafu.adapters import BaseModel, convert_peft, inspect_adapter, read_base
from llamafu.adapters.peft.safetensors import read_safetensors
from llamafu.adapters.peft.safetensors import safetensors_bytes as written
from llamafu.cli.main import main
from llamafu.errors import InvalidAdapterFileError, LoraError, LoraIncompatibleError, LoraLoadError
from llamafu.examples.model import example_model

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "adapters"
UPSTREAM = {
    "llama": "417b423fce9d07bbc75eb3ad18c2be4ca9d233d94430de7de97ec0488393dd60",
    "qwen2": "a1d9e3ee02dc157c234ff0409aa662f4bc709c0602a5464fa2bcdf5dd13c3de4",
    "qwen3": "a1d9e3ee02dc157c234ff0409aa662f4bc709c0602a5464fa2bcdf5dd13c3de4",
}


@pytest.mark.parametrize("name", ["pirate", "shout"])
def test_examples_are_upstreams_bytes(name, tmp_path):
    shapes = {tensor.name: tensor.shape[::-1] for tensor in inspect_adapter(EXAMPLES / f"{name}.gguf").tensors}
    heads = {"llama.attention.head_count": 9, "llama.attention.head_count_kv": 3}
    info = convert_peft(EXAMPLES / name, tmp_path / "out.gguf", base=BaseModel(Path("b.gguf"), "b", "llama", shapes, heads))
    assert (tmp_path / "out.gguf").read_bytes() == (EXAMPLES / f"{name}.gguf").read_bytes()
    assert info == inspect_adapter(EXAMPLES / f"{name}.gguf")


@pytest.mark.parametrize("architecture", UPSTREAM)
def test_tensors_are_upstreams(architecture, tmp_path):
    folder = write_folder(tmp_path / architecture, arrays_of())
    convert_peft(folder, tmp_path / "out.gguf", base=base_of(architecture))
    assert tensor_digest(tmp_path / "out.gguf") == UPSTREAM[architecture]


@pytest.mark.parametrize("architecture", UPSTREAM)
@pytest.mark.parametrize("fan_in_fan_out", [False, True])
def test_plain(architecture, fan_in_fan_out, tmp_path):
    arrays = arrays_of()
    folder = write_folder(tmp_path / "plain", arrays, fan_in_fan_out=fan_in_fan_out)
    info = convert_peft(folder, tmp_path / "out.gguf", base=base_of(architecture), dtype="f32")
    assert (info.architecture, info.alpha, info.rank, info.base_model) == (architecture, 8.0, 4, "Tiny Model")
    check_changes(tmp_path / "out.gguf", arrays, lambda _: 2.0, permuted=architecture == "llama")


def test_rslora(tmp_path):
    arrays = arrays_of()
    folder = write_folder(tmp_path / "rs", arrays, use_rslora=True, lora_alpha=7)
    info = convert_peft(folder, tmp_path / "out.gguf", base=base_of(), dtype="f32")
    assert info.alpha == 14.0
    check_changes(tmp_path / "out.gguf", arrays, lambda _: 7 / math.sqrt(4))


@pytest.mark.parametrize("rslora", [False, True])
def test_patterns(rslora, tmp_path):
    """The first pattern that matches the end of a name counts; whole parts only, so `j` is no pattern for `q_proj`."""

    def rank(module):
        return 2 if module.endswith("q_proj") else 6 if "layers.1.mlp" in module else 4

    def alpha(module):
        return 3 if module.endswith("v_proj") else 5.5 if module.endswith("layers.0.mlp.up_proj") else 8

    arrays = arrays_of(rank)
    folder = write_folder(
        tmp_path / "patterns",
        arrays,
        use_rslora=rslora,
        rank_pattern={"roj": 9, "q_proj": 2, r"^model\.layers\.1\.mlp\..*": 6, "self_attn.q_proj": 8},
        alpha_pattern={"v_proj": 3, "layers.0.mlp.up_proj": 5.5},
    )
    info = convert_peft(folder, tmp_path / "out.gguf", base=base_of(), dtype="f32")
    assert not info.uniform
    check_changes(
        tmp_path / "out.gguf",
        arrays,
        lambda module: alpha(module) / (math.sqrt(rank(module)) if rslora else rank(module)),
    )


def test_bf16_and_f16_sources(tmp_path):
    whole = arrays_of()
    halves = {name: array.astype("f2") for name, array in whole.items()}
    brain = {name: (array.view("u4") >> 16).astype("u2") for name, array in whole.items()}
    rounded = {name: (array.astype("u4") << 16).view("f4") for name, array in brain.items()}
    for name, arrays, values in (("f16", halves, halves), ("bf16", brain, rounded)):
        folder = write_folder(tmp_path / name, arrays)
        convert_peft(folder, tmp_path / f"{name}.gguf", base=base_of(), dtype="f32")
        check_changes(tmp_path / f"{name}.gguf", values, lambda _: 2.0)


def test_invocation_tokens(tmp_path):
    folder = write_folder(tmp_path / "alora", arrays_of(), alora_invocation_tokens=[5, 6])
    base = base_of()
    base.tensors["token_embd.weight"] = (HIDDEN, 10)
    assert convert_peft(folder, tmp_path / "out.gguf", base=base).invocation_tokens == (5, 6)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True),
        ("bias", "some"),
        ("use_rslora", "false"),
        ("init_lora_weights", "something new"),
        ("some_new_field", 3),
        ("lora_bias", True),
        ("modules_to_save", ["lm_head"]),
        ("layer_replication", [[0, 1]]),
        ("trainable_token_indices", [1]),
        ("target_parameters", "experts"),
        ("use_qalora", True),
        ("arrow_config", {"top_k": 2}),
        ("init_lora_weights", "pissa_niter_16"),
        ("invocation_string", "<go>"),
        ("peft_type", "LOHA"),
        ("r", 0),
        ("lora_alpha", 0),
        ("lora_alpha", float("nan")),
        ("rank_pattern", {"q_proj": 0}),
        ("alpha_pattern", {"(": 4}),
        ("alpha_pattern", {"(?i)q_proj": 4}),
        ("alora_invocation_tokens", [-1]),
        ("base_model_name_or_path", 3),
        ("base_model_name_or_path", "\ud800"),
    ],
)
def test_configurations_refused_by_name(key, value, tmp_path):
    folder = write_folder(tmp_path / "folder", arrays_of(), **{key: value})
    with pytest.raises(InvalidAdapterFileError, match=key) as caught:
        convert_peft(folder, tmp_path / "out.gguf", base=base_of())
    assert len(caught.value.problems) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, "no tensors"),
        (with_tensor("layers.0.self_attn.q_proj.lora_magnitude_vector", [1]), "lora_magnitude_vector.* no LoRA factor"),
        (with_tensor("embed_tokens.lora_embedding_A", [[1]]), "embed_tokens.*lora_embedding_A has no partner"),
        (with_tensor("embed_tokens.lora_embedding_A", [[1]]) | with_tensor("embed_tokens.lora_B.weight", [[1]]), "are no pair"),
        (with_tensor("layers.0.mlp.up_proj.base_layer.weight", [[1]]), "base_layer.* no LoRA factor"),
        (
            with_tensor("layers.0.self_attn.z_proj.lora_A.weight", [[1]]),
            "z_proj.*'llama' models have no such linear layer: theirs are self_attn.q_proj",
        ),
        (with_tensor("layers.3.self_attn.q_proj.lora_A.weight", [[1]]), "layers.3.*lora_A has no partner"),
        (with_tensor("layers.0.self_attn.q_proj.lora_A.weight", np.ones((3, HIDDEN))), r"A is \[3, 64\].*must be \[4, in\]"),
        (with_tensor("layers.0.self_attn.q_proj.lora_B.weight", np.ones((63, 4))), "63 output rows do not split into 4 heads"),
        (with_tensor("layers.0.mlp.up_proj.lora_B.weight", np.full((WIDE, 4), np.nan)), "up_proj.* NaN"),
    ],
)
def test_tensors_refused_by_name(arrays, words, tmp_path):
    folder = write_folder(tmp_path / "folder", arrays)
    with pytest.raises(InvalidAdapterFileError, match=words):
        convert_peft(folder, tmp_path / "out.gguf", base=base_of())
    assert not (tmp_path / "out.gguf").exists()


def test_what_f16_cannot_hold_f32_can(tmp_path, tiny_model):
    """F32 is taken where no type was named, so every reader can; F16 by name is refused with the mend."""
    folder = write_folder(tmp_path / "big", with_tensor("layers.0.mlp.up_proj.lora_B.weight", np.full((WIDE, 4), 7e4, "f4")))
    with pytest.raises(InvalidAdapterFileError, match="ffn_up.* beyond 65504; choose the dtype 'f32'"):
        convert_peft(folder, tmp_path / "out.gguf", base=base_of(), dtype="f16")
    assert not (tmp_path / "out.gguf").exists()
    assert convert_peft(folder, tmp_path / "out.gguf", base=base_of()).tensors[0].dtype == "F32"
    assert changes(tmp_path / "out.gguf")["blk.0.ffn_up.weight"].max() > 1e5
    for verb in ("inspect", "compare"):
        again = [str(folder)] if verb == "compare" else []
        assert main([verb, str(folder), *again, "--base", str(tiny_model)]) == 0
    with Llamafu(tiny_model, n_ctx=64) as llm:
        assert llm.load_lora_adapter(folder).info.tensors[0].dtype == "F32"


@pytest.mark.parametrize(("size", "lost"), [(1e-7, 0.19), (1e-8, 0.998)])
def test_what_f16_loses_is_measured(size, lost, tmp_path, caplog, capsys, tiny_model):
    """Values below F16's smallest step: F32 is taken, or the loss is told where F16 was named."""
    arrays = tiny_factors(size)
    folder = write_folder(tmp_path / "folder", arrays)
    out = tmp_path / "out.gguf"
    info = convert_peft(folder, out, base=base_of())
    assert {tensor.dtype for tensor in info.tensors} == {"F32"}
    found = changes(out)
    check_changes(out, arrays, lambda _: 2.0)
    with caplog.at_level("INFO", "llamafu.adapters"):
        half = convert_peft(folder, out, base=base_of(), dtype="f16")
    assert {tensor.dtype for tensor in half.tensors} == {"F16"}
    true = max(np.linalg.norm(found[name] - was) / np.linalg.norm(found[name]) for name, was in changes(out).items())
    assert half.metadata["llamafu.convert.lost"] == pytest.approx(true, rel=1e-3)
    assert true == pytest.approx(lost, rel=0.25)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "choose the dtype 'f32'" in record.getMessage()
    words = ["convert", str(folder), "-o", str(out), "--base", str(tiny_model), "--force"]
    assert main([*words, "--dtype", "f16"]) == 0
    assert "--dtype f32 keeps it" in capsys.readouterr().out
    assert main(words) == 0
    assert "F16 would lose" in capsys.readouterr().out
    assert main(["convert", str(EXAMPLES / "pirate"), "-o", str(out), "--base", str(example_model()), "--force"]) == 0
    assert "F16: the largest loss of a tensor's change is 0" in capsys.readouterr().out


def test_other_bases_are_refused(tmp_path):
    folder = write_folder(tmp_path / "folder", arrays_of())
    with pytest.raises(LoraIncompatibleError, match=r"'mamba' cannot be converted.*llama, qwen2, qwen3, .*granite"):
        convert_peft(folder, tmp_path / "out.gguf", base=base_of("mamba"))
    base = base_of()
    base.tensors["blk.1.ffn_up.weight"] = (HIDDEN, WIDE + 1)
    with pytest.raises(LoraIncompatibleError, match=r"blk\.1\.ffn_up"):
        convert_peft(folder, tmp_path / "out.gguf", base=base)
    base.metadata.clear()
    with pytest.raises(InvalidAdapterFileError, match=r"llama\.attention\.head_count"):
        convert_peft(folder, tmp_path / "out.gguf", base=base)
    with pytest.raises(LoraError, match="give its GGUF file or its config.json as base"):
        convert_peft(folder, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_pickles_and_empty_folders_are_refused(tmp_path):
    folder = write_folder(tmp_path / "folder", arrays_of())
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(InvalidAdapterFileError, match="pickle"):
        convert_peft(folder, tmp_path / "out.gguf", base=base_of())
    (folder / "adapter_model.bin").unlink()
    config = folder / "adapter_config.json"
    lone = tmp_path / "lone"
    lone.mkdir()
    for path, why in (
        (folder, "there is no adapter_model.safetensors in it"),
        (lone, "there is no adapter_config.json in it"),
        (config, "it is a file, and no folder"),
        (tmp_path / "gone", "there is no such folder"),
    ):
        with pytest.raises(LoraLoadError, match=f"{why}; a PEFT adapter needs adapter_config.json and adapter_model.safetens"):
            convert_peft(path, tmp_path / "out.gguf", base=base_of())


def test_sources_are_never_overwritten(tmp_path, tiny_model):
    folder = write_folder(tmp_path / "folder", arrays_of())
    before = sorted(path.name for path in folder.iterdir())
    for output in (folder, folder / "out.gguf", folder / ".." / "folder" / "adapter_config.json", tiny_model):
        with pytest.raises(LoraError, match="choose another place"):
            convert_peft(folder, output, base=read_base(tiny_model))
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_failed_write_leaves_nothing(tmp_path):
    folder = write_folder(tmp_path / "folder", arrays_of())
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        convert_peft(folder, tmp_path / "nowhere" / "out.gguf", base=base_of())
    (tmp_path / "out.gguf").mkdir()
    with pytest.raises(OSError, match="out.gguf"):
        convert_peft(folder, tmp_path / "out.gguf", base=base_of())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "out.gguf"]


# -- the container ------------------------------------------------------------------------------------------------

SOUND = safetensors_bytes({"x": np.arange(6, dtype="f4").reshape(2, 3), "y": np.ones(2, "f2")})


def with_header(header, data=bytes(8)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_written_safetensors_are_sound_and_aligned():
    arrays = {"half": np.ones(3, "f2"), "whole": np.arange(6, dtype="f4").reshape(2, 3)}
    content = written(arrays, {"format": "pt"})
    found = read_safetensors(content, name="f")
    assert {name: (array.dtype, array.tolist()) for name, array in found.items()} == {
        name: (array.dtype, array.tolist()) for name, array in arrays.items()
    }
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert header["__metadata__"] == {"format": "pt"}
    assert (length % 8, header["whole"]["data_offsets"][0] % 4) == (0, 0)


def test_sound_safetensors():
    arrays = read_safetensors(SOUND, name="f")
    assert {name: array.tolist() for name, array in arrays.items()} == {"x": [[0, 1, 2], [3, 4, 5]], "y": [1, 1]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "truncated"),
        (b"\xff" * 20, "truncated"),
        (SOUND[:40], "truncated"),
        (SOUND[:-1], "'y' ends at byte 28"),
        (with_header(b"{"), "no sound JSON"),
        (with_header(b"\xff\xff"), "no sound JSON"),
        (with_header(b"[" * 100_000), "no sound JSON"),
        (with_header([1]), "no JSON object"),
        (with_header(b'{"x": 1, "x": 2}'), "twice"),
        (with_header({"x": 3}), "'x' is of type None"),
        (with_header({"x": entry("I64")}), "'x' is of type 'I64'"),
        (with_header({"x": entry(shape=[-2])}), "shape"),
        (with_header({"x": entry(shape=[True, 2])}), "shape"),
        (with_header({"x": entry(shape=[0, 1 << 70], offsets=[0, 0])}), "shape"),
        (with_header({"x": entry(shape=[1] * 100)}), "shape"),
        (with_header({"x": entry(offsets=[8, 0])}), "data_offsets"),
        (with_header({"x": entry(offsets=[0, 4])}), "needs 8 bytes"),
        (with_header({"x": entry(shape=[1 << 70])}), "needs"),
        (with_header({"x": entry(offsets=[8, 16])}), "ends at byte 16"),
        (with_header({"x": entry(), "y": entry()}), "overlap"),
    ],
)
def test_damaged_safetensors(content, words):
    with pytest.raises(InvalidAdapterFileError, match=words):
        read_safetensors(content, name="f")


@settings(max_examples=60, deadline=None)
@given(damages)
def test_any_damage_is_one_error_or_none(steps):
    content = mutate(SOUND, steps)
    with contextlib.suppress(InvalidAdapterFileError):
        arrays = read_safetensors(content, name="f")
        assert sum(array.nbytes for array in arrays.values()) <= 2 * len(content)  # BF16 doubles


# -- loading and the terminal -------------------------------------------------------------------------------------


def test_a_folder_loads_like_its_file(tmp_path, tiny_model):
    """The same object by content, checked before it is loaded, and it changes what the model says."""
    folder = write_folder(tmp_path / "v1.5", arrays_of())
    convert_peft(folder, tmp_path / "file.gguf", base=tiny_model)
    with pytest.raises(InvalidAdapterFileError, match="needs its base model"):
        inspect_adapter(folder)
    wrong = write_folder(tmp_path / "wrong", arrays_of(), use_dora=True)
    with Llamafu(tiny_model, n_ctx=128) as llm:
        adapter = llm.load_lora_adapter(folder)
        assert adapter.name == "v1.5"
        assert llm.load_lora_adapter(tmp_path / "file.gguf") is adapter
        assert llm.validate_lora_compatibility(folder)
        report = llm.validate_lora_compatibility(wrong)
        assert not report
        assert "use_dora" in report.problems[0]
        options = {"temperature": 0, "max_tokens": 8}
        assert llm.complete("hello", **options).tokens != llm.complete("hello", lora={"v1.5": 1}, **options).tokens


def test_terminal(tmp_path, tiny_model, capsys):
    folder = write_folder(tmp_path / "folder", arrays_of())
    line = ["convert", str(folder), "-o", str(tmp_path / "out.gguf"), "--base", str(tiny_model)]
    assert main(line) == 0
    assert "rank 4, 14 tensors" in capsys.readouterr().out
    before = (tmp_path / "out.gguf").read_bytes()
    assert main([*line, "--dtype", "f32"]) == 1
    assert f"{tmp_path / 'out.gguf'} exists and is not replaced" in capsys.readouterr().err
    assert (tmp_path / "out.gguf").read_bytes() == before
    assert main([*line, "--dtype", "f32", "--force"]) == 0
    assert inspect_adapter(tmp_path / "out.gguf").tensors[0].dtype == "F32"
    capsys.readouterr()
    assert main(["convert", str(folder), "-o", str(folder / "out.gguf"), "--base", str(tiny_model)]) == 1
    assert "choose another place" in capsys.readouterr().err


def test_a_strength_that_f16_cannot_make_up_for_is_refused():
    """B times a tiny ratio of alphas would be zeros in F16."""
    from llamafu.adapters.peft.factor_mapping import FactorPair
    from llamafu.adapters.peft.factor_storage import gguf_tensors

    a, b = np.ones((2, 4), np.float32), np.full((4, 2), 1e-3, np.float32)
    pairs = [FactorPair("blk.0.attn_q.weight", a, b, 16.0), FactorPair("blk.1.attn_q.weight", a, b, 1e-5)]
    with pytest.raises(InvalidAdapterFileError, match=r"blk.1.attn_q.weight.lora_b has alpha 1e-05 .* dtype 'f32'"):
        gguf_tensors(pairs, 16.0, "<f2", "adapter")
    kept = dict(gguf_tensors(pairs, 16.0, "<f4", "adapter")[0])["blk.1.attn_q.weight.lora_b"]
    np.testing.assert_allclose(kept, b * 1e-5 / 16, rtol=1e-6)
