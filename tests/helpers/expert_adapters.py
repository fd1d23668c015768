"""Saves adapters of experts, and what PEFT adds to the weights when it merges them, with whatever PEFT runs this.

    python expert_adapters.py FOLDER

Not a test: `test_peft_experts.py` runs it with the newest PEFT and with 0.18, in an environment of its own.
"""

import itertools
import sys
from pathlib import Path

import numpy as np
import peft
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

KINDS = {"mixtral": "intermediate_size", "qwen3_moe": "moe_intermediate_size"}
WIDES = (96, 32)
"""Of an expert: with the second one, gate and up together are as wide as the model."""
PARAMETERS = (("gate_up_proj",), ("down_proj",), ("gate_up_proj", "down_proj"), ("down_proj", "gate_up_proj"))
CASES = [
    (kind, wide, order, rslora)
    for kind, wide, order in itertools.product(KINDS, WIDES, PARAMETERS)
    for rslora in ((False, True) if order == PARAMETERS[2] else (False,))
]
EXPERTS = 3


def folder_of(root, kind, wide, order, rslora):
    """Return where a case's adapter lies."""
    return root / "-".join([kind, str(wide), *order, *(["rslora"] if rslora else [])])


def make_model(kind, wide):
    torch.manual_seed(3)
    sizes = {"hidden_size": 64, "vocab_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    experts = {"num_experts": EXPERTS, "num_local_experts": EXPERTS, "num_experts_per_tok": 2, KINDS[kind]: wide}
    config = AutoConfig.for_model(kind, **sizes, head_dim=16, tie_word_embeddings=False, **experts)
    return AutoModelForCausalLM.from_config(config).float()


def save(root, kind, wide, order, rslora):
    """Save the model's configuration, the adapter, and the change of every stack of experts, (experts, out, in)."""
    folder = folder_of(root, kind, wide, order, rslora)
    model = make_model(kind, wide)
    before = {name: tensor.double().clone() for name, tensor in model.state_dict().items() if ".experts." in name}
    names = [f"mlp.experts.{name}" for name in order]
    config = LoraConfig(r=4, lora_alpha=6, target_modules=[], target_parameters=names, use_rslora=rslora, lora_dropout=0.0)
    adapted = get_peft_model(model, config)
    stream = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=stream))
    adapted.save_pretrained(folder)
    model.config.save_pretrained(root / f"{kind}-{wide}")
    merged = adapted.merge_and_unload().state_dict()
    np.savez(folder / "changes.npz", **{name: (merged[name].double() - old).numpy() for name, old in before.items()})


def main():
    root = Path(sys.argv[1])
    for case in CASES:
        save(root, *case)
    (root / "version").write_text(peft.__version__)


if __name__ == "__main__":
    main()
