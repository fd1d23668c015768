"""Several adapters become one: concatenated, summed, or summed and cut to a rank."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from llamafu._util.atomic import demand_new, demand_parent, demand_place, whole_file
from llamafu.adapters.factors import factors, names, read_alike, strength, targets
from llamafu.adapters.file import check_adapter
from llamafu.adapters.gguf.base_model import model_files
from llamafu.adapters.gguf.writer import factor_bytes, refuse_source
from llamafu.adapters.merge.methods import METHODS, MergeMethod, check_options
from llamafu.adapters.merge.pruning import blend
from llamafu.adapters.merge.svd import truncated, truncated_dense
from llamafu.adapters.peft.convert import HUB_ID
from llamafu.adapters.peft.export import peft_form, write_folder
from llamafu.adapters.peft.folder import base_model_of
from llamafu.adapters.peft.source_names import KEYS
from llamafu.adapters.peft.storage_loss import MOST_LOST, narrowed, share_lost
from llamafu.errors import LoraIncompatibleError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Literal

    from numpy.typing import NDArray

    from llamafu.adapters.factors import Factors
    from llamafu.adapters.file import AdapterFile
    from llamafu.adapters.gguf.base_model import BaseModel
    from llamafu.adapters.gguf.writer import Field
    from llamafu.adapters.info import AdapterInfo

    Form = Literal["gguf", "peft"]

_BASE_KEYS = ("name", "author", "version", "organization", "url", "doi", "uuid", "repo_url")
_WEIGHT_MAX = 1e30  # far above any use, and far below where float64 arithmetic on it could overflow


class _MergeRecipe(NamedTuple):
    """What is to be done to every tensor."""

    method: MergeMethod
    rank: int
    """The largest that the svd methods may give."""
    density: float
    random: np.random.Generator

    def blend(self, parts: Iterable[NDArray[np.float64]], weights: Sequence[float]) -> NDArray[np.float64]:
        return blend(parts, weights, method=self.method, density=self.density, random=self.random)


def merge_adapters(
    adapters: Mapping[str | os.PathLike[str], float],
    output: str | os.PathLike[str],
    *,
    method: str = "svd",
    rank: int | None = None,
    density: float | None = None,
    seed: int | None = None,
    overwrite: bool = True,
) -> AdapterInfo:
    """Combine the adapters {path: weight} into the new adapter `output`, and return its facts.

    `output` is a GGUF file if its name ends in `.gguf`, otherwise a new PEFT folder. With dW = strength x B A for each
    adapter and tensor, zero where it does not change the tensor:

    - "cat": exactly the sum of weight x dW, by concatenated factors; the ranks add up.
    - "svd": the nearest to that sum that has at most `rank` (default: the largest rank of the adapters).
    - "magnitude_prune_svd", "ties_svd", "dare_linear_svd", "dare_ties_svd": likewise, of dW pruned to the share `density`
      of their values; ties ones drop what goes against the sign of the sum and average the rest. These build whole
      matrices, one tensor at a time: 8 x (adapters + 3) x out x in bytes at most.
    - "linear": sums the A and sums the B, each with the root of weight x strength; needs equal ranks.
    - "magnitude_prune", "ties", "dare_linear", "dare_ties": like linear, with A and B pruned instead of dW.

    `seed` makes the random choice of the dare ones repeatable. Negative weights subtract (in "linear" and its kind by the
    sign of A). Scale 1 applies the result. Its values are F16 if all those of the sources are and it loses at most 1 % of every
    tensor's change, otherwise F32; its metadata name sources, weights and method, and the share that was `lost`. The facts of a
    PEFT folder are those of its GGUF form.

    Raises:
        ValueError: an unknown method, an option that the method does not take or lacks, a weight that is no finite
            number, no adapter, or an `output` that is one of the sources.
        LoraIncompatibleError: the adapters differ in architecture or sizes, one is an aLoRA, ranks differ where they
            must not, or the result cannot be said in PEFT.
        InvalidAdapterFileError, LoraLoadError: a source cannot be read or is damaged.
        OSError: `output` cannot be written, or exists and is a folder to be written, or a file and `overwrite` is false. On any
            error there is no new file.

    """
    return merge_for_base(
        adapters,
        output,
        base=None,
        form=form_of(output),
        method=method,
        rank=rank,
        density=density,
        seed=seed,
        overwrite=overwrite,
    )


def merge_for_base(
    adapters: Mapping[str | os.PathLike[str], float],
    output: str | os.PathLike[str],
    *,
    base: BaseModel | None,
    form: Form,
    method: str,
    rank: int | None,
    density: float | None,
    seed: int | None,
    overwrite: bool = True,
    report: Callable[[str, float], None] = lambda _name, _share: None,
) -> AdapterInfo:
    """Combine like `merge_adapters`; with the `base` model, sources may be PEFT folders too, and any result can be one.

    All sources must fit `base`, or LoraIncompatibleError is raised. `report` is called after every tensor with its name
    and the share (0 to 1) that is done.
    """
    check_options(method, rank=rank, density=density, seed=seed)
    _check_weights(adapters)
    weights = [float(weight) for weight in adapters.values()]
    output = Path(output)
    refuse_source(output, adapters)
    if base is not None:
        refuse_source(output, model_files(base), what="files of the base model")
    files = read_alike(adapters, base)
    if form == "gguf":
        demand_parent(output)
        demand_place(output, overwrite=overwrite)
    _refuse_activated(files)
    if METHODS[method].needs_equal_ranks:
        _refuse_unequal_ranks(files, method)
    if form == "peft":
        demand_new(output)
        for file in files:
            peft_form(file, base)
    widest = rank or max(file.info.rank for file in files)
    recipe = _MergeRecipe(METHODS[method], widest, density or 1.0, np.random.default_rng(seed))
    merged: dict[str, Factors] = {}
    changed = targets(files)
    for name in changed:
        merged[name] = _merged(name, files, weights, recipe)
        report(name, len(merged) / len(changed))
    # One alpha serves all tensors: where the rank is smaller, alpha / rank is larger, and B makes up for it.
    alpha = max(b.shape[-1] for _, b in merged.values())
    merged = {name: (a, b * (b.shape[-1] / alpha)) for name, (a, b) in merged.items()}
    options = {
        "rank": None if rank is None else np.uint64(rank),
        "density": None if density is None else np.float64(density),
        "seed": None if seed is None else np.uint64(seed),
    }
    origin: dict[str, Field] = {
        **_common_base(files),
        **_common_names(files),
        "llamafu.merge.method": method,
        "llamafu.merge.names": names(files),
        "llamafu.merge.digests": [file.digest for file in files],
        "llamafu.merge.weights": np.array(weights),
        **{f"llamafu.merge.{key}": value for key, value in options.items() if value is not None},
    }
    dtype, lost = _type(files, merged)
    content = factor_bytes(
        merged,
        architecture=files[0].info.architecture,
        alpha=float(alpha),
        metadata={**origin, "llamafu.merge.lost": np.float64(lost)},
        dtype=dtype,
    )
    file = check_adapter(content, output)
    if form == "peft":
        write_folder(file, output, base)
    else:
        with whole_file(output, overwrite=overwrite) as unfinished:
            unfinished.write_bytes(content)
    return file.info


def form_of(output: str | os.PathLike[str]) -> Form:
    """Tell what to write by the name of the output."""
    return "gguf" if Path(output).suffix.lower() == ".gguf" else "peft"


def _check_weights(adapters: Mapping[str | os.PathLike[str], float]) -> None:
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
        message = f"the method {method!r} needs equal ranks, and {problems[0]}; cat and all svd methods take any"
        raise LoraIncompatibleError(message, problems=problems)


def _merged(name: str, files: Sequence[AdapterFile], weights: Sequence[float], recipe: _MergeRecipe) -> Factors:
    """Return the result's factors of one tensor, with the strength 1, at 64 bits."""
    using = [(file, weight) for file, weight in zip(files, weights, strict=True) if name in file.pairs]
    parts = [pair for file, _ in using if (pair := factors(file, name)) is not None]
    strengths = [strength(file, name) for file, _ in using]
    shares = [weight * one for (_, weight), one in zip(using, strengths, strict=True)]
    if recipe.method.sums == "concatenated":
        a, b = _concatenated(parts, shares)
        return truncated(a, b, recipe.rank) if recipe.method.truncates else (a, b)
    if recipe.method.sums == "factors":
        return _blended(parts, shares, recipe)
    return _pruned(parts, strengths, [weight for _, weight in using], recipe)


