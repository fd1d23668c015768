"""Adapters of PEFT, loaded as they are, against PEFT on torch: a tiny random model of every architecture in the table.

Weights and KV cache are F32 and flash attention is off. The adapters are on every linear layer that there is:
attention, feed-forward, experts and their router, and, where they are not tied, token embeddings and output matrix. The
factors are rounded to F16 before PEFT computes with them, since that is what a folder becomes when it is loaded.
"""

from itertools import product

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from tiny_hf import EXPERTS, HIDDEN, MODELS, WIDE, make_model, write_gguf

from llamafu import Llamafu
from llamafu.adapters import convert_peft, inspect_adapter
from llamafu.adapters.peft import factor_mapping
from llamafu.adapters.peft.architectures import ARCHITECTURES
from llamafu.adapters.peft.config import PeftConfig

TOKENS = [0, 40, 76, 105, 112, 112, 36, 90, 115, 260, 261, 33, 17, 200, 4, 255, 300, 301, 77]
DIFFERENCE, DIVERGENCE = 1e-3, 1e-6
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MODULES = {
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj", "lm_head"],
    "mixtral": ATTENTION,
    "qwen3_moe": ATTENTION,
    "granite": [*ATTENTION, "gate_proj", "up_proj", "down_proj", "embed_tokens", "lm_head"],
    "mistral": [*ATTENTION, "gate_proj", "up_proj", "down_proj", "embed_tokens", "lm_head"],
}
DENSE = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
PARAMETERS = {
    kind: ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"] for kind in ("mixtral", "qwen3_moe")
}
LEGACY = {"mixtral": ("block_sparse_moe", "w1", "w2", "w3"), "qwen3_moe": ("mlp", "gate_proj", "up_proj", "down_proj")}
VARIANTS = {
    "plain": {},
    "rslora": {"use_rslora": True, "lora_alpha": 3},
    "patterns": {
        "rank_pattern": {"o_proj": 2, "down_proj": 8},
        "alpha_pattern": {r".*layers\.1\..*v_proj": 16, "down_proj": 4},
    },
}


