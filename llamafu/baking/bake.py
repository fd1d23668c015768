"""`bake`: adapters merged into a base model for good.

It lies above `llamafu.adapters`, which exports it, because it converts with libllama's ggml where there is one.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from llamafu._native import cpu
from llamafu._native import library as native
from llamafu._native.ggml_codec import GgmlCodec
from llamafu._util.atomic import demand_place, whole_files
from llamafu.adapters.compatibility import check_compatibility
from llamafu.adapters.gguf.base_model import read_base
from llamafu.adapters.gguf.codec import NumpyCodec
from llamafu.adapters.gguf.ggml_type import GGMLType
from llamafu.adapters.gguf.shard import read_shards
from llamafu.adapters.reader import AdapterReader
from llamafu.baking.calibration_data import read_text
from llamafu.baking.job import BakeJob
from llamafu.baking.metadata import Records
from llamafu.baking.outputs import demand_space, output_paths, refuse_sources
from llamafu.baking.target_types import MUCH_LOST, became, chosen_kinds, kinds_that_keep
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
    from llamafu.baking.target_types import Became

DTYPES = ("auto", "keep", "f32", "f16", "bf16", "q8_0")
"""What the changed tensors may become: what keeps the change, what they were, or a type that loses little of the sum."""

NOTHING_KEEPS_MORE = "no type keeps more: the changes are too small beside the model's values, or cancel one another"

logger = logging.getLogger("llamafu.baking")

_CHOOSING = 0.1  # of the work: what types keep is measured
_SCALE_MAX = 1e30  # as in `merge_adapters`: float64 arithmetic on it cannot overflow


class Baked(NamedTuple):
    """A baked model, and what became of the changes."""

    path: Path
    """Of its first file."""
    kept: float
    """The share of the changes that is there: see `write_baked`, or where it was calibrated, `Fidelity`."""
    by_own: float
    """The share that the tensors' own types keep, as far as that was asked."""
    became: tuple[Became, ...]
    """Tensors that got another type because of it."""
    is_final: bool = False
    """Whether no other type keeps more: each tensor has one that keeps its change, or F32."""


