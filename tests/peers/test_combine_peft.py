"""Every way to combine gives what PEFT's `add_weighted_adapter` gives, and a folder written here is one that PEFT reads."""

import json
import os

import numpy as np
import peft
import pytest
import torch
from gguf import GGUFReader
from helpers.merge_cases import GOLDENS, golden_options, golden_sources, probe
from helpers.peft_folders import HEADS, HIDDEN, KV_HEADS, SIZES, WIDE, base_of
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from llamafu.adapters import convert_peft, export_peft, merge_adapters
from llamafu.adapters.merge.merge import merge_for_base
from llamafu.adapters.merge.methods import METHODS, MergeOptions
from llamafu.adapters.peft.safetensors import read_safetensors, safetensors_bytes

SHAPE = {
    "vocab_size": 96,
    "hidden_size": HIDDEN,
    "intermediate_size": WIDE,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": 64,
}
NAMES = {leaf: name for leaf, (name, *_) in SIZES.items()}
ALL = tuple(name.split(".")[1] for name in NAMES)
TOKENS = torch.tensor([[5, 40, 77, 20, 13, 9]])
MODELS = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}
TOLERANCE = 1e-4  # of the largest value of the change


def model_of(architecture):
    config, model = MODELS[architecture]
    torch.manual_seed(0)
    return model(config(**SHAPE)).eval()


def train(model, folder, seed, **config):
    """Save an adapter whose factors are random, B too; each call wraps a fresh `model`."""
    wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **config))
    torch.manual_seed(seed)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter) * 0.2
    wrapped.save_pretrained(folder)
    weights = folder / "adapter_model.safetensors"
    arrays = read_safetensors(weights.read_bytes(), name="saved")
    # In the model's order, in which PEFT combines: it saves them in that of their names.
    order = [name.replace(".default", "") for name, _ in wrapped.named_parameters() if "lora_" in name]
    weights.write_bytes(safetensors_bytes({name: arrays[name] for name in order}, {"format": "pt"}))
    return folder


def changes_of(model, adapter):
    """Return dW of each module that the adapter of this name changes, under GGUF's names."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, peft.tuners.lora.LoraLayer) and adapter in module.lora_A:
            layer, leaf = name.split(".layers.")[1].split(".", 1)
            found[f"blk.{layer}.{NAMES[leaf]}.weight"] = module.get_delta_weight(adapter).detach().numpy().astype("f8")
    return found


def changes_in(path):
    reader = GGUFReader(path)
    alpha = reader.fields["adapter.lora.alpha"].contents()
    values = {tensor.name: np.float64(tensor.data) for tensor in reader.tensors}
    names = [name.removesuffix(".lora_a") for name in values if name.endswith(".lora_a")]
    return {n: alpha / len(values[n + ".lora_a"]) * values[n + ".lora_b"] @ values[n + ".lora_a"] for n in names}


def peft_sum(architecture, weights, **options):
    """Return the changes of PEFT's combination of {folder: weight}."""
    names = [f"a{number}" for number in range(len(weights))]
    model = None
    for name, folder in zip(names, weights, strict=True):
        if model is None:
            model = peft.PeftModel.from_pretrained(model_of(architecture), folder, adapter_name=name)
        else:
            model.load_adapter(folder, name)
    model.add_weighted_adapter(names, list(weights.values()), "sum", **options)
    return changes_of(model, "sum")


def ours(architecture, weights, output, form="gguf", **options):
    merge_for_base(weights, output, MergeOptions(**options), base=base_of(architecture), form=form)
    return output


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, change in wanted.items():
        np.testing.assert_allclose(found[name], change, rtol=0, atol=TOLERANCE * np.abs(change).max(), err_msg=name)


@pytest.fixture
def masks(monkeypatch):
    """PEFT's random masks come from the generator that llamafu makes of the seed 7, in the order in which it asks."""
    random = np.random.default_rng(7)
    drawn = []

    def bernoulli(probabilities):
        mask = random.random(tuple(probabilities.shape)) < probabilities.numpy()
        drawn.append(float(mask.mean()))
        return torch.from_numpy(mask.astype("f4"))

    monkeypatch.setattr(torch, "bernoulli", bernoulli)
    return drawn


CASES = [(0.7, 0.3), (1.0, -0.5), (-0.4, 1.6)]


@pytest.mark.parametrize("weights", CASES)
@pytest.mark.parametrize("method", METHODS)
def test_methods(method, weights, tmp_path, masks):
    """Seven targets and four, strengths 2 and 3; ranks differ where they may."""
    ranks = (4, 4) if METHODS[method].needs_equal_ranks else (4, 2)
    folders = (
        train(model_of("qwen2"), tmp_path / "one", 1, r=ranks[0], lora_alpha=8, target_modules=list(ALL)),
        train(model_of("qwen2"), tmp_path / "two", 2, r=ranks[1], lora_alpha=3 * ranks[1], target_modules=list(ALL[:4])),
    )
    given = dict(zip(folders, weights, strict=True))
    options = {"density": 0.6} if "density" in METHODS[method].options else {}
    wanted = peft_sum("qwen2", given, combination_type=method, **options)
    seed = {"seed": 7} if "seed" in METHODS[method].options else {}
    assert_same(changes_in(ours("qwen2", given, tmp_path / "out.gguf", method=method, **options, **seed)), wanted)
    assert bool(masks) == bool(seed)


