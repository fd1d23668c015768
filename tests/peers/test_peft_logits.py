"""Adapters of PEFT, loaded as they are, against PEFT on torch: a tiny random model of every architecture in the table.

Everything is F32 (weights, KV cache) and flash attention is off. The factors are rounded to F16 before PEFT computes
with them, since that is what a folder becomes when it is loaded.
"""

import json
import math

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_hf import MODELS, make_model, write_gguf

from llamafu import Llamafu
from llamafu.adapters import convert_peft
from llamafu.adapters.architectures import ARCHITECTURES

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
        adapters = {} if folder is None else {llm._registry.native(llm.load_lora_adapter(folder)): 1.0}
        context = llm._instance.context
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
    theirs = write_adapter(kind, tmp_path / "adapter", **VARIANTS[variant])
    convert_peft(tmp_path / "adapter", tmp_path / "f32.gguf", base=model, dtype="f32")
    ours = our_logits(model, tmp_path / "f32.gguf")
    print(kind, variant, *distance(ours, theirs), "base", *distance(our_logits(model, None), theirs))
    assert agree(ours, theirs), distance(ours, theirs)
