"""Adapters as people have them, and bases: names with dots, checkpoints without values, `config.json` in place of a model."""

import json
import tempfile

import numpy as np
import pytest
from helpers.hf_configs import TWO_LAYERS
from helpers.peft_folders import arrays_of, base_of, safetensors_bytes, write_folder
from helpers.torch_bytes import torch_bytes

from llamafu import Llamafu
from llamafu.adapters import AdapterReader, compare_adapters, convert_peft, export_peft, inspect_adapter, read_base
from llamafu.adapters.peft.hf_config import read_any_base
from llamafu.cli.main import main
from llamafu.errors import InvalidAdapterFileError, LoraError
from llamafu.server.storage.adapter_folder import AdapterFolder


@pytest.fixture
def config(tmp_path):
    """The config.json of the model that the folders of `test_convert` are for."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps(TWO_LAYERS))
    return tmp_path / "base" / "config.json"


# -- names ----------------------------------------------------------------------------------------------------------

NAMES = ["qwen2.5-lora", "v1.0", "a.gguf"]


@pytest.fixture
def dotted(tmp_path):
    """Folders whose names have dots, one of them even a file's suffix, and the file `v1.0` has become."""
    folders = [write_folder(tmp_path / name, arrays_of(seed=seed)) for seed, name in enumerate(NAMES)]
    convert_peft(folders[1], tmp_path / "v1.1.gguf", base=base_of(), dtype="f32")
    return [*folders, tmp_path / "v1.1.gguf"]


def test_folder_names_are_whole_names(dotted, tiny_model):
    wanted = [*NAMES, "v1.1"]
    reader = AdapterReader(read_base(tiny_model))
    assert compare_adapters([reader.read(path) for path in dotted]).names == wanted
    with Llamafu(tiny_model, n_ctx=128) as llm:
        assert [llm.load_lora_adapter(path).name for path in dotted] == wanted
    assert set(AdapterFolder(dotted[0].parent).scan()) == set(wanted)