@pytest.mark.parametrize("method", METHODS)
def test_goldens_are_pefts(method, tmp_path, masks):
    """What `make test` compares with; LLAMAFU_WRITE_GOLDENS=1 in the environment writes it anew."""
    options = golden_options(method)
    wanted = peft_sum("qwen2", golden_sources(tmp_path), combination_type=method, **options)
    found = {name: probe(change) for name, change in wanted.items()}
    if os.environ.get("LLAMAFU_WRITE_GOLDENS"):
        known = json.loads(GOLDENS.read_text()) if GOLDENS.exists() else {}
        GOLDENS.write_text(json.dumps(known | {method: found}, indent=1) + "\n")
    known = json.loads(GOLDENS.read_text())[method]
    assert known.keys() == found.keys()
    for name, numbers in known.items():
        assert found[name] == pytest.approx(numbers, rel=TOLERANCE), name


@pytest.mark.parametrize("method", [method for method in METHODS if "rank" in METHODS[method].options])
@pytest.mark.parametrize("rank", [1, 3, 64])
def test_ranks_of_the_svd(method, rank, tmp_path, masks):
    """64 is the smaller side of most matrices: nothing is cut there."""
    given = {
        train(model_of("qwen2"), tmp_path / "one", 1, r=4, lora_alpha=8, target_modules=list(ALL[3:])): 0.7,
        train(model_of("qwen2"), tmp_path / "two", 2, r=2, lora_alpha=3, target_modules=["up_proj", "down_proj"]): 0.5,
    }
    options = {"density": 0.5} if "density" in METHODS[method].options else {}
    wanted = peft_sum("qwen2", given, combination_type=method, svd_rank=rank, **options)
    seed = {"seed": 7} if "seed" in METHODS[method].options else {}
    assert_same(changes_in(ours("qwen2", given, tmp_path / "o.gguf", method=method, rank=rank, **options, **seed)), wanted)


@pytest.mark.parametrize("method", ["cat", "svd", "linear"])
def test_patterns(method, tmp_path):
    """Another alpha for one module of either adapter. Reading moves it into B, which the sum of dW does not see.

    In "linear" the balance of A and B matters, and those modules come out otherwise than in PEFT.
    """
    common = {"r": 4, "lora_alpha": 8, "target_modules": list(ALL)}
    given = {
        train(model_of("qwen2"), tmp_path / "one", 1, alpha_pattern={"q_proj": 2}, **common): 0.7,
        train(model_of("qwen2"), tmp_path / "two", 2, alpha_pattern={"layers.1.mlp.up_proj": 5}, **common): 0.3,
    }
    wanted = peft_sum("qwen2", given, combination_type=method)
    found = changes_in(ours("qwen2", given, tmp_path / "out.gguf", method=method))
    others = {name for name in wanted if method == "linear" and ("attn_q" in name or name == "blk.1.ffn_up.weight")}
    assert all(np.abs(found[name] - wanted[name]).max() > 0.1 * np.abs(wanted[name]).max() for name in others)
    assert_same(*({name: change for name, change in side.items() if name not in others} for side in (found, wanted)))


def test_rslora_is_where_peft_is_wrong(tmp_path):
    """Its result keeps use_rslora, so that alpha = rank means the strength sqrt(rank) where 1 is meant."""
    common = {"r": 4, "lora_alpha": 8, "target_modules": ["up_proj"], "use_rslora": True}
    given = {
        train(model_of("qwen2"), tmp_path / "one", 1, **common): 0.7,
        train(model_of("qwen2"), tmp_path / "two", 2, **common): 0.3,
    }
    single = [peft_single("qwen2", folder) for folder in given]
    right = {name: 0.7 * change + 0.3 * single[1][name] for name, change in single[0].items()}
    assert_same(changes_in(ours("qwen2", given, tmp_path / "out.gguf", method="cat")), right)
    theirs = peft_sum("qwen2", given, combination_type="cat")
    assert_same(theirs, {name: change * np.sqrt(8) for name, change in right.items()})


