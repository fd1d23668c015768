"""PEFT folders from anywhere: damaged and hostile ones are one error and leave nothing, sound ones are converted once."""

import contextlib
import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers.damage import damages, mutate
from helpers.peft_folders import arrays_of, base_of, safetensors_bytes, with_tensor, write_folder
from helpers.torch_bytes import torch_bytes
from hypothesis import HealthCheck, given, settings

from llamafu import Llamafu
from llamafu.adapters import AdapterReader, convert_peft, inspect_adapter
from llamafu.adapters.peft import convert
from llamafu.adapters.peft.config import parse_config
from llamafu.adapters.peft.config_fields import HARMLESS, READ, REFUSED
from llamafu.adapters.peft.module_factors import FOREIGN
from llamafu.cli.main import main
from llamafu.errors import InvalidAdapterFileError, LlamafuError, LoraError, LoraLoadError

CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}


def as_bin(folder):
    """Give the folder adapter_model.bin in place of its safetensors file."""
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(torch_bytes(arrays_of()))
    return folder


# -- both containers say the same ---------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_a_pickle_converts_to_the_same_bytes(architecture, tmp_path):
    outputs = []
    for kind, change in (("safe", lambda folder: folder), ("pickled", as_bin)):
        (tmp_path / kind).mkdir()
        folder = change(write_folder(tmp_path / kind / "folder", dict(sorted(arrays_of().items()))))
        convert_peft(folder, tmp_path / f"{kind}.gguf", base=base_of(architecture))
        outputs.append((tmp_path / f"{kind}.gguf").read_bytes())
    assert outputs[0] == outputs[1]


def test_safetensors_come_first_as_in_peft(tmp_path):
    folder = write_folder(tmp_path / "folder", arrays_of())
    (folder / "adapter_model.bin").write_bytes(b"never looked at")
    assert convert_peft(folder, tmp_path / "out.gguf", base=base_of()).rank == 4


# -- the configuration --------------------------------------------------------------------------------------------


def parse(**changes):
    return parse_config(json.dumps({**CONFIG, **changes}).encode(), name="f")


def test_every_field_is_in_one_group():
    assert not READ & HARMLESS
    assert not (READ | HARMLESS) & set(REFUSED)


@pytest.mark.parametrize("key", REFUSED)
def test_refused_fields(key):
    for off in (None, False, [], {}):
        parse(**{key: off})
    for on in (True, {"a": 1}, ["lm_head"]):
        with pytest.raises(InvalidAdapterFileError, match=rf"{key} is .*A GGUF adapter cannot express it"):
            parse(**{key: on})


