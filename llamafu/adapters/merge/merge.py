"""Several adapters become one: concatenated, summed, or summed and cut to a rank."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llamafu._util.arguments import check_numbers_by
from llamafu._util.atomic import demand_new, demand_parent, demand_place, whole_file
from llamafu.adapters.factors import read_compatible, targets
from llamafu.adapters.file import check_adapter
from llamafu.adapters.gguf.base_model import model_files
from llamafu.adapters.gguf.container import SUFFIX
from llamafu.adapters.merge.metadata import merge_metadata
from llamafu.adapters.merge.methods import METHODS, MergeOptions
from llamafu.adapters.merge.tensor_merger import TensorMerger
from llamafu.adapters.peft.export import peft_form, write_folder
from llamafu.adapters.peft.storage_loss import MOST_LOST, narrowed, share_lost
from llamafu.adapters.writer import factor_bytes, refuse_source
from llamafu.errors import LoraIncompatibleError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence
    from typing import Literal

    from llamafu.adapters.file import AdapterFile
    from llamafu.adapters.gguf.base_model import BaseModel
    from llamafu.adapters.info import AdapterInfo
    from llamafu.adapters.svd import Factors

    Form = Literal["gguf", "peft"]

_WEIGHT_MAX = 1e30  # far above any use, and far below where float64 arithmetic on it could overflow


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
    """Write the weighted sum of adapters as one new adapter, and return its facts.

    Scale 1 applies the result. Its values are F16 if all those of the sources are and that loses at most 1 % of every
    tensor's change, otherwise F32. Its metadata keys `llamafu.merge.*` name sources, weights, method and options, and the
    share of a tensor's change that the type lost.

    With dW = strength x B A for each adapter and tensor, 0 where it does not change the tensor, the methods are:

    - "cat": exactly the sum of weight x dW, by concatenated factors; the ranks add up.
    - "svd": the nearest to that sum that has at most `rank`.
    - "magnitude_prune_svd", "ties_svd", "dare_linear_svd", "dare_ties_svd": likewise, of dW pruned to the share `density`
      of their values: the largest ones, or with dare random ones. The ties methods then drop values against the sign of the
      sum, and average the rest. These build whole matrices, one tensor at a time: 8 x (adapters + 3) x out x in bytes.
    - "linear": sums the A and sums the B, each with the root of weight x strength.
    - "magnitude_prune", "ties", "dare_linear", "dare_ties": like linear, with A and B pruned instead of dW.

    Args:
        adapters: The weight of each adapter, by its path: GGUF files. Any number up to 1e30 either way; negative ones
            subtract (in "linear" and its kind by the sign of A).
        output: The adapter to write: a GGUF file if its name ends in `.gguf`, otherwise a new PEFT folder, whose facts
            are those of its GGUF form. It appears complete or not at all.
        method: One of the above. Default: "svd".
        rank: The largest rank of the result, from 1, for methods whose names end in svd. Default: the largest rank of the
            adapters.
        density: The share of values to keep, above 0 and at most 1. Required by the ties, dare and magnitude_prune methods.
        seed: Makes the random choice of the dare methods repeatable, from 0 to 2**64 - 1. Default: another one each time.
        overwrite: Whether a file at `output` may be replaced. Default: True.

    Raises:
        TypeError: `adapters` is no mapping to numbers.
        ValueError: an unknown method, an option that the method does not take or lacks, a weight that is no finite
            number, no adapter, or an `output` that is one of the sources.
        LoraIncompatibleError: the adapters differ in architecture or sizes, one is an aLoRA, ranks differ in a method that
            sums the factors, or the result cannot be said in PEFT.
        InvalidAdapterFileError, LoraLoadError: a source cannot be read or is damaged.
        OSError: `output` cannot be written, or exists and is a folder to be written, or a file and `overwrite` is false. On any
            error there is no new file.

    """
    options = MergeOptions(method=method, rank=rank, density=density, seed=seed)
    return merge_for_base(adapters, output, options, base=None, form=form_of(output), overwrite=overwrite)


def merge_for_base(
    adapters: Mapping[str | os.PathLike[str], float],
    output: str | os.PathLike[str],
    options: MergeOptions,
    *,
    base: BaseModel | None,
    form: Form,
    overwrite: bool = True,
    report: Callable[[str, float], None] = lambda _name, _share: None,
) -> AdapterInfo:
    """Merge like `merge_adapters`; with a `base` model sources may be PEFT folders, and results those of any architecture.

    Args:
        adapters: The weight of each adapter, by its path.
        output: The file or folder to write.
        options: Method, rank, density and seed.
        base: The model that all sources must fit, or LoraIncompatibleError is raised; None if they are GGUF files.
        form: What to write, whatever the name of `output` is.
        overwrite: Whether a file at `output` may be replaced. Default: True.
        report: Called after every tensor with its name and the share that is done, from 0 to 1.

    """
    _check_weights(adapters)
    weights = [float(weight) for weight in adapters.values()]
    output = Path(output)
    refuse_source(output, adapters)
    if base is not None:
        refuse_source(output, model_files(base), what="files of the base model")
    files = read_compatible(adapters, base)
    if form == "gguf":
        demand_parent(output)
        demand_place(output, overwrite=overwrite)
    _refuse_activated(files)
    method = METHODS[options.method]
    if method.needs_equal_ranks:
        _refuse_unequal_ranks(files, options.method)
    if form == "peft":
        demand_new(output)
        for file in files:
            peft_form(file, base)
    widest = options.rank or max(file.info.rank for file in files)
    random = np.random.default_rng(options.seed)
    merger = TensorMerger(files, weights, method, widest, options.density or 1.0, random)
    merged = _merged(merger, report)
    alpha = max(b.shape[-1] for _, b in merged.values())
    dtype, lost = _type(files, merged)
    content = factor_bytes(
        merged,
        architecture=files[0].info.architecture,
        alpha=float(alpha),
        metadata={**merge_metadata(files, weights, options), "llamafu.merge.lost": np.float64(lost)},
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
    """Return what to write by the name of `output`."""
    return "gguf" if Path(output).suffix.lower() == SUFFIX else "peft"


def _check_weights(adapters: Mapping[str | os.PathLike[str], float]) -> None:
    check_numbers_by("adapters", adapters, "{path: weight}")
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


def _merged(merger: TensorMerger, report: Callable[[str, float], None]) -> dict[str, Factors]:
    """Merge every tensor. One alpha serves all: B is scaled down where a smaller rank makes alpha / rank larger."""
    merged: dict[str, Factors] = {}
    changed = targets(merger.files)
    for name in changed:
        merged[name] = merger.merge(name)
        report(name, len(merged) / len(changed))
    alpha = max(b.shape[-1] for _, b in merged.values())
    return {name: (a, b * (b.shape[-1] / alpha)) for name, (a, b) in merged.items()}


def _type(files: Sequence[AdapterFile], merged: Mapping[str, Factors]) -> tuple[Literal["F16", "F32"], float]:
    """Return the type of the result, and the largest share of a tensor's change that it loses."""
    is_half = all(tensor.dtype == "F16" for file in files for tensor in file.info.tensors)
    if is_half and (lost := _lost(merged, "<f2")) <= MOST_LOST:
        return "F16", lost
    return "F32", _lost(merged, "<f4")


def _lost(merged: Mapping[str, Factors], dtype: str) -> float:
    return max(share_lost((a, b), (narrowed(a, dtype), narrowed(b, dtype))) for a, b in merged.values())