def test_one_adapter_is_where_peft_does_another_thing(tmp_path):
    """It does "linear" then, whatever was asked for."""
    given = {train(model_of("qwen2"), tmp_path / "one", 1, r=4, lora_alpha=8, target_modules=["up_proj"]): 1.0}
    whole = peft_single("qwen2", next(iter(given)))
    assert_same(peft_sum("qwen2", given, combination_type="magnitude_prune", density=0.3), whole)
    pruned = changes_in(ours("qwen2", given, tmp_path / "out.gguf", method="magnitude_prune", density=0.3))
    assert all(np.abs(pruned[name] - change).max() > 0.1 * np.abs(change).max() for name, change in whole.items())


def peft_single(architecture, folder):
    return changes_of(peft.PeftModel.from_pretrained(model_of(architecture), folder, adapter_name="one"), "one")


# -- folders that are written -------------------------------------------------------------------------------------


def logits(model):
    with torch.no_grad():
        return model(TOKENS).logits.numpy()


@pytest.mark.parametrize("architecture", MODELS)
@pytest.mark.parametrize("method", ["cat", "svd"])
def test_folders_speak_the_same_through_peft(architecture, method, tmp_path):
    """Ranks, alphas and targets differ, rsLoRA too; rank 8 loses nothing. GGUF and PEFT hold the same changes."""
    given = {
        train(model_of(architecture), tmp_path / "one", 1, r=4, lora_alpha=8, target_modules=list(ALL)): 0.8,
        train(
            model_of(architecture), tmp_path / "two", 2, r=2, lora_alpha=2, target_modules=["q_proj", "k_proj"], use_rslora=True
        ): -0.6,
    }
    rank = {"rank": 8} if method == "svd" else {}
    ours(architecture, given, tmp_path / "sum.gguf", method=method, **rank)
    ours(architecture, given, tmp_path / "sum", form="peft", method=method, **rank)
    single = [peft_single(architecture, folder) for folder in given]
    wanted = {name: 0.8 * change - 0.6 * single[1].get(name, 0) for name, change in single[0].items()}
    merged = peft.PeftModel.from_pretrained(model_of(architecture), tmp_path / "sum", adapter_name="one")
    assert_same(changes_of(merged, "one"), wanted)
    found = changes_in(tmp_path / "sum.gguf")
    for name, change in wanted.items():
        heads = {"attn_q": 4, "attn_k": 2}.get(name.split(".")[2]) if architecture == "llama" else None
        np.testing.assert_allclose(found[name], interleaved(change, heads), atol=1e-5)
    both = model_of(architecture)
    for layer, block in enumerate(both.model.layers):
        for leaf, name in NAMES.items():
            block.get_submodule(leaf).weight.data += torch.from_numpy(wanted[f"blk.{layer}.{name}.weight"].astype("f4"))
    assert np.abs(logits(merged) - logits(model_of(architecture))).max() > 0.05
    np.testing.assert_allclose(logits(merged), logits(both), atol=1e-4, rtol=0)


def interleaved(change, heads):
    """Row i of each half of a head becomes row 2 i, or 2 i + 1, by index."""
    if heads is None:
        return change
    size = len(change) // heads
    out = np.empty_like(change)
    for row, values in enumerate(change):
        head, place = divmod(row, size)
        half, i = divmod(place, size // 2)
        out[head * size + 2 * i + half] = values
    return out


@pytest.mark.parametrize("architecture", MODELS)
def test_there_and_back(architecture, tmp_path):
    """PEFT to GGUF to PEFT, with patterns: every module's change and the logits stay."""
    options = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"up_proj": 5}, "use_rslora": True}
    folder = train(model_of(architecture), tmp_path / "one", 1, r=4, lora_alpha=8, target_modules=list(ALL), **options)
    convert_peft(folder, tmp_path / "one.gguf", base=base_of(architecture), dtype="f32")
    export_peft(tmp_path / "one.gguf", tmp_path / "back", base=base_of(architecture))
    assert_same(peft_single(architecture, tmp_path / "back"), peft_single(architecture, folder))
    before, after = (
        logits(peft.PeftModel.from_pretrained(model_of(architecture), path)) for path in (folder, tmp_path / "back")
    )
    np.testing.assert_allclose(after, before, atol=1e-5, rtol=0)


def test_without_a_base(tmp_path):
    """Python's call writes a folder too, where no head count is needed."""
    for seed, name in enumerate(("one", "two")):
        train(model_of("qwen2"), tmp_path / name, seed, r=4, lora_alpha=8, target_modules=list(ALL))
        convert_peft(tmp_path / name, tmp_path / f"{name}.gguf", base=base_of("qwen2"), dtype="f32")
    merge_adapters({tmp_path / "one.gguf": 0.5, tmp_path / "two.gguf": 0.5}, tmp_path / "sum", method="cat")
    single = [peft_single("qwen2", tmp_path / name) for name in ("one", "two")]
    assert_same(peft_single("qwen2", tmp_path / "sum"), {n: (c + single[1][n]) / 2 for n, c in single[0].items()})
    assert json.loads((tmp_path / "sum" / "adapter_config.json").read_text())["r"] == 8