@pytest.mark.parametrize("key", sorted(HARMLESS - {"base_model_name_or_path"}))
def test_harmless_fields_change_nothing(key, tmp_path):
    outputs = []
    for index, changes in enumerate(({}, {key: {"any": [1, "x"]}}, {key: True})):
        (tmp_path / str(index)).mkdir()
        convert_peft(
            write_folder(tmp_path / str(index) / "folder", arrays_of(layers=1), **changes), tmp_path / "o.gguf", base=base_of()
        )
        outputs.append((tmp_path / "o.gguf").read_bytes())
    assert outputs[0] == outputs[1] == outputs[2]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'; only 'LORA'"),
        ({"peft_type": None}, "peft_type is None"),
        ({"peft_type": ["LORA"]}, "peft_type is"),
        ({"r": 0}, "r is 0; it must be a whole number"),
        ({"r": -4}, "r is -4"),
        ({"r": True}, "r is True"),
        ({"r": 4.0}, "r is 4.0"),
        ({"r": "4"}, "r is '4'"),
        ({"r": 10**300}, "r is 1000"),
        ({"lora_alpha": -8}, "lora_alpha is -8"),
        ({"lora_alpha": 0}, "lora_alpha is 0"),
        ({"lora_alpha": 1e300}, "lora_alpha is 1e"),
        ({"lora_alpha": 10**400}, "lora_alpha is 1000"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"lora_alpha": float("inf")}, "lora_alpha is inf"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"use_rslora": "no"}, "use_rslora is 'no'; it must be true or false"),
        ({"rank_pattern": []}, None),
        ({"rank_pattern": [1]}, "rank_pattern is"),
        ({"rank_pattern": {"q": "4"}}, "rank_pattern is"),
        ({"rank_pattern": {"(a+)+(?=b)": 4}}, "rank_pattern: .*no pattern of names that can be used"),
        ({"alpha_pattern": {"q": float("nan")}}, "alpha_pattern is"),
        ({"alpha_pattern": {"q": -1}}, "alpha_pattern is"),
        ({"alpha_pattern": {"(": 1}}, "alpha_pattern: '\\('"),
        ({"rank_pattern": {f"layers.{i}.q_proj": 4 for i in range(10_000)}}, None),
        ({"rank_pattern": {f"(a{{9}}){{9}}{i}": 4 for i in range(10_000)}}, "rank_pattern has 10000 patterns"),
        ({"bias": 3}, "bias is 3; it must be 'none', 'all' or 'lora_only'"),
        ({"bias": ["none"]}, "bias is"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights is 'pissa_niter_16', which changed the base"),
        ({"init_lora_weights": "lora_ga"}, "changed the base"),
        ({"init_lora_weights": 3}, "init_lora_weights is 3, which is not known"),
        ({"init_lora_weights": {}}, "init_lora_weights is {}, which is not known"),
        ({"init_lora_weights": "eva"}, None),
        ({"init_lora_weights": False}, None),
        ({"alora_invocation_tokens": "abc"}, "alora_invocation_tokens is 'abc'"),
        ({"alora_invocation_tokens": [1.5]}, "alora_invocation_tokens is"),
        ({"alora_invocation_tokens": [1 << 32]}, "alora_invocation_tokens is"),
        ({"invocation_string": "hey"}, "invocation_string is given without"),
        ({"target_parameters": "x"}, "target_parameters is 'x'"),
        ({"target_parameters": [3]}, "target_parameters is"),
        ({"base_model_name_or_path": "a\nb"}, "base_model_name_or_path is"),
        ({"later_feature": 1}, "'later_feature' is 1, a field that is not known here"),
        ({"later_feature": None}, None),
        ({"use_rslora": None, "bias": None, "rank_pattern": None}, None),
    ],
)
def test_values(changes, words):
    if words is None:
        parse(**changes)
        return
    with pytest.raises(InvalidAdapterFileError, match=words) as caught:
        parse(**changes)
    assert len(caught.value.problems) == 1
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no sound JSON"),
        (b"[]", "no JSON object"),
        (b"3", "no JSON object"),
        (b"\xff\xfe{}", "no sound JSON"),
        (b"[" * 200_000, "no sound JSON"),
        (b'{"a":' * 200_000, "no sound JSON"),
        (b'{"peft_type": "LORA", "r": 4, "r": 8, "lora_alpha": 8}', "given twice"),
        (b'{"peft_type": "LORA", "r": ' + b"9" * 10_000 + b"}", "no sound JSON"),
        (json.dumps({**CONFIG, "rank_pattern": json.loads("[" * 400 + "]" * 400)}).encode(), "rank_pattern is"),
    ],
)
def test_no_configuration(content, words):
    with pytest.raises(InvalidAdapterFileError, match=words) as caught:
        parse_config(content, name="f")
    assert len(str(caught.value)) < 600


@settings(max_examples=150, deadline=None)
@given(damages)
def test_any_damage_of_the_configuration_is_one_error_or_none(steps):
    content = json.dumps({**CONFIG, "rank_pattern": {"layers.(0|1).*q": 2}, "use_rslora": True, "bias": "none"}).encode()
    with contextlib.suppress(InvalidAdapterFileError):
        parse_config(mutate(content, steps), name="f")


# -- the weights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", FOREIGN)
def test_foreign_tensors_say_what_they_are(ending, tmp_path):
    name = "layers.0.input_layernorm.weight" if ending == "norm.weight" else f"layers.0.self_attn.q_proj{ending}"
    name = ending if ending in ("embed_tokens.weight", "lm_head.weight") else name
    folder = write_folder(tmp_path / "folder", with_tensor(name, [[1]]), bias="all")
    with pytest.raises(InvalidAdapterFileError, match=r"is no LoRA factor \(.*\): ") as caught:
        convert_peft(folder, tmp_path / "out.gguf", base=base_of())
    assert FOREIGN[ending] in str(caught.value)


def test_names_of_any_length(tmp_path):
    name = "layers.0." + "x" * 100_000 + ".q_proj.lora_A.weight"
    folder = write_folder(tmp_path / "folder", with_tensor(name, [[1]]))
    with pytest.raises(InvalidAdapterFileError, match="has a name of 1000.. characters") as caught:
        convert_peft(folder, tmp_path / "out.gguf", base=base_of())
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "name",
    [
        "layers.0.self_attn.q_proj.lora_velora_embed",
        "layers.0.self_attn.q_proj.lora_monteclora_sampler.std_prior",
        "embed_tokens.base_layer.weight",
    ],
)
def test_what_peft_does_not_answer_with_changes_nothing(name, tmp_path):
    for kind, arrays in (("plain", arrays_of()), ("more", with_tensor(name, [1]))):
        (tmp_path / kind).mkdir()
        convert_peft(write_folder(tmp_path / kind / "folder", arrays), tmp_path / f"{kind}.gguf", base=base_of())
    assert (tmp_path / "plain.gguf").read_bytes() == (tmp_path / "more.gguf").read_bytes()


