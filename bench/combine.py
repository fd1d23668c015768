"""Combining: the SVD of two rank-16 adapters at 4096 x 4096, Llamafu from files to file, against PEFT in memory, in turn.

    python bench/combine.py

PEFT's `add_weighted_adapter(combination_type="svd")` takes the SVD of the whole matrix; `merge_adapters` that of the factors.
Both sides get the same factors and the same number of threads for their linear algebra. Skipped where PEFT is missing.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

THREADS = 2
for _name in ("OMP", "OPENBLAS", "MKL"):
    os.environ[f"{_name}_NUM_THREADS"] = str(THREADS)  # read when NumPy and torch load

import _conditions as conditions  # noqa: E402
import numpy as np  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE, RANK, ROUNDS, OURS_PER_ROUND = 4096, 16, 2, 9
LIMIT = 1 / 200
NAME = "blk.0.ffn_up.weight"
WEIGHTS = (0.7, 0.3)


def random_factors() -> list[tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(1)
    shapes = (RANK, SIZE), (SIZE, RANK)
    return [tuple(random.standard_normal(shape, np.float32) for shape in shapes) for _ in WEIGHTS]


def ours(pairs: list[tuple[np.ndarray, np.ndarray]], room: Path) -> Callable[[], object]:
    """Files of both adapters, and the call that makes the third."""
    from llamafu.adapters import merge_adapters
    from llamafu.adapters.writer import write_adapter

    paths = [room / f"{number}.gguf" for number in range(len(pairs))]
    for path, pair in zip(paths, pairs, strict=True):
        write_adapter(path, {NAME: pair}, architecture="llama", alpha=RANK, metadata={})
    return lambda: merge_adapters(dict(zip(paths, WEIGHTS, strict=True)), room / "sum.gguf", method="svd")


def theirs(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[Callable[[], object], Callable[[], np.ndarray]]:
    """Return the call that combines, and what gives the change that came out of the last one."""
    import peft
    import torch

    torch.set_num_threads(THREADS)
    model = torch.nn.Sequential(torch.nn.Linear(SIZE, SIZE, bias=False))
    config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["0"])
    wrapped = peft.get_peft_model(model, config, adapter_name="a0")
    wrapped.add_adapter("a1", config)
    layer = wrapped.base_model.model[0]
    for number, (a, b) in enumerate(pairs):
        layer.lora_A[f"a{number}"].weight.data = torch.from_numpy(a)
        layer.lora_B[f"a{number}"].weight.data = torch.from_numpy(b)

    def combine() -> None:
        if "sum" in wrapped.peft_config:
            wrapped.delete_adapter("sum")
        wrapped.add_weighted_adapter(["a0", "a1"], list(WEIGHTS), "sum", combination_type="svd")

    return combine, lambda: layer.get_delta_weight("sum").detach().numpy()


def main() -> int:
    """Print both sides; exit status 1 when Llamafu is not fast enough, or the results differ."""
    if any(importlib.util.find_spec(name) is None for name in ("torch", "peft")):
        print(
            '== combine: skipped, torch and PEFT are not installed in this environment; pip install -e ".[peers]" brings them'
        )
        return 0
    from llamafu.adapters import read_adapter

    conditions.show(
        f"combine: SVD of two rank-{RANK} adapters at {SIZE} x {SIZE}, {THREADS} BLAS threads on both sides, in turn"
    )
    pairs = random_factors()
    with tempfile.TemporaryDirectory() as folder:
        merge, (combine, result) = ours(pairs, Path(folder)), theirs(pairs)
        merge()  # imports
        times: dict[str, list[float]] = {"llamafu": [], "peft": []}
        for _ in range(ROUNDS):
            times["llamafu"] += conditions.in_turn({"llamafu": merge}, OURS_PER_ROUND)["llamafu"]
            times["peft"] += conditions.in_turn({"peft": combine}, 1)["peft"]
        file = read_adapter(Path(folder) / "sum.gguf")
        a, b = (file.matrix(entry) for entry in file.pairs[NAME])
        wanted = result()
        difference = float(np.abs(b @ a - wanted).max() / np.abs(wanted).max())
    for name, taken in times.items():
        print(f"   {name:8} {conditions.milliseconds(taken)}, {len(taken)} runs")
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    print(f"   {medians['peft'] / medians['llamafu']:.0f}x faster")
    held = conditions.verdict("llamafu / PEFT", medians["llamafu"] / medians["peft"], LIMIT, "x")
    print(f"   largest difference of dW, of its largest value: {difference:.1e} (limit 1e-4)")
    return 0 if held and difference <= 1e-4 else 1


if __name__ == "__main__":
    sys.exit(main())
