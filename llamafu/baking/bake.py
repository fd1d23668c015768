"""`bake`: adapters merged into a base model for good.

It lies above `llamafu.adapters`, which exports it, because it encodes tensors with libllama's ggml where there is one.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from llamafu._native import cpu
from llamafu._native import library as native
from llamafu._native.ggml_codec import GgmlCodec
from llamafu._util.arguments import check_numbers_by
from llamafu._util.atomic import demand_place, whole_files
from llamafu._util.listing import listed
from llamafu.adapters.compatibility import check_compatibility
from llamafu.adapters.gguf.base_model import read_base
from llamafu.adapters.gguf.codec import NumpyCodec
from llamafu.adapters.gguf.ggml_type import GGMLType
from llamafu.adapters.gguf.shard import read_shards
from llamafu.adapters.reader import AdapterReader
from llamafu.baking.calibration_data import read_text
from llamafu.baking.job import BakeJob
from llamafu.baking.metadata import BakeMetadata
from llamafu.baking.options import BakeOptions
from llamafu.baking.outputs import demand_space, output_paths, refuse_sources
from llamafu.baking.overshoot import refuse_overshoot
from llamafu.baking.target_types import ENOUGH_KEPT, chosen_kinds, kinds_that_keep, type_changes
from llamafu.baking.writer import BakeRecipe
from llamafu.errors import (
    ErrorCode,
    InvalidScaleError,
    LibraryNotFoundError,
    LoraError,
    LoraIncompatibleError,
)
from llamafu.libraries import discovery

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from llamafu._native.library import Library
    from llamafu.adapters.file import AdapterFile
    from llamafu.adapters.gguf.base_model import BaseModel
    from llamafu.adapters.gguf.codec import Codec
    from llamafu.baking.options import Dtype
    from llamafu.baking.target_types import TypeChange

NOTHING_KEEPS_MORE = "no type keeps more: the changes are too small beside the model's values, or cancel one another"

logger = logging.getLogger("llamafu.baking")

_CHOOSING = 0.1  # share of the progress that measuring the types takes
_SCALE_MAX = 1e30  # as in `merge_adapters`: float64 arithmetic on it cannot overflow


class Baked(NamedTuple):
    """A baked model, and what became of the changes."""

    path: Path
    """Of its first file."""
    kept: float
    """The share of the changes that the result keeps: see `share_kept`; where it was calibrated, `Fidelity.kept`."""
    by_own: float
    """The share that the tensors' own types keep, as far as that was measured."""
    became: tuple[TypeChange, ...]
    """Tensors that got another type because their own keeps too little."""
    is_final: bool = False
    """Whether no other type keeps more: each tensor has one that keeps its change, or F32."""


