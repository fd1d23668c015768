"""The table of the options of devices: every way in has each of them, and one error for what is not legal."""

from __future__ import annotations

import argparse
import inspect
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from llamafu import Engine, Llamafu
from llamafu._native.device_options import DEVICE_OPTIONS, DeviceArguments, DeviceOptions
from llamafu.cli.device_arguments import add_devices, device_arguments
from llamafu.server.settings import Settings, load

NAMES = [option.name for option in DEVICE_OPTIONS]
GIVEN = {  # as text and as a value
    "n_gpu_layers": ("auto", "auto"),
    "devices": ("CUDA0,CUDA1", ("CUDA0", "CUDA1")),
    "split_mode": ("row", "row"),
    "main_gpu": ("1", 1),
    "tensor_split": ("3,1.5", (3.0, 1.5)),
    "use_mmap": ("no", False),
    "use_mlock": ("yes", True),
    "n_ubatch": ("64", 64),
    "kv_unified": ("on", True),
    "offload_kqv": ("0", False),
}


def parsed(*arguments):
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_devices(parser)
    return device_arguments(parser.parse_args(arguments))


def test_every_way_in_has_every_option():
    """Python, its types, the command line and the server."""
    assert list(GIVEN) == NAMES == list(DeviceArguments.__annotations__)
    for owner in (Llamafu, Engine):
        parameters = inspect.signature(owner).parameters
        assert {option.name: option.default for option in DEVICE_OPTIONS} == {name: parameters[name].default for name in NAMES}
    settings = {each.name: each.default for each in fields(Settings)}
    assert {option.name: option.default for option in DEVICE_OPTIONS} == {name: settings[name] for name in NAMES}


def test_texts_are_read_alike():
    """By the command line, a variable of the environment, and the server."""
    flags = [text for name, (value, _) in GIVEN.items() for text in (f"--{name.replace('_', '-')}", value)]
    wanted = {name: value for name, (_, value) in GIVEN.items()}
    assert parsed(*flags) == wanted
    given = {name: text for name, (text, _) in GIVEN.items()}
    assert load({"model": "m.gguf", **given}, {}).device_arguments == wanted
    variables = {f"LLAMAFU_SERVE_{name.upper()}": text for name, (text, _) in GIVEN.items()}
    assert load({"model": "m.gguf"}, variables).device_arguments == wanted
    assert parsed("-ngl", "5", "--device", "none") == {"n_gpu_layers": 5, "devices": ()}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"n_gpu_layers": "all"}, "n_gpu_layers='all' is not a whole number from -1 to 2147483647, nor 'auto'"),
        ({"n_gpu_layers": -2}, "n_gpu_layers=-2"),
        ({"n_gpu_layers": True}, "n_gpu_layers=True"),
        ({"n_gpu_layers": None}, "n_gpu_layers=None"),
        ({"devices": "CUDA0", "n_gpu_layers": 1}, "devices='CUDA0' is no sequence"),
        ({"devices": ["a", "a"], "n_gpu_layers": 1}, "different names"),
        ({"split_mode": "tensor", "n_gpu_layers": 1}, "split_mode='tensor' is none of 'none', 'layer', 'row'"),
        ({"main_gpu": -1, "n_gpu_layers": 1}, "main_gpu=-1"),
        ({"tensor_split": [0, 0], "n_gpu_layers": 1}, r"tensor_split=\[0, 0\]"),
        ({"tensor_split": [-1], "n_gpu_layers": 1}, "a share of tensor_split=-1"),
        ({"tensor_split": [1] * 17, "n_gpu_layers": 1}, "1 to 16 shares"),
        ({"use_mmap": 1}, "use_mmap=1 is neither True nor False"),
        ({"use_mlock": "yes"}, "use_mlock='yes'"),
        ({"n_ubatch": 0}, "n_ubatch=0"),
        ({"kv_unified": 0}, "kv_unified=0"),
        ({"offload_kqv": None}, "offload_kqv=None"),
        ({"devices": ["CUDA0"]}, "devices=.*no effect with n_gpu_layers=0"),
        ({"main_gpu": 1}, "main_gpu=1 has no effect"),
        ({"split_mode": "row"}, "split_mode='row' has no effect"),
        ({"tensor_split": (1, 1)}, "tensor_split=.*no effect"),
    ],
)
def test_what_is_not_legal(tiny_model, options, text):
    """One error names the option, its value and what is legal, before anything is loaded."""
    for owner in (Llamafu, Engine):
        with pytest.raises(ValueError, match=text):
            owner(tiny_model, **options)