def bake(
    model: str | os.PathLike[str],
    adapters: Mapping[str | os.PathLike[str], float],
    output: str | os.PathLike[str],
    *,
    dtype: Literal["auto", "keep", "f32", "f16", "bf16", "q8_0"] = "auto",
    calibration: str | os.PathLike[str] | None = None,
    least_kept: float = 0.0,
    overwrite: bool = True,
    library: str | os.PathLike[str] | None = None,
    n_threads: int | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> Path:
    """Write the GGUF model `output`: the base `model` with scale x strength x B A of {adapter: scale} added; return its path.

    Adapters are GGUF files or PEFT folders. A scale may be any finite number, and 0 leaves its adapter out. Tensors that no
    adapter changes are copied byte for byte, as is the metadata, which gains keys `llamafu.bake.*` that name source and
    adapters by digest, with their scales. Folders are baked from the values that are in them. ggml converts them if a libllama
    is found (`library`, or where `Llamafu` looks), the `gguf` package otherwise. A model in shards becomes as many
    shards, and the path of the first is returned.

    Rounding to a coarse type may lose most of an adapter, whose changes are small beside the steps of the type. So with the
    dtype "auto" changed tensors keep their types only where these keep 90 % of the changes; where they do not, each tensor
    gets the coarsest of its type, Q8_0, F16 and F32 that does, and a warning names them. "keep" keeps the types all the same.
    The key `llamafu.bake.N.kept` has the share that is still there; below 0.9 a warning is logged, and below `least_kept`
    nothing is written. `overwrite`: whether a file that is at `output` may be replaced.

    `calibration` keeps them all the same: changed tensors of the types Q4_0, Q4_1 and Q8_0 are then rounded one after another,
    and their scales chosen, by what goes into them while the model reads a text with what is baked so far, and by what should
    come out with the adapters on. It is the path of a UTF-8 text file like what the model will read and write, or "auto": a
    sample of English and code, and what the model writes itself, in chats and freely. `kept` is then measured on a part of the
    text that was kept back. Where calibration makes more noise than there is change, it is left out, and a warning
    logged. It needs libllama and takes minutes. The key `llamafu.bake.N.calibration` has the text's name.

    Memory is that of the adapters and a few megabytes, whatever the model is; with `calibration` also that of the model, of the
    changed tensors, and up to a quarter of the machine's. `n_threads` defaults to every CPU; `on_progress` is called with the
    share that is done, in this thread.

    Raises:
        ValueError: no adapter, an unknown dtype, an `output` that is one of the sources, a `calibration` that is too short or
            no text, or one beside a `dtype` that changes the types.
        InvalidScaleError: a scale that is not finite (a ValueError too).
        LoraIncompatibleError: an adapter does not fit the model, or is an aLoRA.
        InvalidAdapterFileError, LoraLoadError, ModelLoadError: a source cannot be read or is damaged.
        LoraError: an adapter given twice, a type that cannot be written here or calibrated, a sum too large for its type,
            less kept than `least_kept`.
        LibraryNotFoundError, AbiMismatchError: `library`, or the one that `LLAMAFU_LIB` names, cannot be used.
        OSError: `output` cannot be written, would not fit on its disk, or exists and `overwrite` is false.

    On any error there is no new file.

    """
    return bake_for_report(
        model,
        adapters,
        output,
        dtype=dtype,
        calibration=calibration,
        least_kept=least_kept,
        overwrite=overwrite,
        library=library,
        n_threads=n_threads,
        on_progress=on_progress,
    ).path


def bake_for_report(
    model: str | os.PathLike[str],
    adapters: Mapping[str | os.PathLike[str], float],
    output: str | os.PathLike[str],
    *,
    dtype: str,
    calibration: str | os.PathLike[str] | None,
    least_kept: float,
    overwrite: bool,
    library: str | os.PathLike[str] | None,
    n_threads: int | None,
    on_progress: Callable[[float], None] | None,
) -> Baked:
    """Bake like `bake`, and return all that there is to say of it."""
    if dtype not in DTYPES:
        message = f"the dtype is {dtype!r}; there are {', '.join(DTYPES)}"
        raise ValueError(message)
    if n_threads is not None and n_threads < 1:
        message = f"n_threads is {n_threads}; it must be at least 1"
        raise ValueError(message)
    _check_scales(adapters)
    text = _calibration_text(calibration, dtype)
    base = read_base(model)
    shards = read_shards(base.path)
    outputs = output_paths(Path(output), base, shards)
    refuse_sources(outputs, shards, adapters)
    demand_place(*outputs, overwrite=overwrite)
    reader = AdapterReader(base, dtype="exact")
    files = [reader.read(path) for path in adapters]
    _check_adapters(files, base)
    uses = [(file, float(scale)) for file, scale in zip(files, adapters.values(), strict=True) if scale]
    loaded = _library(library)
    codec: Codec = NumpyCodec() if loaded is None else GgmlCodec(loaded)
    recipe = BakeRecipe(uses, chosen_kinds(shards, uses, dtype, codec), codec, n_threads or cpu.usable_cpus())
    with whole_files(outputs, overwrite=overwrite) as unfinished:
        job = BakeJob(shards, unfinished, recipe, Records(base, uses), _never_back(on_progress or (lambda _: None)))
        baked = _baked(job, outputs, dtype, None if calibration is None else (loaded, calibration, text))
        if baked.kept < least_kept:
            left = f"{outputs[0]} was not written: only {baked.kept:.0%} of the changes would be left in it"
            advice = _advice(dtype, calibration, is_final=baked.is_final)
            message = f"{left}; {advice}, and least_kept=0 (--accept-loss) writes it all the same"
            raise LoraError(message)
    for one in baked.became:
        logger.warning("%s: %s, since these keep only %.0f%% of the changes", outputs[0], one, baked.by_own * 100)
    if baked.kept < MUCH_LOST:
        message = "%s: rounding kept only %.0f%% of the changes; %s"
        logger.warning(message, outputs[0], baked.kept * 100, _advice(dtype, calibration, is_final=baked.is_final))
    return baked


def _baked(
    job: BakeJob, outputs: Sequence[Path], dtype: str, by: tuple[Library | None, str | os.PathLike[str], str | None] | None
) -> Baked:
    """Write the result, calibrated where it is said `by` what and that is possible."""
    if by is not None:
        demand_space(outputs, job.shards, job.recipe.kinds)
        if (kept := job.calibrated(*by)) is not None:
            return Baked(outputs[0], kept, kept, ())
    own = job.recipe.kinds
    kinds, by_own = own, 1.0
    if dtype == "auto":
        kinds, by_own = kinds_that_keep(job.shards, job.recipe, lambda share: job.on_progress(_CHOOSING * share))
    demand_space(outputs, job.shards, kinds)
    kept = job._replace(recipe=job.recipe._replace(kinds=kinds)).nearest()
    is_final = (dtype == "auto" and by_own < MUCH_LOST) or all(kind is GGMLType.F32 for kind in kinds.values())
    return Baked(outputs[0], kept, by_own, tuple(became(own, kinds)), is_final)


def _advice(dtype: str, calibration: str | os.PathLike[str] | None, *, is_final: bool) -> str:
    """Say what keeps more."""
    if is_final:
        return NOTHING_KEEPS_MORE
    finer = "the dtype 'q8_0', 'f16' or 'f32' keeps more"
    if calibration is not None:
        return finer
    return finer if dtype != "keep" else "the dtype 'auto' or calibration='auto' keeps more"


def _never_back(on_progress: Callable[[float], None]) -> Callable[[float], None]:
    """Tell the largest share so far: what is baked to the nearest after a trial begins anew."""
    told = [0.0]

    def tell(share: float) -> None:
        told.append(max(told.pop(), share))
        on_progress(told[0])

    return tell


def _check_scales(adapters: Mapping[str | os.PathLike[str], float]) -> None:
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
        message = f"this cannot be baked into {base.path.name}: {'; '.join(problems)}"
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


def _calibration_text(calibration: str | os.PathLike[str] | None, dtype: str) -> str | None:
    """Read the text, None where there is none; raises ValueError."""
    if calibration is None:
        return None
    if dtype not in ("auto", "keep"):
        message = f"the dtype is {dtype!r}, and calibration keeps the types; leave one of them out"
        raise ValueError(message)
    return read_text(calibration)