def test_merged_files_name_their_sources_whole(dotted, tiny_model, tmp_path, capsys):
    arguments = [*map(str, dotted), "--base", str(tiny_model)]
    assert main(["merge", *arguments, "-o", str(tmp_path / "out.gguf")]) == 0
    assert inspect_adapter(tmp_path / "out.gguf").metadata["llamafu.merge.names"] == (*NAMES, "v1.1")
    capsys.readouterr()
    assert main(["compare", *arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["names"] == [*NAMES, "v1.1"]


# -- tensors without values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0,), (4, 0), (0, 64)])
@pytest.mark.parametrize("container", ["safetensors", "bin"])
def test_checkpoints_that_were_not_gathered(container, shape, tmp_path):
    """DeepSpeed's ZeRO-3 leaves each process a share of every tensor: one that saves its own state saves nothing."""
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
    arrays = arrays_of() | {name: np.zeros(shape, "f4")}
    folder = write_folder(tmp_path / "folder", arrays_of())
    (folder / "adapter_model.safetensors").unlink()
    content = (safetensors_bytes if container == "safetensors" else torch_bytes)(arrays)
    (folder / f"adapter_model.{container}").write_bytes(content)
    with pytest.raises(
        InvalidAdapterFileError, match=rf"{name}' is empty .*before its parts were gathered \(ZeRO-3\)"
    ) as caught:
        convert_peft(folder, tmp_path / "out.gguf", base=base_of())
    assert len(caught.value.problems) == 1


# -- config.json as base --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole_folder", [False, True])
def test_a_config_does_wherever_a_base_is_asked_for(whole_folder, config, tmp_path, capsys):
    folder, file = write_folder(tmp_path / "folder", arrays_of()), tmp_path / "file.gguf"
    base = config.parent if whole_folder else config
    for arguments in (
        ["convert", folder, "-o", file, "--base", base],
        ["inspect", folder, "--base", base],
        ["compare", folder, file, "--base", base],
        ["merge", folder, file, "-o", tmp_path / "merged.gguf", "--base", base],
        ["merge", folder, file, "-o", tmp_path / "merged", "--base", base],
        ["check", folder, "-m", base],
        ["check", file, "-m", base],
    ):
        assert main([str(argument) for argument in arguments]) == 0, capsys.readouterr().err
    export_peft(file, tmp_path / "back", base=base)
    assert (tmp_path / "back" / "adapter_model.safetensors").is_file()


def test_a_config_is_compared_like_a_model(config, tmp_path, capsys):
    folder = write_folder(tmp_path / "folder", arrays_of())
    config.write_text(json.dumps(TWO_LAYERS | {"intermediate_size": 95}))
    assert main(["check", str(folder), "-m", str(config)]) == 1
    assert "the base model is 64 in, 95 out" in capsys.readouterr().out


# -- names of tensors -----------------------------------------------------------------------------------------------

WRAPPINGS = {
    "of an adapter": lambda key: key.replace(".weight", ".default.weight"),
    "in DDP": lambda key: f"module.{key}",
    "without PEFT's prefix": lambda key: key.removeprefix("base_model.model."),
    "in FSDP": lambda key: key.replace("layers.0.", "layers.0._fsdp_wrapped_module._checkpoint_wrapped_module."),
}


@pytest.mark.parametrize("rename", WRAPPINGS.values(), ids=WRAPPINGS)
def test_state_dicts_that_were_saved_by_hand(rename, tmp_path):
    arrays = arrays_of()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    convert_peft(write_folder(tmp_path / "a" / "x", arrays), tmp_path / "a.gguf", base=base_of())
    renamed = {rename(key): value for key, value in arrays.items()}
    convert_peft(write_folder(tmp_path / "b" / "x", renamed), tmp_path / "b.gguf", base=base_of())
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_two_adapters_in_one_file_are_one_error(tmp_path):
    arrays = {key.replace(".weight", f".{name}.weight"): value for key, value in arrays_of().items() for name in ("one", "two")}
    with pytest.raises(InvalidAdapterFileError, match="the adapters 'one', 'two'") as caught:
        convert_peft(write_folder(tmp_path / "x", arrays), tmp_path / "x.gguf", base=base_of())
    assert len(caught.value.problems) == 1


def test_configurations_with_a_byte_order_mark(config, tmp_path):
    folder = write_folder(tmp_path / "x", arrays_of())
    plain = convert_peft(folder, tmp_path / "plain.gguf", base=config)
    for path in (config, folder / "adapter_config.json"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert convert_peft(folder, tmp_path / "marked.gguf", base=config) == plain
    assert AdapterReader(read_any_base(config)).read(folder).info.base_model == plain.base_model


@pytest.mark.parametrize(
    "given", ["model.layers.0.mlp.up_proj", "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight", "layers.0.mlp.up_proj"]
)
def test_drop_takes_the_names_that_errors_print(given, tmp_path):
    info = convert_peft(write_folder(tmp_path / "x", arrays_of()), tmp_path / "o.gguf", base=base_of(), drop=[given])
    assert info.metadata["llamafu.convert.dropped"] == ("model.layers.0.mlp.up_proj",)


def test_drop_of_a_list_in_one_says_how(tmp_path):
    folder = write_folder(tmp_path / "x", arrays_of())
    with pytest.raises(LoraError, match="'q_proj,k_proj' in its name.* one name each time"):
        convert_peft(folder, tmp_path / "o.gguf", base=base_of(), drop=["q_proj,k_proj"])


def test_dora_where_there_is_none_needs_no_weights(config, tmp_path):
    folder = write_folder(tmp_path / "x", arrays_of())
    plain = convert_peft(folder, tmp_path / "plain.gguf", base=config)
    assert convert_peft(folder, tmp_path / "dora.gguf", base=config, dora="svd").tensors == plain.tensors


def test_magnitudes_without_use_dora_say_so(tmp_path, tiny_model):
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector"
    folder = write_folder(tmp_path / "x", arrays_of() | {name: np.ones(96, "f4")})
    with pytest.raises(InvalidAdapterFileError, match="use_dora is not set; set it to true"):
        convert_peft(folder, tmp_path / "o.gguf", base=tiny_model, dora="svd")


def test_no_temporary_folder_is_needed(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "x", arrays_of())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    assert convert_peft(folder, tmp_path / "o.gguf", base=base_of()).rank == 4