def test_all_problems_of_both_files(tmp_path):
    folder = write_folder(tmp_path / "folder", arrays_of(), use_dora=True, r=0)
    (folder / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(InvalidAdapterFileError) as caught:
        convert_peft(folder, tmp_path / "out.gguf", base=base_of())
    assert [word for word in ("use_dora", "r is 0", "truncated") if word in str(caught.value)] == [
        "use_dora",
        "r is 0",
        "truncated",
    ]
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("layers.0.self_attn.q_proj.lora_A.weight", np.full((4, 64), np.nan), "lora_A.weight' holds NaN or infinite values"),
        ("layers.0.self_attn.q_proj.lora_B.weight", np.full((64, 4), np.inf), "lora_B.weight' holds NaN or infinite values"),
        ("layers.0.self_attn.q_proj.lora_B.bias", np.ones(64), "lora_B.bias' is no LoRA factor (...lora_A.weight, "),
    ],
)
def test_a_tensor_is_told_of_once(name, value, told, tmp_path):
    """By its own name, with its own reason, and its partner is not said to lack one."""
    folder = write_folder(tmp_path / "folder", with_tensor(name, value))
    with pytest.raises(InvalidAdapterFileError) as caught:
        convert_peft(folder, tmp_path / "out.gguf", base=base_of())
    assert len(caught.value.problems) == 1
    assert told in str(caught.value)
    assert ("a trained bias" in str(caught.value)) == name.endswith("bias")


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_cuts_at_every_interesting_byte(kind, tmp_path):
    folder = write_folder(tmp_path / "folder", arrays_of(layers=1))
    path = folder / "adapter_model.safetensors"
    if kind == "bin":
        path.unlink()
        path = folder / "adapter_model.bin"
        path.write_bytes(torch_bytes(arrays_of(layers=1)))
    content = path.read_bytes()
    lengths = {0, 1, 4, 7, 8, 9, 30, 100, len(content) // 4, len(content) // 2, len(content) - 22, len(content) - 1}
    for length in sorted(lengths):
        path.write_bytes(content[:length])
        with pytest.raises(InvalidAdapterFileError):
            convert_peft(folder, tmp_path / "out.gguf", base=base_of())
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=damages)
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_any_damage_is_an_error_or_a_sound_adapter(kind, steps, tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged") / "folder"
    arrays = arrays_of(layers=1)
    write_folder(folder, arrays)
    content = safetensors_bytes(arrays)
    if kind == "bin":
        (folder / "adapter_model.safetensors").unlink()
        content = torch_bytes(arrays)
    (folder / f"adapter_model.{kind}").write_bytes(mutate(content, steps))
    output = folder.parent / "out.gguf"
    try:
        info = convert_peft(folder, output, base=base_of())
    except LoraError:
        assert not output.exists()
    else:
        assert inspect_adapter(output) == info


# -- what lies in the folder --------------------------------------------------------------------------------------


def loop(path):
    path.unlink()
    path.symlink_to(path.name)


def folder_in_place(path):
    path.unlink()
    path.mkdir()


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def endless(path):
    path.unlink()
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("change", [loop, folder_in_place, pipe, endless])
def test_other_things_in_place_of_files(file, change, tmp_path):
    folder = write_folder(tmp_path / "folder", arrays_of())
    change(folder / file)
    with pytest.raises(LoraError, match=f"{file}: (it cannot be read|a folder)"):
        convert_peft(folder, tmp_path / "out.gguf", base=base_of())
    with pytest.raises(LoraError, match=file):
        AdapterReader(base_of()).read(folder)


def test_a_folder_that_is_a_loop(tmp_path, capsys):
    loop_ = tmp_path / "loop"
    loop_.symlink_to("loop")
    with pytest.raises(LoraLoadError):
        convert_peft(loop_, tmp_path / "out.gguf", base=base_of())
    folder = write_folder(tmp_path / "folder", arrays_of())
    with pytest.raises((LoraError, OSError)):
        convert_peft(folder, loop_ / "out.gguf", base=base_of())
    assert main(["convert", str(loop_), "-o", str(tmp_path / "out.gguf"), "--base", str(loop_)]) == 1
    assert "llamafu: error" in capsys.readouterr().err


def test_a_configuration_too_large_to_be_one(tmp_path):
    folder = write_folder(tmp_path / "folder", arrays_of())
    with (folder / "adapter_config.json").open("ab") as file:
        file.truncate(11_000_000)
    with pytest.raises(InvalidAdapterFileError, match="11000000 bytes; at most 10000000"):
        convert_peft(folder, tmp_path / "out.gguf", base=base_of())


# -- writing ------------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "folder", arrays_of())
    output = tmp_path / "out.gguf"
    output.write_bytes(b"before")

    def full(self, content):
        with self.open("wb") as file:
            file.write(content[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        convert_peft(folder, output, base=base_of())
    assert output.read_bytes() == b"before"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "out.gguf"]


@pytest.mark.skipif(sys.platform == "win32", reason="it has no RLIMIT_FSIZE")
def test_a_file_size_limit_leaves_nothing(tmp_path, tiny_model):
    write_folder(tmp_path / "folder", arrays_of())
    arguments = ["convert", str(tmp_path / "folder"), "-o", str(tmp_path / "out.gguf"), "--base", str(tiny_model)]
    code = (
        "import resource, signal, sys\n"
        "from llamafu.cli.main import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        f"sys.exit(main({arguments!r}))\n"
    )
    done = subprocess.run([sys.executable, "-B", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "llamafu: error" in done.stderr
    assert "Traceback" not in done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


# -- reading for a model ------------------------------------------------------------------------------------------


@pytest.fixture
def conversions(monkeypatch):
    """List of the folders that get converted."""
    real, done = convert.convert_folder, []

    def counted(folder, base, **options):
        done.append(folder.name)
        return real(folder, base, **options)

    monkeypatch.setattr(convert, "convert_folder", counted)
    return done


@pytest.mark.parametrize("change", [lambda folder: folder, as_bin])
def test_a_folder_is_converted_once(change, conversions, tmp_path, tiny_model):
    folder = change(write_folder(tmp_path / "folder", arrays_of()))
    with Llamafu(tiny_model, n_ctx=128) as llm:
        assert llm.validate_lora_compatibility(folder)
        first = llm.load_lora_adapter(folder)
        assert llm.load_lora_adapter(folder) is first
        first.unload()
        llm.load_lora_adapter(folder)
        assert conversions == ["folder"]
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 16}))
        changed = llm.load_lora_adapter(folder, name="changed")
        assert conversions == ["folder"] * 2
        assert changed.info.tensors[0].strength == 2 * first.info.tensors[0].strength


def test_what_is_kept_is_bounded(conversions, tmp_path):
    folders = [write_folder(tmp_path / name, arrays_of()) for name in "abc"]
    size = len(AdapterReader(base_of()).read(folders[0]).content)
    conversions.clear()
    reader = AdapterReader(base_of(), most_kept=2 * size + size // 2)
    for name in "abcacb":
        assert reader.read(tmp_path / name).path == tmp_path / name
    assert conversions == ["a", "b", "c", "a", "b"]


def test_threads_may_read_at_once(tmp_path):
    folders = [write_folder(tmp_path / name, arrays_of(layers=1)) for name in "ab"]
    reader, digests = AdapterReader(base_of()), []

    def read():
        for _ in range(20):
            digests.extend((folder.name, reader.read(folder).digest) for folder in folders)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(digests) == 160
    assert len(set(digests)) == 2


def test_check_takes_folders(tmp_path, tiny_model, capsys):
    folder = write_folder(tmp_path / "folder", arrays_of())
    assert main(["check", str(folder), "-m", str(tiny_model)]) == 0
    assert "folder fits tiny.gguf" in capsys.readouterr().out
    wrong = write_folder(tmp_path / "wrong", arrays_of(), use_dora=True, lora_bias=True, r=-1)
    (wrong / "adapter_model.safetensors").write_bytes(b"")
    assert main(["check", str(wrong), "-m", str(tiny_model), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["fits"]
    assert len(report["problems"]) == 4
    large = write_folder(tmp_path / "large", with_tensor("layers.0.mlp.up_proj.lora_B.weight", np.ones((99, 4))))
    assert main(["check", str(large), "-m", str(tiny_model)]) == 1
    assert "99 out; the base model is" in capsys.readouterr().out
    with Llamafu(tiny_model, n_ctx=128) as llm:
        assert len(llm.validate_lora_compatibility(wrong).problems) == 4
        assert len(llm.validate_lora_compatibility(large).problems) == 1
        with pytest.raises(LlamafuError, match="no such adapter file"):
            llm.validate_lora_compatibility(tmp_path / "nowhere")