@pytest.fixture(scope="module", params=MODELS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(kind, tmp_path_factory):
    """The GGUF file of a tiny model."""
    path = tmp_path_factory.mktemp(kind) / "model.gguf"
    write_gguf(make_model(kind), path)
    return path


def write_adapter(kind, folder, **options):
    """Save a random adapter, and return the logits of PEFT with it, (token, vocabulary)."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": MODULES.get(kind, DENSE), "target_parameters": PARAMETERS.get(kind)}
    adapted = get_peft_model(make_model(kind), LoraConfig(**(settings | options))).eval()
    stream = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_A" in name or "embedding_B" in name:
                value = torch.randn(parameter.shape, generator=stream) / parameter.shape[-1] ** 0.5
                parameter.copy_(value.half().float())
            elif "lora_" in name:
                parameter.copy_((0.1 * torch.randn(parameter.shape, generator=stream)).half().float())
        adapted.save_pretrained(folder)
        return adapted(torch.tensor([TOKENS])).logits[0].double().numpy()


def our_logits(path, folder):
    """Logits of the model with the adapter in `folder` (None: without), by the public way of loading it."""
    with Llamafu(path, n_ctx=128, n_threads=1, flash_attn="off", type_k="f32", type_v="f32") as llm:
        adapters = {} if folder is None else {llm._adapters.native(llm.load_lora_adapter(folder)): 1.0}
        context = llm._session.instance.context
        context.set_adapters(adapters)
        context.decode(TOKENS, 0, all_logits=True)
        return np.array([context.logits(i) for i in range(len(TOKENS))], "f8")


def distance(ours, theirs):
    """Largest difference of two logits, and the largest KL divergence of the next-token distributions, in nats."""
    p, q = (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True) for logits in (theirs, ours))
    return np.abs(ours - theirs).max(), (np.exp(p) * (p - q)).sum(axis=1).max()


def agree(ours, theirs):
    difference, divergence = distance(ours, theirs)
    return difference <= DIFFERENCE and divergence <= DIVERGENCE


def test_every_architecture_is_compared():
    assert {architecture for architecture, _ in MODELS.values()} == set(ARCHITECTURES)


def test_bases_agree(kind, model):
    with torch.no_grad():
        theirs = make_model(kind)(torch.tensor([TOKENS])).logits[0].double().numpy()
    assert agree(our_logits(model, None), theirs), distance(our_logits(model, None), theirs)


@pytest.mark.parametrize("variant", VARIANTS)
def test_adapters_agree(kind, variant, model, tmp_path):
    """The F32 file to the tolerance, and the folder, whose F16 form makes libllama round its inputs to F16, to ten times it."""
    theirs = write_adapter(kind, tmp_path / "adapter", **VARIANTS[variant])
    convert_peft(tmp_path / "adapter", tmp_path / "f32.gguf", base=model, dtype="f32")
    ours = our_logits(model, tmp_path / "f32.gguf")
    assert agree(ours, theirs), distance(ours, theirs)
    difference, divergence = distance(our_logits(model, tmp_path / "adapter"), theirs)
    assert difference <= 10 * DIFFERENCE
    assert divergence <= DIVERGENCE
    assert distance(our_logits(model, None), theirs)[0] > 500 * DIFFERENCE, "this adapter does next to nothing"


@pytest.mark.parametrize("kind", LEGACY, indirect=True)
def test_experts_named_as_before_transformers_5_agree(kind, model, tmp_path):
    """PEFT turns the old names into parameters, doubles the rank of gate and up together, and saves that."""
    theirs = write_adapter(kind, tmp_path / "adapter", target_modules=LEGACY[kind][1:], target_parameters=None)
    convert_peft(tmp_path / "adapter", tmp_path / "f32.gguf", base=model, dtype="f32")
    ours = our_logits(model, tmp_path / "f32.gguf")
    assert agree(ours, theirs), distance(ours, theirs)
    assert max(tensor.rank for tensor in inspect_adapter(tmp_path / "f32.gguf").tensors) == 8


@pytest.mark.parametrize("kind", LEGACY)
def test_single_experts_agree(kind, tmp_path):
    """Adapters from before transformers 5, with factors for each expert's projections, which PEFT itself still loads."""
    block, *names = LEGACY[kind]
    model = make_model(kind)
    write_gguf(model, tmp_path / "model.gguf")
    stream = torch.Generator().manual_seed(7)
    tensors = {}
    for layer, expert in product(range(2), range(EXPERTS)):
        for name in names:
            n_in, n_out = (WIDE, HIDDEN) if name in ("w2", "down_proj") else (HIDDEN, WIDE)
            stem = f"base_model.model.model.layers.{layer}.{block}.experts.{expert}.{name}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn((4, n_in), generator=stream) / n_in**0.5
            tensors[f"{stem}.lora_B.weight"] = 0.1 * torch.randn((n_out, 4), generator=stream)
    folder = tmp_path / "adapter"
    LoraConfig(r=4, lora_alpha=8, target_modules=names, task_type="CAUSAL_LM").save_pretrained(folder)
    save_file(tensors, folder / "adapter_model.safetensors")
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(model, folder)(torch.tensor([TOKENS])).logits[0].double().numpy()
    convert_peft(folder, tmp_path / "f32.gguf", base=tmp_path / "model.gguf", dtype="f32")
    ours = our_logits(tmp_path / "model.gguf", tmp_path / "f32.gguf")
    assert agree(ours, theirs), distance(ours, theirs)
    assert distance(our_logits(tmp_path / "model.gguf", None), theirs)[0] > 100 * DIFFERENCE


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mixtral"])
def test_fused_bases_agree(kind, tmp_path):
    """Files in which q, k and v are one tensor: of the three, q and v are adapted, at different ranks and alphas."""
    write_gguf(make_model(kind), tmp_path / "fused.gguf", fused=True)
    options = {"target_modules": ["q_proj", "v_proj"], "alpha_pattern": {"v_proj": 3}, "rank_pattern": {"v_proj": 2}}
    theirs = write_adapter(kind, tmp_path / "adapter", **options)
    info = convert_peft(tmp_path / "adapter", tmp_path / "f32.gguf", base=tmp_path / "fused.gguf", dtype="f32")
    assert "attn_qkv" in info.target_modules
    ours = our_logits(tmp_path / "fused.gguf", tmp_path / "f32.gguf")
    assert agree(ours, theirs), distance(ours, theirs)


# -- the comparison itself can fail -------------------------------------------------------------------------------


def broken(kind, model, tmp_path, **options):
    """Whether the logits still agree, under whatever was broken."""
    theirs = write_adapter(kind, tmp_path / "adapter", **options)
    convert_peft(tmp_path / "adapter", tmp_path / "f32.gguf", base=model, dtype="f32")
    return not agree(our_logits(model, tmp_path / "f32.gguf"), theirs)


def test_a_wrong_alpha_is_seen(kind, model, tmp_path, monkeypatch):
    """Taking rsLoRA for plain LoRA, and a pattern of alphas not looked at."""
    monkeypatch.setattr(PeftConfig, "alpha_of", lambda self, module: self.alpha)
    assert broken(kind, model, tmp_path, **VARIANTS["rslora"])
    assert broken(kind, model, tmp_path, **VARIANTS["patterns"])


def test_wrong_rows_are_seen(kind, model, tmp_path, monkeypatch):
    """Models whose q and k are reordered, taken for others, and the other way round."""
    architecture = MODELS[kind][0]
    wrong = ARCHITECTURES[architecture]._replace(interleaved_rope=not ARCHITECTURES[architecture].interleaved_rope)
    monkeypatch.setitem(ARCHITECTURES, architecture, wrong)
    assert broken(kind, model, tmp_path) == (kind != "phi3")  # whose q and k are one matrix, which no rule of these names


@pytest.mark.parametrize("kind", PARAMETERS, indirect=True)
def test_exchanged_experts_are_seen(kind, model, tmp_path, monkeypatch):
    """Gate taken for up, and up for gate."""
    monkeypatch.setitem(factor_mapping._PARAMETERS, "gate_up_proj", ("up_proj", "gate_proj"))
    assert broken(kind, model, tmp_path)
