"""Several adapters become one: concatenated, summed, or summed and cut to a rank."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llamafu.adapters.factors import factors, names, read_alike, strength, targets
from llamafu.adapters.methods import METHODS
from llamafu.adapters.pruning import blend
from llamafu.adapters.write import refuse_source, write_adapter
from llamafu.errors import LoraIncompatibleError

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from llamafu.adapters.factors import Factors
    from llamafu.adapters.file import AdapterFile
    from llamafu.adapters.info import AdapterInfo
    from llamafu.adapters.write import Origin

_BASE_KEYS = ("name", "author", "version", "organization", "url", "doi", "uuid", "repo_url")
_WEIGHT_MAX = 1e30  # far above any use, and far below where float64 arithmetic on it could overflow
_SEEDS = 1 << 64
_F16_MAX = float(np.finfo(np.float16).max)


def merge_adapters(
    adapters: Mapping[str | os.PathLike[str], float],
    output: str | os.PathLike[str],
    *,
    method: str = "svd",
    rank: int | None = None,
    density: float | None = None,
    seed: int | None = None,
) -> AdapterInfo:
    """Combine the adapters {path: weight} into the new GGUF adapter `output`, and return its facts.

    With dW = strength x B A for each adapter and tensor, zero where it does not change the tensor:

    - "cat": exactly the sum of weight x dW, by concatenated factors; the ranks add up.
    - "svd": the nearest to that sum that has at most `rank` (default: the largest rank of the adapters).
    - "linear": sums the A and sums the B, each with the root of weight x strength; needs equal ranks.
    - "magnitude_prune", "ties", "dare_linear", "dare_ties": like linear, with the factors pruned first to the share
      `density` of their values; ties ones drop what goes against the sign of the sum and average the rest. `seed` makes
      the random choice of the dare ones repeatable.

    Negative weights subtract (in "linear" and the four by the sign of A). Scale 1 applies the result. Its values are F16
    if all those of the sources are F16 and they fit, otherwise F32; its metadata name sources, weights and method.

    Raises:
        ValueError: an unknown method, an option that the method does not take or lacks, a weight that is no finite
            number, no adapter, or an `output` that is one of the sources.
        LoraIncompatibleError: the adapters differ in architecture or sizes, one is an aLoRA, or ranks differ where they
            must not.
        InvalidAdapterFileError, LoraLoadError: a source cannot be read or is damaged.
        OSError: `output` cannot be written. On any error there is no new file.

    """
    _check(adapters, method, {"rank": rank, "density": density, "seed": seed})
    weights = [float(weight) for weight in adapters.values()]
    output = Path(output)
    files = read_alike(adapters)
    refuse_source(output, (file.path for file in files))
    _refuse_activated(files)
    if method not in ("cat", "svd"):
        _refuse_unequal_ranks(files, method)
    random = np.random.default_rng(seed)
    widest = rank or max(file.info.rank for file in files)
    merged: dict[str, Factors] = {}
    for name in targets(files):
        parts, own = [], []
        for weight, file in zip(weights, files, strict=True):
            if pair := factors(file, name):
                parts.append(pair)
                own.append(weight * strength(file, name))
        if method == "cat":
            merged[name] = _concatenated(parts, own)
        elif method == "svd":
            merged[name] = _truncated(*_concatenated(parts, own), widest)
        else:
            merged[name] = _blended(parts, own, method, density or 1.0, random)
    # One alpha serves all tensors: where the rank is smaller, libllama's alpha / rank is larger, and B makes up for it.
    alpha = max(b.shape[-1] for _, b in merged.values())
    merged = {name: (a, b * (b.shape[-1] / alpha)) for name, (a, b) in merged.items()}
    options = {"rank": rank, "density": density, "seed": seed}
    origin: dict[str, Origin] = {
        **_common_base(files),
        "llamafu.merge.method": method,
        "llamafu.merge.names": names(files),
        "llamafu.merge.digests": [file.digest for file in files],
        "llamafu.merge.weights": weights,
        **{f"llamafu.merge.{key}": value for key, value in options.items() if value is not None},
    }
    return write_adapter(
        output,
        merged,
        architecture=files[0].info.architecture,
        alpha=float(alpha),
        metadata=origin,
        dtype="F16" if _fits_f16(files, merged) else "F32",
    )


def _check(adapters: Mapping[str | os.PathLike[str], float], method: str, options: Mapping[str, float | None]) -> None:
    if method not in METHODS:
        message = f"there is no method {method!r}; there are {', '.join(METHODS)}"
        raise ValueError(message)
    legal = METHODS[method]
    for name, value in options.items():
        if value is not None and name not in legal:
            users = ", ".join(other for other, takes in METHODS.items() if name in takes)
            message = f"{name}={value!r} does nothing in the method {method!r}; it is for {users}"
            raise ValueError(message)
    rank, density, seed = options["rank"], options["density"], options["seed"]
    if rank is not None and rank < 1:
        message = f"the rank is {rank}; it must be at least 1"
        raise ValueError(message)
    if seed is not None and not 0 <= seed < _SEEDS:
        message = f"the seed is {seed}; it must be at least 0 and below 2**64"
        raise ValueError(message)
    if "density" in legal and (density is None or not 0 < density <= 1):
        message = f"the density is {density}; the method {method!r} needs one above 0 and at most 1, such as 0.5"
        raise ValueError(message)
    if not adapters:
        message = "there is no adapter to merge; give at least one as {path: weight}"
        raise ValueError(message)
    for path, weight in adapters.items():
        if not abs(weight) <= _WEIGHT_MAX:
            message = f"the weight of {path} is {weight}; it must be finite and at most {_WEIGHT_MAX:g} either way"
            raise ValueError(message)


def _refuse_activated(files: Sequence[AdapterFile]) -> None:
    problems = tuple(f"{file.path} is an activated adapter (aLoRA)" for file in files if file.info.invocation_tokens)
    if problems:
        message = f"{'; '.join(problems)}: it acts from its invocation tokens on only, which a sum cannot"
        raise LoraIncompatibleError(message, problems=problems)


def _refuse_unequal_ranks(files: Sequence[AdapterFile], method: str) -> None:
    ranks: dict[str, set[int]] = {}
    for file in files:
        for tensor in file.info.tensors:
            ranks.setdefault(tensor.name, set()).add(tensor.rank)
    problems = tuple(f"{name} has the ranks {sorted(found)}" for name, found in ranks.items() if len(found) > 1)
    if problems:
        message = f"the method {method!r} needs equal ranks, and {problems[0]}; the methods cat and svd take any"
        raise LoraIncompatibleError(message, problems=problems)


def _concatenated(parts: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """Stack the factors so that their product is the weighted sum, its weight shared evenly by A and B."""
    roots, signed = _roots(weights)
    a = np.concatenate([a * root for (a, _), root in zip(parts, signed, strict=True)], axis=-2)
    return a, np.concatenate([b * root for (_, b), root in zip(parts, roots, strict=True)], axis=-1)


def _truncated(a: NDArray[np.float64], b: NDArray[np.float64], rank: int) -> Factors:
    """Return factors of the best approximation of B A of at most this rank: the SVD of the small core between two QRs."""
    left, left_core = np.linalg.qr(b)
    right, right_core = np.linalg.qr(np.swapaxes(a, -1, -2))
    u, sizes, v = np.linalg.svd(left_core @ np.swapaxes(right_core, -1, -2), full_matrices=False)
    roots = np.sqrt(sizes[..., :rank])
    return (
        roots[..., :, None] * (v[..., :rank, :] @ np.swapaxes(right, -1, -2)),
        (left @ u[..., :rank]) * roots[..., None, :],
    )


def _blended(
    parts: Sequence[Factors], weights: Sequence[float], method: str, density: float, random: np.random.Generator
) -> Factors:
    """Combine A and B apart from each other, each with the root of its weight; A has the weight's sign."""
    roots, signed = _roots(weights)
    a = blend([a for a, _ in parts], signed, method=method, density=density, random=random)
    return a, blend([b for _, b in parts], roots, method=method, density=density, random=random)


def _roots(weights: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return what each of two factors is multiplied by for their product to have its weight: without and with the sign."""
    roots = [math.sqrt(abs(weight)) for weight in weights]
    return roots, [math.copysign(root, weight) for root, weight in zip(roots, weights, strict=True)]


def _common_base(files: Sequence[AdapterFile]) -> dict[str, Origin]:
    """Return what the headers say of the base model, if all say the same."""
    found = []
    for file in files:
        keys = [f"general.base_model.0.{key}" for key in _BASE_KEYS]
        found.append({key: value for key in keys if isinstance(value := file.info.metadata.get(key), str)})
    if not found[0] or any(other != found[0] for other in found):
        return {}
    return {"general.base_model.count": 1, **found[0]}


def _fits_f16(files: Sequence[AdapterFile], merged: Mapping[str, Factors]) -> bool:
    if any(tensor.dtype != "F16" for file in files for tensor in file.info.tensors):
        return False
    return all(float(np.abs(matrix).max()) <= _F16_MAX for pair in merged.values() for matrix in pair)
