"""GGUF adapters as PEFT folders: every number comes back, under PEFT's names and in PEFT's order of rows."""

import json

import numpy as np
import pytest
from helpers.merge_cases import dense, make, summed
from helpers.model_folders import KV_HEADS, MODELS, arrays_of, base_of, changes
from helpers.peft_folders import write_folder

from llamafu.adapters import convert_peft, export_peft, inspect_adapter, merge_adapters
from llamafu.adapters.peft.architectures import interleave_heads, separate_halves
from llamafu.adapters.peft.safetensors import read_safetensors
from llamafu.cli.main import main
from llamafu.errors import LoraIncompatibleError, ModelLoadError

DENSE = [kind for kind in MODELS if kind not in ("mixtral", "qwen3_moe")]
EXTRA = {  # outside the layers: PEFT's name, and the shapes of both factors
    "base_model.model.lm_head.lora_A.weight": (4, 64),
    "base_model.model.lm_head.lora_B.weight": (317, 4),
    "base_model.model.model.embed_tokens.lora_embedding_A": (4, 317),
    "base_model.model.model.embed_tokens.lora_embedding_B": (64, 4),
}


def weights_in(folder):
    return read_safetensors((folder / "adapter_model.safetensors").read_bytes(), name="weights")


@pytest.mark.parametrize("kind", DENSE)
def test_there_and_back(kind, tmp_path):
    """The very factors of the folder that a file was made of, embeddings and the output matrix too where they can be."""
    arrays = arrays_of(kind)
    if kind not in ("gemma2", "gemma3_text"):
        random = np.random.default_rng(5)
        arrays |= {name: random.standard_normal(shape).astype("f4") for name, shape in EXTRA.items()}
    convert_peft(write_folder(tmp_path / "folder", arrays), tmp_path / "file.gguf", base=base_of(kind), dtype="f32")
    info = export_peft(tmp_path / "file.gguf", tmp_path / "back", base=base_of(kind))
    assert info == inspect_adapter(tmp_path / "file.gguf")
    found = weights_in(tmp_path / "back")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
        assert found[name].dtype == np.float32
    config = json.loads((tmp_path / "back" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (4, 8.0, {})
    assert {f"base_model.model.{module}" for module in config["target_modules"]} == {name.split(".lora_")[0] for name in arrays}


def test_ranks_of_their_own_and_no_alpha(tmp_path):
    """Alpha 0 means the strength 1 in GGUF, whatever the rank."""

    def rank(module):
        return 2 if module.endswith("q_proj") else 6 if "layers.1.mlp" in module else 4

    for name, alpha in (("some", 8), ("none", 0)):
        patterns = {"q_proj": 2, r"layers\.1\.mlp\..*": 6}
        folder = write_folder(tmp_path / name, arrays_of("llama", rank), rank_pattern=patterns)
        convert_peft(folder, tmp_path / f"{name}.gguf", base=base_of("llama"), dtype="f32")
        if not alpha:
            without_alpha(tmp_path / f"{name}.gguf")
        export_peft(tmp_path / f"{name}.gguf", tmp_path / f"{name}-back", base=base_of("llama"))
        convert_peft(tmp_path / f"{name}-back", tmp_path / f"{name}-back.gguf", base=base_of("llama"), dtype="f32")
        before, after = changes(tmp_path / f"{name}.gguf"), changes(tmp_path / f"{name}-back.gguf")
        assert before.keys() == after.keys()
        for tensor, change in before.items():
            np.testing.assert_allclose(after[tensor], change, atol=1e-5 * np.abs(change).max())


def without_alpha(path):
    content = path.read_bytes()
    key = b"adapter.lora.alpha" + (6).to_bytes(4, "little")
    assert content.count(key) == 1
    place = content.index(key) + len(key)
    path.write_bytes(content[:place] + bytes(4) + content[place + 4 :])
    assert inspect_adapter(path).alpha == 0


def test_rows_are_separated_by_index():
    """Even rows of a head, then odd ones."""
    rows = np.arange(12.0)[:, None]
    assert separate_halves(rows, 2).ravel().tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
    np.testing.assert_array_equal(separate_halves(interleave_heads(rows, 3), 3), rows)


def test_f16_and_tokens_and_the_origin_stay(tmp_path):
    arrays = {name: array.astype("f2") for name, array in arrays_of("qwen2").items()}
    for name in ("one", "two"):
        folder = write_folder(tmp_path / name, arrays, alora_invocation_tokens=[5, 6] if name == "two" else None)
        convert_peft(folder, tmp_path / f"{name}.gguf", base=base_of("qwen2"))
    export_peft(tmp_path / "two.gguf", tmp_path / "back")
    assert json.loads((tmp_path / "back" / "adapter_config.json").read_text())["alora_invocation_tokens"] == [5, 6]
    assert {array.dtype for array in weights_in(tmp_path / "back").values()} == {np.dtype("f2")}
    merge_adapters({tmp_path / "one.gguf": 0.5}, tmp_path / "sum", method="cat")
    content = (tmp_path / "sum" / "adapter_model.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    assert header["format"] == "pt"
    assert (json.loads(header["llamafu.merge.names"]), json.loads(header["llamafu.merge.weights"])) == (["one"], [0.5])


def test_what_has_no_form_in_peft(tmp_path):
    """One clear error each, and no folder."""
    experts = write_folder(tmp_path / "experts", arrays_of("mixtral"))
    convert_peft(experts, tmp_path / "experts.gguf", base=base_of("mixtral"))
    convert_peft(write_folder(tmp_path / "llama", arrays_of("llama")), tmp_path / "llama.gguf", base=base_of("llama"))
    make(tmp_path / "mamba.gguf", seed=1, architecture="mamba")
    before = sorted(tmp_path.iterdir())
    headless, small, odd, none = (base_of("llama") for _ in range(4))
    headless.metadata.clear()
    odd.metadata["llama.attention.head_count"] = 7
    none.metadata["llama.attention.head_count_kv"] = 0
    small.tensors["blk.1.ffn_up.weight"] = (64, 97)
    for name, base, words in (
        ("experts", base_of("mixtral"), r"blk\.0\.ffn_gate_exps\.weight has no form in a PEFT folder"),
        ("llama", None, r"blk\.0\.attn_q\.weight: its rows .* give the GGUF model that it is for as base"),
        ("llama", headless, "does not say how many heads"),
        ("llama", odd, r"blk\.0\.attn_q\.weight: 64 output rows do not split into 7 heads"),
        ("llama", none, r"blk\.0\.attn_k\.weight: 32 output rows do not split into 0 heads"),
        ("llama", small, r"llama\.gguf does not fit base\.gguf: blk\.1\.ffn_up"),
        ("mamba", None, "'mamba' cannot be written as PEFT; the architectures are llama, "),
    ):
        with pytest.raises(LoraIncompatibleError, match=words):
            export_peft(tmp_path / f"{name}.gguf", tmp_path / "out", base=base)
        assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(ModelLoadError, match=r"absent\.gguf"):
        export_peft(tmp_path / "llama.gguf", tmp_path / "out", base=tmp_path / "absent.gguf")
    with pytest.raises(FileExistsError, match="llama exists, and a folder is not replaced"):
        export_peft(tmp_path / "llama.gguf", tmp_path / "llama", base=base_of("llama"))
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        export_peft(tmp_path / "llama.gguf", tmp_path / "nowhere" / "out", base=base_of("llama"))
    assert sorted(tmp_path.iterdir()) == before


def test_a_full_disk_leaves_no_folder(tmp_path, monkeypatch):
    convert_peft(write_folder(tmp_path / "folder", arrays_of("qwen2")), tmp_path / "file.gguf", base=base_of("qwen2"))
    before = sorted(tmp_path.iterdir())

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        export_peft(tmp_path / "file.gguf", tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


# -- merging --------------------------------------------------------------------------------------------------------


def test_merging_reads_and_writes_both_forms(tiny_model, tmp_path, capsys):
    """A folder and a file of a llama model, to a folder and to a file of the same changes."""
    folder = write_folder(tmp_path / "folder", arrays_of("llama"), base_model_name_or_path="some/tiny-model")
    convert_peft(folder, tmp_path / "other.gguf", base=tiny_model, dtype="f32")
    merge = ["merge", f"{folder}=0.7", f"{tmp_path / 'other.gguf'}=-0.2", "--method", "cat", "--base", str(tiny_model)]
    assert main([*merge, "-o", str(tmp_path / "sum.gguf")]) == 0
    assert main([*merge, "-o", str(tmp_path / "sum")]) == 0
    assert main([*merge, "-o", str(tmp_path / "odd.gguf"), "--format", "peft"]) == 0
    assert main([*merge, "-o", str(tmp_path / "odd"), "--format", "gguf"]) == 0
    assert (tmp_path / "odd").read_bytes() == (tmp_path / "sum.gguf").read_bytes()
    assert weights_in(tmp_path / "odd.gguf").keys() == weights_in(tmp_path / "sum").keys()
    lines = capsys.readouterr().out.splitlines()
    assert len({line.split(": ")[1] for line in lines}) == 1
    convert_peft(tmp_path / "sum", tmp_path / "back.gguf", base=tiny_model, dtype="f32")
    wanted = summed({tmp_path / "other.gguf": 0.5})
    for path in ("sum.gguf", "back.gguf"):
        found = dense(tmp_path / path)
        assert found.keys() == wanted.keys()
        for name, change in wanted.items():
            np.testing.assert_allclose(found[name], change, atol=1e-5)
    config = json.loads((tmp_path / "sum" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "some/tiny-model"


def test_merging_needs_the_base_where_it_does(tiny_model, tiny_adapter_a, tmp_path, capsys):
    folder = write_folder(tmp_path / "folder", arrays_of("llama"))
    for arguments, words in (
        ([str(folder), "-o", str(tmp_path / "out.gguf")], "needs its base model"),
        ([str(tiny_adapter_a), "-o", str(tmp_path / "out")], "give the GGUF model that it is for as base"),
        ([str(tiny_adapter_a), "-o", str(folder), "--base", str(tiny_model)], "exists, and a folder is not replaced"),
        ([str(tiny_adapter_a), "-o", str(tmp_path / "out"), "--base", str(tmp_path / "no.gguf")], "no such model file"),
    ):
        assert main(["merge", *arguments]) == 1
        assert words in capsys.readouterr().err
    assert main(["merge", str(folder), "-o", str(folder), "--base", str(tiny_model)]) == 2
    assert "is one of the adapters that are read" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == [folder]


def test_what_cannot_be_written_is_known_before_the_work(tiny_adapter_a, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("llamafu.adapters.merge.tensor_merger.TensorMerger.merge", lambda *_: pytest.fail("it combined"))
    (tmp_path / "old").mkdir()
    for output, words in (("old", "a folder is not replaced"), ("new", "as base"), ("no/new.gguf", "there is no folder")):
        assert main(["merge", str(tiny_adapter_a), "-o", str(tmp_path / output)]) == 1
        assert words in capsys.readouterr().err


def test_long_work_shows_how_far_it_is(tiny_adapter_a, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("llamafu.cli.merge._QUIET", -1)
    assert main(["merge", str(tiny_adapter_a), "-o", str(tmp_path / "out.gguf")]) == 0
    assert "100% combined blk.1.ffn_down.weight" in capsys.readouterr().err


def test_sources_must_fit_the_base(tiny_model, tmp_path, capsys):
    arrays = arrays_of("llama")
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"
    arrays[name] = arrays[name][:-KV_HEADS]
    folder = write_folder(tmp_path / "folder", arrays)
    assert main(["merge", str(folder), "-o", str(tmp_path / "out.gguf"), "--base", str(tiny_model)]) == 1
    assert "folder does not fit tiny.gguf: blk.0.ffn_up" in capsys.readouterr().err
    assert not (tmp_path / "out.gguf").exists()