def bake(  # longer than others for its list of parameters
    model: str | os.PathLike[str],
    adapters: Mapping[str | os.PathLike[str], float],
    output: str | os.PathLike[str],
    *,
    dtype: Dtype = "auto",
    calibration: str | os.PathLike[str] | None = None,
    least_kept: float = 0.0,
    overwrite: bool = True,
    library: str | os.PathLike[str] | None = None,
    n_threads: int | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> Path:
    """Write the GGUF model `output`: `model` with scale x strength x B A of every adapter added to its weights.

    Tensors that no adapter changes are copied byte for byte, as is the metadata, which gains keys `llamafu.bake.*`: the
    digests of source and adapters, the scales, the share of the changes that is kept (`llamafu.bake.N.kept`; below 0.9 a
    warning is logged) and the calibration text's name. A model in shards becomes as many shards.

    Memory is that of the adapters and a few megabytes, whatever the model is; with `calibration` also that of the model, of
    the changed tensors, and up to a quarter of the machine's.

    Args:
        model: The base model, a GGUF file; of a split one the first part.
        adapters: The scale of each adapter, by its path: GGUF files or PEFT folders. Any number up to 1e30 either way; 0
            leaves the adapter out. The factors of folders are added as they are, without rounding them to F16 first.
        output: The GGUF file to write. It appears complete or not at all.
        dtype: The type of the changed tensors. Coarse types round small changes away, so "auto" (the default) keeps their
            types where these keep 90 % of the changes in all; otherwise each tensor gets the coarsest of its type, Q8_0, F16
            and F32 that keeps 90 % of its own, and a warning names them. "keep" keeps the types whatever is lost. "f32",
            "f16", "bf16" or "q8_0" is given to all changed tensors.
        calibration: Keeps the types and more of the changes: Q4_0, Q4_1 and Q8_0 tensors are quantised one after another for
            the inputs that the model baked so far gives them on a text, so that the outputs come near those with the
            adapters on. The path of a UTF-8 text like what the model will read and write, or "auto": a sample of English
            and code, and what the model writes itself. `kept` is then measured on a held-out part of the text. Where it
            adds more noise than there is change, it is left out and a warning logged. Needs libllama, takes minutes.
            Default: None, rounding to the nearest.
        least_kept: The share of the changes, from 0 to 1, below which nothing is written. Default: 0.
        overwrite: Whether a file at `output` may be replaced. Default: True.
        library: The libllama that encodes the tensors, a file or folder. Default: the one that `Llamafu` would find; where
            there is none, the `gguf` package encodes what it can.
        n_threads: The number of threads, at least 1. Default: every CPU.
        on_progress: Called with the share that is done, from 0 to 1, in this thread.

    Returns:
        The path of the new model, of its first shard.

    Raises:
        TypeError: `adapters` is no mapping to numbers.
        ValueError: no adapter, an unknown dtype, an `output` that is one of the sources, a `calibration` that is too short or
            no text, or one together with a `dtype` that changes the types.
        InvalidScaleError: a scale that is not finite, or makes a change larger than any that can be meant (a ValueError too).
        LoraIncompatibleError: an adapter does not fit the model, or is an aLoRA.
        InvalidAdapterFileError, LoraLoadError, ModelLoadError: a source cannot be read or is damaged.
        LoraError: an adapter given twice, a type that cannot be written here or calibrated, a sum too large for its type,
            less kept than `least_kept`.
        LibraryNotFoundError, AbiMismatchError: `library`, or the one that `LLAMAFU_LIB` names, cannot be used.
        OSError: `output` cannot be written, would not fit on its disk, or exists and `overwrite` is false.

    On any error there is no new file.

    """
    options = BakeOptions(
        dtype=dtype,
        calibration=calibration,
        least_kept=least_kept,
        overwrite=overwrite,
        library=library,
        n_threads=n_threads,
        on_progress=on_progress,
    )
    return bake_for_report(model, adapters, output, options).path


def bake_for_report(
    model: str | os.PathLike[str],
    adapters: Mapping[str | os.PathLike[str], float],
    output: str | os.PathLike[str],
    options: BakeOptions,
) -> Baked:
    """Bake like `bake`, and return what was kept and which types changed."""
    _check_scales(adapters)
    text = None if options.calibration is None else read_text(options.calibration)
    base = read_base(model)
    shards = read_shards(base.path)
    outputs = output_paths(Path(output), base, shards)
    refuse_sources(outputs, shards, adapters)
    demand_place(*outputs, overwrite=options.overwrite)
    reader = AdapterReader(base, dtype="exact")
    files = [reader.read(path) for path in adapters]
    _check_adapters(files, base)
    uses = [(file, float(scale)) for file, scale in zip(files, adapters.values(), strict=True) if scale]
    refuse_overshoot(uses)
    library = _library(options.library)
    codec: Codec = NumpyCodec() if library is None else GgmlCodec(library)
    kinds = chosen_kinds(shards, uses, options.dtype, codec)
    recipe = BakeRecipe(uses, kinds, codec, options.n_threads or cpu.usable_cpus())
    on_progress = _never_back(options.on_progress or (lambda _: None))
    with whole_files(outputs, overwrite=options.overwrite) as unfinished:
        job = BakeJob(shards, unfinished, recipe, BakeMetadata(base, uses), on_progress)
        baked = _calibrated(job, outputs, options, library, text) or _rounded(job, outputs, options)
        if baked.kept < options.least_kept:
            left = f"{outputs[0]} was not written: only {baked.kept:.0%} of the changes would be left in it"
            advice = _advice(options, is_final=baked.is_final)
            message = f"{left}; {advice}, and least_kept=0 (--accept-loss) writes it all the same"
            raise LoraError(message)
    for change in baked.became:
        logger.warning("%s: %s, since these keep only %.0f%% of the changes", outputs[0], change, baked.by_own * 100)
    if baked.kept < ENOUGH_KEPT:
        message = "%s: rounding kept only %.0f%% of the changes; %s"
        logger.warning(message, outputs[0], baked.kept * 100, _advice(options, is_final=baked.is_final))
    return baked


def _calibrated(
    job: BakeJob, outputs: Sequence[Path], options: BakeOptions, library: Library | None, text: str | None
) -> Baked | None:
    """Write the model calibrated; None where that was not asked for, nothing can be calibrated, or it makes more noise."""
    if options.calibration is None:
        return None
    demand_space(outputs, job.shards, job.recipe.kinds)
    kept = job.write_calibrated(library, options.calibration, text)
    return None if kept is None else Baked(outputs[0], kept, kept, ())


def _rounded(job: BakeJob, outputs: Sequence[Path], options: BakeOptions) -> Baked:
    """Write the model rounded to the nearest; with the dtype "auto" in the types that keep the changes."""
    own = job.recipe.kinds
    kinds, by_own = own, 1.0
    if options.dtype == "auto":
        kinds, by_own = kinds_that_keep(job.shards, job.recipe, lambda share: job.on_progress(_CHOOSING * share))
    demand_space(outputs, job.shards, kinds)
    kept = job._replace(recipe=job.recipe._replace(kinds=kinds)).write_rounded()
    is_final = (options.dtype == "auto" and by_own < ENOUGH_KEPT) or all(kind is GGMLType.F32 for kind in kinds.values())
    return Baked(outputs[0], kept, by_own, tuple(type_changes(own, kinds)), is_final)


def _advice(options: BakeOptions, *, is_final: bool) -> str:
    """Say which option keeps more of the changes."""
    if is_final:
        return NOTHING_KEEPS_MORE
    finer = "the dtype 'q8_0', 'f16' or 'f32' keeps more"
    if options.calibration is not None:
        return finer
    return finer if options.dtype != "keep" else "the dtype 'auto' or calibration='auto' keeps more"


def _never_back(on_progress: Callable[[float], None]) -> Callable[[float], None]:
    """Report the largest share so far: rounding that follows a calibration begins at 0 again."""
    largest = [0.0]

    def report(share: float) -> None:
        largest.append(max(largest.pop(), share))
        on_progress(largest[0])

    return report


def _check_scales(adapters: Mapping[str | os.PathLike[str], float]) -> None:
    check_numbers_by("adapters", adapters, "{path: scale}")
    if not adapters:
        message = "there is no adapter to bake; give at least one as {path: scale}"
        raise ValueError(message)
    for path, scale in adapters.items():
        if not abs(scale) <= _SCALE_MAX:
            message = f"the scale of {path} is {scale}; it must be finite and at most {_SCALE_MAX:g} either way"
            raise InvalidScaleError(message)


def _check_adapters(files: Sequence[AdapterFile], base: BaseModel) -> None:
    known: dict[str, Path] = {}
    for file in files:
        if (other := known.setdefault(file.digest, file.path)) is not file.path:
            message = f"{file.path} and {other} are the same adapter; give it once, with the sum of the scales"
            raise LoraError(message, code=ErrorCode.INVALID_PARAM)
    problems: list[str] = []
    for file in files:
        problems += [f"{file.path}: {problem}" for problem in check_compatibility(file, base).problems]
        if file.info.invocation_tokens:
            problems.append(f"{file.path} is an activated adapter (aLoRA), which acts from its invocation tokens on only")
    if problems:
        message = f"this cannot be baked into {base.path.name}: {listed(problems, '; ')}"
        raise LoraIncompatibleError(message, problems=tuple(problems))


def _library(library: str | os.PathLike[str] | None) -> Library | None:
    """Return the libllama in use, or the one that is found; None where there is none."""
    loaded = native.loaded_library()
    if loaded is not None and library is None:
        return loaded
    try:
        proven = discovery.find(None if library is None else Path(library))
        return native.open_library(proven.path, proven.family)
    except LibraryNotFoundError:
        if library is not None or os.environ.get(discovery.ENVIRONMENT):
            raise
        return None