def _concatenated(parts: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """Stack the factors so that their product is the weighted sum, its weight shared evenly by A and B."""
    roots, signed = _roots(weights)
    a = np.concatenate([a * root for (a, _), root in zip(parts, signed, strict=True)], axis=-2)
    return a, np.concatenate([b * root for (_, b), root in zip(parts, roots, strict=True)], axis=-1)


def _pruned(parts: Sequence[Factors], strengths: Sequence[float], weights: Sequence[float], recipe: _MergeRecipe) -> Factors:
    """Blend the whole dW, one matrix at a time, and cut what comes out to the rank."""
    experts = parts[0][0].shape[:-2]
    found = []
    for expert in np.ndindex(experts):
        changes = (one * (b[expert] @ a[expert]) for (a, b), one in zip(parts, strengths, strict=True))
        found.append(truncated_dense(recipe.blend(changes, weights), recipe.rank))
    a, b = (np.reshape(side, (*experts, *side[0].shape)) for side in zip(*found, strict=True))
    return a, b


def _blended(parts: Sequence[Factors], weights: Sequence[float], recipe: _MergeRecipe) -> Factors:
    """Combine A and B apart from each other, each with the root of its weight; A has the weight's sign."""
    roots, signed = _roots(weights)
    a = recipe.blend([a for a, _ in parts], signed)
    return a, recipe.blend([b for _, b in parts], roots)


def _roots(weights: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return what each of two factors is multiplied by for their product to have its weight: without and with the sign."""
    roots = [math.sqrt(abs(weight)) for weight in weights]
    return roots, [math.copysign(root, weight) for root, weight in zip(roots, weights, strict=True)]


def _common_base(files: Sequence[AdapterFile]) -> dict[str, Field]:
    """Return what the headers say of the base model, if all say the same."""
    found: list[dict[str, Field]] = []
    for file in files:
        keys = [f"general.base_model.0.{key}" for key in _BASE_KEYS]
        found.append({key: value for key in keys if isinstance(value := file.info.metadata.get(key), str)})
    if not found[0] or any(other != found[0] for other in found):
        return {}
    named = {base_model_of(file.path) for file in files if file.path.is_dir()}
    if len(named) == 1 and (hub := named.pop()) and HUB_ID.fullmatch(hub):
        found[0].setdefault("general.base_model.0.repo_url", f"https://huggingface.co/{hub}")
    return {"general.base_model.count": np.uint32(1), **found[0]}


def _common_names(files: Sequence[AdapterFile]) -> dict[str, Field]:
    """Return what the sources' model calls its decoder, if they all say the same."""
    found = [{key: value for key in KEYS if isinstance(value := file.info.metadata.get(key), str)} for file in files]
    named = [one for one in found if one]
    return {**named[0]} if named and all(one == named[0] for one in named) else {}


def _type(files: Sequence[AdapterFile], merged: Mapping[str, Factors]) -> tuple[Literal["F16", "F32"], float]:
    """Choose the type of the result, and return the largest share of a tensor's change that it loses."""
    is_half = all(tensor.dtype == "F16" for file in files for tensor in file.info.tensors)
    if is_half and (lost := _lost(merged, "<f2")) <= MOST_LOST:
        return "F16", lost
    return "F32", _lost(merged, "<f4")


def _lost(merged: Mapping[str, Factors], dtype: str) -> float:
    return max(share_lost((a, b), (narrowed(a, dtype), narrowed(b, dtype))) for a, b in merged.values())
