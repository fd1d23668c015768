"""Baking into a 1B-class Q4_0 model: Llamafu against llama-export-lora followed by llama-quantize, in turn.

    python bench/bake.py [--tools FOLDER]

FOLDER (or LLAMAFU_BENCH_TOOLS) holds both programs; without one they are compiled from their sdist, once. Model and
adapter are random and made here. Peak memory is that of the largest process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _conditions as conditions
import numpy as np
from _tools import find_tools
from gguf import GGMLQuantizationType, GGUFWriter

WIDTH, FEED, LAYERS, VOCABULARY, RANK = 2048, 8192, 16, 32000, 16
SHAPES = {
    "attn_q": (WIDTH, WIDTH),
    "attn_k": (512, WIDTH),
    "attn_v": (512, WIDTH),
    "attn_output": (WIDTH, WIDTH),
    "ffn_gate": (FEED, WIDTH),
    "ffn_up": (FEED, WIDTH),
    "ffn_down": (WIDTH, FEED),
}
Q4_0 = GGMLQuantizationType.Q4_0


def write_model(path: Path) -> None:
    random = np.random.default_rng(1)
    writer = GGUFWriter(path, "llama")
    for add, value in (
        (writer.add_block_count, LAYERS),
        (writer.add_embedding_length, WIDTH),
        (writer.add_feed_forward_length, FEED),
        (writer.add_head_count, 32),
        (writer.add_head_count_kv, 8),
        (writer.add_context_length, 2048),
        (writer.add_file_type, 2),
    ):
        add(value)
    writer.add_layer_norm_rms_eps(1e-5)
    shapes = {"token_embd.weight": (VOCABULARY, WIDTH), "output.weight": (VOCABULARY, WIDTH)}
    shapes |= {f"blk.{layer}.{name}.weight": shape for layer in range(LAYERS) for name, shape in SHAPES.items()}
    for name, (rows, width) in shapes.items():
        blocks = random.integers(0, 256, (rows, width // 32, 18), np.uint8)
        blocks[..., :2] = np.array([0.01], np.float16).view(np.uint8)
        writer.add_tensor(name, blocks.reshape(rows, -1), raw_dtype=Q4_0)
    for name in ("output_norm", *(f"blk.{i}.{kind}_norm" for i in range(LAYERS) for kind in ("attn", "ffn"))):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    finish(writer)


def write_adapter(path: Path) -> None:
    random = np.random.default_rng(2)
    writer = GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 32.0)
    for layer in range(LAYERS):
        for name, (rows, width) in SHAPES.items():
            for side, shape in (("a", (RANK, width)), ("b", (rows, RANK))):
                writer.add_tensor(f"blk.{layer}.{name}.weight.lora_{side}", np.float16(random.standard_normal(shape) * 0.05))
    finish(writer)


def finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def run(*command: str | Path) -> tuple[float, float]:
    """Seconds and peak memory in MB of one process."""
    began = time.perf_counter()
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        message = f"{command[0]} ended with status {process.returncode}"
        raise RuntimeError(message)
    return time.perf_counter() - began, usage.ru_maxrss / 1024


def main() -> int:
    """Print both sides; exit status 1 when a limit is passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tools", help="folder of llama-export-lora, llama-quantize")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--make", type=Path, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:
        write_model(arguments.make[0])
        write_adapter(arguments.make[1])
        return 0
    tools = find_tools(arguments.tools)
    if tools is None:
        print("== bake: skipped, there is nothing to measure against")
        return 0
    conditions.show(
        f"bake: rank {RANK} on all projections into a Q4_0 llama of {LAYERS} layers, {arguments.rounds} rounds, in turn"
    )
    ours: list[tuple[float, float]] = []
    theirs: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as room:
        model, adapter, half, out = (Path(room) / f"{name}.gguf" for name in ("model", "adapter", "half", "out"))
        # In a process of its own: peak memory of a child starts at what its parent had when it forked.
        subprocess.run([sys.executable, __file__, "--make", model, adapter], check=True)
        for _ in range(arguments.rounds):
            ours.append(run(sys.executable, "-m", "llamafu", "bake", "-m", model, "--lora", adapter, "-o", out))
            threads = str(os.cpu_count())
            export = run(tools / "llama-export-lora", "-m", model, "--lora", adapter, "-o", half, "-t", threads)
            quantise = run(tools / "llama-quantize", "--allow-requantize", "--pure", half, out, "q4_0", threads)
            theirs.append((export[0] + quantise[0], max(export[1], quantise[1])))
    for name, side in (("llamafu", ours), ("export + quantize", theirs)):
        print(f"   {name:18} {statistics.median(t for t, _ in side):6.2f} s, {max(m for _, m in side):6.0f} MB")
    fast = conditions.verdict("time", conditions.ratio([t for t, _ in ours], [t for t, _ in theirs]), 1.0, "x")
    extra = max(m for _, m in ours) - min(m for _, m in theirs)
    return 0 if conditions.verdict("memory over theirs", extra, 100, " MB") and fast else 1


if __name__ == "__main__":
    sys.exit(main())
