"""Conversion of a PEFT adapter on seven modules, against llama.cpp's `convert_lora_to_gguf.py`, in turn.

    python bench/convert.py

Both are started as their users start them: a whole process each, start-up included. The adapter is of rank 8 on all linear
layers of SmolLM2-135M. The other side needs torch and transformers: `make test-peers` installs them. Skipped without.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _conditions as conditions
import numpy as np

ROUNDS = 5
LIMIT = 1 / 8
LAYERS, HIDDEN, KV, WIDE, RANK = 30, 576, 192, 1536, 8
SIZES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, KV),
    "self_attn.v_proj": (HIDDEN, KV),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (HIDDEN, WIDE),
    "mlp.up_proj": (HIDDEN, WIDE),
    "mlp.down_proj": (WIDE, HIDDEN),
}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": WIDE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "vocab_size": 49152,
}


def write_adapter(folder: Path) -> None:
    """Write a random PEFT adapter, F32 as PEFT saves it."""
    from safetensors.numpy import save_file

    random = np.random.default_rng(1)
    tensors = {}
    for layer in range(LAYERS):
        for module, (n_in, n_out) in SIZES.items():
            stem = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{stem}.lora_A.weight"] = random.standard_normal((RANK, n_in), np.float32)
            tensors[f"{stem}.lora_B.weight"] = random.standard_normal((n_out, RANK), np.float32)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": 16}))


def run(command: list[str]) -> tuple[float, float]:
    """Run a process to its end: seconds, and its peak of resident memory in MB."""
    began = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        pid = subprocess.Popen(command, stdout=said, stderr=said).pid
        _, status, usage = os.wait4(pid, 0)
        took = time.perf_counter() - began
        if status:
            said.seek(0)
            message = f"{' '.join(command)} failed: {said.read().decode(errors='replace')[-2000:]}"
            raise RuntimeError(message)
    return took, usage.ru_maxrss / 1024


def main() -> int:
    """Print both sides; exit status 1 when the ratio is over its limit."""
    if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers", "safetensors")):
        print("== convert: skipped, torch and transformers are not installed in this environment (`make test-peers` does that)")
        return 0
    sys.path.insert(0, str(conditions.ROOT / "scripts"))
    from upstream_tree import UpstreamError, upstream_tree

    from llamafu.examples.model import example_model

    try:
        upstream = upstream_tree()
    except UpstreamError as error:
        print(f"== convert: skipped, {error}")
        return 0
    conditions.show(f"convert: 7 modules x {LAYERS} layers, rank {RANK}; {ROUNDS} rounds of fresh processes, in turn")
    model = example_model()
    with tempfile.TemporaryDirectory(prefix="llamafu-bench-") as name:
        room = Path(name)
        write_adapter(room / "adapter")
        (room / "base").mkdir()
        (room / "base" / "config.json").write_text(json.dumps(CONFIG))
        ours, theirs = room / "ours.gguf", room / "theirs.gguf"
        llamafu = [sys.executable, "-m", "llamafu", "convert", str(room / "adapter"), "-o", str(ours), "--base", str(model)]
        converter = [sys.executable, str(upstream / "convert_lora_to_gguf.py"), "--base", str(room / "base")]
        sides = {
            "llamafu": llamafu,
            "upstream": [*converter, "--outtype", "f16", "--outfile", str(theirs), str(room / "adapter")],
        }
        rows: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
        for _ in range(ROUNDS):
            for side, command in sides.items():
                rows[side].append(run(command))
        demand_same(ours, theirs)
    times = {side: [took for took, _ in values] for side, values in rows.items()}
    for side, values in rows.items():
        peak = statistics.median(peak for _, peak in values)
        print(f"   {side:9} {conditions.milliseconds(times[side])}, peak {peak:.0f} MB")
    ratio = conditions.ratio(times["llamafu"], times["upstream"])
    print(f"   upstream takes {1 / ratio:.1f} times as long")
    return 0 if conditions.verdict("llamafu / upstream", ratio, LIMIT, "x") else 1


def demand_same(ours: Path, theirs: Path) -> None:
    """Make sure that both did the same work: the same tensors, bit for bit."""
    from gguf import GGUFReader

    first, second = ({tensor.name: tensor.data.tobytes() for tensor in GGUFReader(path).tensors} for path in (ours, theirs))
    assert first == second, "the two converters disagree"  # noqa: S101 - a benchmark of a wrong conversion is worth nothing


if __name__ == "__main__":
    sys.exit(main())
