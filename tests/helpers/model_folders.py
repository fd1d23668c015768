"""Folders of models of every architecture, and adapters for them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from gguf import GGUFReader
from tiny_model import Weights

from helpers.peft_folders import write_folder
from llamafu.adapters import BaseModel, read_adapter

HIDDEN, KV, WIDE, HEADS, KV_HEADS, VOCABULARY, EXPERTS, RANK = 64, 32, 96, 4, 2, 317, 4, 4


ATTENTION = {
    "self_attn.q_proj": ("attn_q", HIDDEN, HIDDEN),
    "self_attn.k_proj": ("attn_k", HIDDEN, KV),
    "self_attn.v_proj": ("attn_v", HIDDEN, KV),
    "self_attn.o_proj": ("attn_output", HIDDEN, HIDDEN),
}


DENSE = ATTENTION | {
    "mlp.gate_proj": ("ffn_gate", HIDDEN, WIDE),
    "mlp.up_proj": ("ffn_up", HIDDEN, WIDE),
    "mlp.down_proj": ("ffn_down", WIDE, HIDDEN),
}


FUSED = {
    "self_attn.qkv_proj": ("attn_qkv", HIDDEN, HIDDEN + 2 * KV),
    "self_attn.o_proj": ("attn_output", HIDDEN, HIDDEN),
    "mlp.gate_up_proj": ("ffn_up", HIDDEN, 2 * WIDE),
    "mlp.down_proj": ("ffn_down", WIDE, HIDDEN),
}


MIXTRAL = {
    "block_sparse_moe.gate": ("ffn_gate_inp", HIDDEN, EXPERTS),
    "block_sparse_moe.experts.*.w1": ("ffn_gate_exps", HIDDEN, WIDE),
    "block_sparse_moe.experts.*.w2": ("ffn_down_exps", WIDE, HIDDEN),
    "block_sparse_moe.experts.*.w3": ("ffn_up_exps", HIDDEN, WIDE),
}


QWEN_EXPERTS = {
    "mlp.gate": ("ffn_gate_inp", HIDDEN, EXPERTS),
    "mlp.experts.*.gate_proj": ("ffn_gate_exps", HIDDEN, WIDE),
    "mlp.experts.*.down_proj": ("ffn_down_exps", WIDE, HIDDEN),
    "mlp.experts.*.up_proj": ("ffn_up_exps", HIDDEN, WIDE),
}


MODELS = {  # transformers' model type: (GGUF's architecture, {PEFT's module: (GGUF's, in, out)})
    "llama": ("llama", DENSE),
    "mixtral": ("llama", ATTENTION | MIXTRAL),
    "qwen2": ("qwen2", DENSE),
    "qwen3": ("qwen3", DENSE),
    "qwen3_moe": ("qwen3moe", ATTENTION | QWEN_EXPERTS),
    "gemma2": ("gemma2", DENSE),
    "gemma3_text": ("gemma3", DENSE),
    "phi3": ("phi3", FUSED),
    "granite": ("granite", DENSE),
}


GOLDENS = {
    "llama": "b06221b1a2ec2652a8cddfdf19fcffb9dfd92e28df915266678a704c3dbc1acf",
    "mixtral": "b40a6ad02a1338ae5eff948cd4b258ae8129d125fe6217aab8015ff1e441f0c9",
    "qwen2": "a16b80924a91618986ff22ca7016b307f0ce548c8e192a2e05138a027b8fc751",
    "qwen3": "a16b80924a91618986ff22ca7016b307f0ce548c8e192a2e05138a027b8fc751",
    "qwen3_moe": "0b2bd36d7ab99c87c5c99e79c38eab7a79f66ae98b4ddb63c62a84bb67de444b",
    "gemma2": "a16b80924a91618986ff22ca7016b307f0ce548c8e192a2e05138a027b8fc751",
    "gemma3_text": "a16b80924a91618986ff22ca7016b307f0ce548c8e192a2e05138a027b8fc751",
    "phi3": "359d6d80b73079ec34289d534ab1c76d2a13fd9b24de8c35190c537240aff3bd",
    "granite": "b06221b1a2ec2652a8cddfdf19fcffb9dfd92e28df915266678a704c3dbc1acf",
}


def modules_of(kind, layers=2):
    """Return every linear layer by its full name, as (GGUF's tensor, its expert or None, in, out)."""
    found = {}
    for layer in range(layers):
        for module, (target, n_in, n_out) in MODELS[kind][1].items():
            for expert in range(EXPERTS) if "*" in module else [None]:
                name = f"model.layers.{layer}.{module.replace('*', str(expert))}"
                found[name] = (f"blk.{layer}.{target}.weight", expert, n_in, n_out)
    return found


def arrays_of(kind, ranks=lambda _: RANK):
    """Random factors for every linear layer, by PEFT's names."""
    stream, arrays = Weights(3), {}
    for module, (_, _, n_in, n_out) in modules_of(kind).items():
        arrays[f"base_model.model.{module}.lora_A.weight"] = stream.uniform((ranks(module), n_in), 1.0)
        arrays[f"base_model.model.{module}.lora_B.weight"] = stream.uniform((n_out, ranks(module)), 1.0)
    return arrays


def base_of(kind):
    """Return the header of the model that the adapters are for."""
    architecture = MODELS[kind][0]
    tensors = {"token_embd.weight": (HIDDEN, VOCABULARY), "output.weight": (HIDDEN, VOCABULARY)}
    for name, expert, n_in, n_out in modules_of(kind).values():
        tensors[name] = (n_in, n_out) if expert is None else (n_in, n_out, EXPERTS)
    metadata = {
        f"{architecture}.attention.head_count": HEADS,
        f"{architecture}.attention.head_count_kv": KV_HEADS,
        f"{architecture}.expert_count": EXPERTS,
    }
    return BaseModel(Path("base.gguf"), "base", architecture, tensors, metadata)


def write_model_folder(kind, folder):
    return write_folder(folder, arrays_of(kind))


def tensor_digest(path):
    """SHA-256 of names, types, shapes and data, by name: experts come in another order from upstream."""
    digest = hashlib.sha256()
    for tensor in sorted(GGUFReader(path).tensors, key=lambda tensor: tensor.name):
        digest.update(f"{tensor.name} {tensor.tensor_type.name} {[int(n) for n in tensor.shape]}\n".encode())
        digest.update(tensor.data.tobytes())
    return digest.hexdigest()


def changes(path):
    """Return dW of each base tensor as libllama computes it; experts in front."""
    file = read_adapter(path)
    strengths = {tensor.name: tensor.strength for tensor in file.info.tensors}
    return {name: strengths[name] * file.matrix(pair.b).astype("f8") @ file.matrix(pair.a) for name, pair in file.pairs.items()}