def test_unknown_options(tiny_model):
    """An unknown keyword argument is a TypeError with the nearest name."""
    for owner in (Llamafu, Engine):
        with pytest.raises(TypeError, match="'n_gpu_layer'; did you mean 'n_gpu_layers'"):
            owner(tiny_model, n_gpu_layer=1)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--n-gpu-layers", "x"), "'x' is no whole number"),
        (("--tensor-split", "1;2"), "such as 3,1"),
        (("--use-mmap", "maybe"), "'maybe' is not one of"),
        (("--split-mode", "rows"), "is none of"),
    ],
)
def test_texts_that_are_not_legal(flags, text):
    """A usage error on the command line; the server says where the text was given."""
    with pytest.raises(argparse.ArgumentError, match=text):
        parsed(*flags)
    name = flags[0].removeprefix("--").replace("-", "_")
    with pytest.raises(ValueError, match=f"the command line: {name}: .*{text}"):
        load({"model": "m.gguf", name: flags[1]}, {})


@pytest.mark.parametrize("kind", [Llamafu, Engine])
def test_an_unknown_argument_is_told_with_all_that_there_are(kind):
    """Of the constructor, not of the devices alone."""
    with pytest.raises(TypeError, match="unknown option 'n_thread'; did you mean 'n_threads'?") as caught:
        kind("no.gguf", n_thread=4)
    for name, parameter in inspect.signature(kind).parameters.items():
        assert (f" {name}," in str(caught.value).replace("(", " ").replace(")", ",")) == (
            parameter.kind == parameter.KEYWORD_ONLY
        )


def test_engines_share_one_memory(tiny_model):
    """An engine refuses what its sequences cannot have."""
    with pytest.raises(ValueError, match="kv_unified=False"):
        Engine(tiny_model, kv_unified=False)
    with pytest.raises(ValueError, match="max_sequences=16 is more than n_ubatch=8"):
        Engine(tiny_model, n_ubatch=8)


def test_batches_smaller_than_sequences(tiny_model, tiny_adapter_a, real):
    """A context has an output for each of its sequences: libllama would end the process where a batch is smaller."""
    options = {"library": real.path, "flash_attn": "off", "type_k": "f32", "type_v": "f32", "n_threads": 1}
    texts = [[5, 6, 7], [9], [5, 6, 8, 9]]
    with Llamafu(tiny_model, embeddings=True, **options) as llm:
        wanted = llm.embed(texts)
    for small in ({"n_batch": 1}, {"n_ctx": 4}, {"n_batch": 3, "n_ubatch": 2}):
        with Llamafu(tiny_model, embeddings=True, **small, **options) as llm:
            assert np.abs(llm.embed(texts) - wanted).max() < 1e-5
    request = {"lora": {tiny_adapter_a.stem: 1.0}, "temperature": 0, "max_tokens": 4, "ignore_eos": True}
    answers = []
    for small in ({}, {"n_ubatch": 8, "max_sequences": 4}):
        with Engine(tiny_model, **small, **options) as engine:
            engine.add_adapter(tiny_adapter_a)
            answers.append(engine.complete(list(range(3, 30)), **request).tokens)
    assert answers[0] == answers[1]


def test_ubatch_of_a_model_that_reads_texts_as_a_whole(tiny_dir, real):
    """Its texts must not be divided: libllama would end the process."""
    from llamafu.errors import ContextInitError

    with pytest.raises(ContextInitError, match="n_ubatch=8 would divide texts"):
        Llamafu(tiny_dir / "tiny-bert.gguf", n_ctx=64, n_ubatch=8, embeddings=True, library=real.path)


def test_they_reach_libllama(tiny_model, real):
    """Without a GPU: the layers, the mapping and the batch are as asked, and the answer is the same."""
    prompt = list(range(3, 30))
    with Llamafu(tiny_model, n_ctx=64, n_threads=1, library=real.path) as llm:
        wanted = llm.next_logits(prompt)
    options = {"use_mmap": False, "n_ubatch": 8, "kv_unified": True, "n_gpu_layers": "auto"}
    with Llamafu(tiny_model, n_ctx=64, n_threads=1, library=real.path, **options) as llm:
        context = llm._session.instance.context
        assert context.model.library.lib.llama_n_ubatch(context.pointer) == 8
        assert abs(llm.next_logits(prompt) - wanted).max() < 0.02


def test_the_page_lists_them():
    """With their defaults and their meanings."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "devices.md").read_text("utf-8")
    for option in DEVICE_OPTIONS:
        assert f"| `{option.name}` | `{option.default!r}` | {option.doc} |" in page


def test_texts_of_options():
    """Every option says in one line what it does."""
    for option in DEVICE_OPTIONS:
        assert option.doc
        assert "\n" not in option.doc
        option.check(option.name, option.default)
    assert DeviceOptions().wants_gpu is False
