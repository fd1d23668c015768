"""What PEFT and torch write, read here: the fields of the newest configuration, archives, and config.json files."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import config as lora_config
from safetensors.torch import load_file
from tiny_hf import MODELS, make_model, write_gguf

from llamafu.adapters import read_base
from llamafu.adapters.peft.config_fields import HARMLESS, READ, REFUSED
from llamafu.adapters.peft.convert import convert_folder
from llamafu.adapters.peft.folder import read_folder
from llamafu.adapters.peft.hf_config import MODEL_TYPES, read_any_base
from llamafu.adapters.peft.torch_pickle import read_pickled
from llamafu.errors import InvalidAdapterFileError

FIELDS = {field.name for field in dataclasses.fields(LoraConfig)}


def save(folder, **options):
    """Save an adapter of a tiny llama, random in every number, and return the model that it is on."""
    model = get_peft_model(make_model("mistral"), LoraConfig(r=4, lora_alpha=8, **{"target_modules": ["q_proj"], **options}))
    stream = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=stream))
    model.save_pretrained(folder)
    return model.eval()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "base.gguf"
    write_gguf(make_model("mistral"), path)
    return read_base(path)


def test_every_field_of_the_newest_configuration_is_judged():
    assert READ | HARMLESS | set(REFUSED) >= FIELDS  # and those of other versions and programs too


def test_variants_are_among_the_judged():
    """Fields that PEFT itself marks as another kind of layer: refused, or one whose answers are plain LoRA's."""
    variants = {field.name for field in dataclasses.fields(LoraConfig) if field.metadata.get("is_lora_variant")}
    assert variants - set(REFUSED) <= {"alora_invocation_tokens", "velora_config", "monteclora_config"}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"velora_config": lora_config.VeloraConfig()},
        {"monteclora_config": lora_config.MontecloraConfig()},
        {"init_lora_weights": "mica"},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "gaussian", "lora_dropout": 0.3},
        {"bias": "all"},  # a model without biases
        {"layers_to_transform": [1]},
        {"exclude_modules": ["k_proj"], "target_modules": "all-linear"},
        {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    ],
    ids=str,
)
def test_harmless_options_answer_as_plain_lora(options, base, tmp_path):
    """PEFT's answer with the adapter is its answer with B A added to the weights, and these factors are the converted ones."""
    adapted = save(tmp_path / "adapter", **options)
    tokens = torch.tensor([[0, 40, 76, 105]])
    file = convert_folder(read_folder(tmp_path / "adapter"), base, dtype="f32")
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    plain = make_model("mistral").eval()
    changed = 0
    with torch.no_grad():
        theirs = adapted(tokens).logits
        for name, module in plain.named_modules():
            prefix = f"base_model.model.{name}.lora_"
            if f"{prefix}A.weight" in tensors:
                module.weight += 2 * tensors[f"{prefix}B.weight"] @ tensors[f"{prefix}A.weight"]
            elif f"{prefix}embedding_A" in tensors:
                module.weight += 2 * (tensors[f"{prefix}embedding_B"] @ tensors[f"{prefix}embedding_A"]).T
            else:
                continue
            changed += 1
        assert torch.allclose(theirs, plain(tokens).logits, rtol=1e-4, atol=1e-3)
    assert changed == len(file.pairs)


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"lora_bias": True},
        {"kasa_config": lora_config.KasaConfig()},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [1, 2]},
        {"layer_replication": [(0, 2), (1, 2)]},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
    ],
    ids=str,
)
def test_what_changes_more_is_refused(options, base, tmp_path):
    save(tmp_path / "adapter", **options)
    with pytest.raises(InvalidAdapterFileError, match=next(iter(options))):
        convert_folder(read_folder(tmp_path / "adapter"), base)


def test_peft_ignores_what_is_not_known_and_we_refuse_it(base, tmp_path):
    save(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "later_feature": 1}))
    with pytest.raises(InvalidAdapterFileError, match="later_feature"):
        convert_folder(read_folder(tmp_path / "adapter"), base)


def test_torch_reads_the_same_from_its_archives(tmp_path):
    x = torch.randn(5, 8)
    shared = torch.arange(40, dtype=torch.float32)
    state = {
        **{str(kind).removeprefix("torch."): x.to(kind) for kind in (torch.float32, torch.float16, torch.bfloat16)},
        "turned": x.T,
        "part": x[1::2, 3:],
        "first": shared[:20].reshape(4, 5),
        "second": shared[20:],
        "parameter": torch.nn.Parameter(x.clone()),
        "scalar": torch.tensor(3.0),
    }
    torch.save(state, tmp_path / "x.bin")
    found = read_pickled((tmp_path / "x.bin").read_bytes(), name="x.bin")
    assert list(found) == sorted(state)
    for key, value in torch.load(tmp_path / "x.bin").items():
        np.testing.assert_array_equal(found[key], value.detach().float().numpy())


def test_torchs_other_formats_are_refused(tmp_path):
    torch.save({"x": torch.ones(3)}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    torch.save({"x": torch.ones(3, dtype=torch.float64)}, tmp_path / "double.bin")
    torch.save({"x": torch.ones(3).to_sparse()}, tmp_path / "sparse.bin")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.bin")
    for name, words in {
        "old": "before 1.6",
        "double": "DoubleStorage; it must be one of",
        "sparse": "nothing was executed",
        "module": "nothing was executed",
    }.items():
        with pytest.raises(InvalidAdapterFileError, match=words):
            read_pickled((tmp_path / f"{name}.bin").read_bytes(), name=name)


def test_pickles_and_safetensors_of_peft_convert_alike(base, tmp_path):
    model = get_peft_model(make_model("mistral"), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    contents = []
    for safe in (True, False):
        folder = tmp_path / str(safe) / "adapter"
        model.save_pretrained(folder, safe_serialization=safe)
        contents.append(convert_folder(read_folder(folder), base).content)
    assert (tmp_path / "False" / "adapter" / "adapter_model.bin").exists()
    assert contents[0] == contents[1]


@pytest.mark.parametrize("kind", MODELS)
def test_a_config_says_what_the_gguf_model_says(kind, tmp_path):
    model = make_model(kind)
    write_gguf(model, tmp_path / "model.gguf")
    model.config.save_pretrained(tmp_path)
    ours, gguf = read_any_base(tmp_path), read_base(tmp_path / "model.gguf")
    assert ours.architecture == gguf.architecture
    assert ours.tensors == {name: shape for name, shape in gguf.tensors.items() if len(shape) > 1}
    told = {key: gguf.metadata[key] for key in ours.metadata if key in gguf.metadata}
    assert {key: ours.metadata[key] for key in told} == told
    assert f"{ours.architecture}.attention.head_count_kv" in told


def test_every_model_type_is_compared():
    assert set(MODEL_TYPES) == set(MODELS)
