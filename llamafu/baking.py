"""`bake`: adapters merged into a base model for good.

It lies above `llamafu.adapters`, which exports it, because it converts with libllama's ggml where there is one.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from llamafu._native import finding, processor
from llamafu._native import library as native
from llamafu._native.quants import GgmlCodec
from llamafu._whole_file import whole_files
from llamafu.adapters.baked import Recipe, lengths
from llamafu.adapters.base import read_base
from llamafu.adapters.codec import NumpyCodec
from llamafu.adapters.compatibility import check_compatibility
from llamafu.adapters.ggml_type import BLOCKS, GGMLType
from llamafu.adapters.reader import AdapterReader
from llamafu.adapters.shard import read_shards
from llamafu.adapters.write import refuse_source
from llamafu.bake_job import BakeJob
from llamafu.bake_records import Records
from llamafu.calibration_text import read_text
from llamafu.errors import (
    ErrorCode,
    InvalidScaleError,
    LibraryNotFoundError,
    LoraError,
    LoraIncompatibleError,
    ModelLoadError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from llamafu._native.library import Library
    from llamafu.adapters.base import BaseModel
    from llamafu.adapters.codec import Codec
    from llamafu.adapters.file import AdapterFile
    from llamafu.adapters.shard import Shard

DTYPES = ("keep", "f32", "f16", "bf16", "q8_0")
"""What the changed tensors may become: what they were, or a type that loses little of the sum."""

logger = logging.getLogger("llamafu.baking")

MUCH_LOST = 0.9
"""Below this share of the changes a baked model is not what its adapters made it."""

_SCALE_MAX = 1e30  # as in `merge_adapters`: float64 arithmetic on it cannot overflow
_SHARD_NAME = re.compile(r"-[0-9]{5}-of-[0-9]{5}$")


def bake(
    model: str | os.PathLike[str],
    adapters: Mapping[str | os.PathLike[str], float],
    output: str | os.PathLike[str],
    *,
    dtype: Literal["keep", "f32", "f16", "bf16", "q8_0"] = "keep",
    calibration: str | os.PathLike[str] | None = None,
    library: str | os.PathLike[str] | None = None,
    n_threads: int | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> Path:
    """Write the GGUF model `output`: the base `model` with scale x strength x B A of {adapter: scale} added; return its path.

    Adapters are GGUF files or PEFT folders. A scale may be any finite number, and 0 leaves its adapter out. Tensors that no
    adapter changes are copied byte for byte, as is the metadata, which gains keys `llamafu.bake.*` that name source and
    adapters by digest, with their scales. Changed ones keep their type, or get `dtype`. ggml converts them if a libllama
    is found (`library`, or where `Llamafu` looks), the `gguf` package otherwise. A model in shards becomes as many
    shards, and the path of the first is returned.

    Rounding to a coarse type may lose most of an adapter, whose changes are small beside the steps of the type: the key
    `llamafu.bake.N.kept` has the share that is still there, and below 0.9 a warning is logged.

    `calibration` keeps them all the same: changed tensors of the types Q4_0, Q4_1 and Q8_0 are then rounded one after another,
    and their scales chosen, by what goes into them while the model reads a text with what is baked so far, and by what should
    come out with the adapters on. It is the path of a UTF-8 text file like what the model will read and write, or "auto": a
    sample of English and code, and what the model writes itself, in chats and freely. `kept` is then measured on a part of the
    text that was kept back. Where calibration makes more noise than there is change, the nearest is taken, and a warning
    logged. It needs libllama and takes minutes. The key `llamafu.bake.N.calibration` has the text's name.

    Memory is that of the adapters and a few megabytes, whatever the model is; with `calibration` also that of the model, of the
    changed tensors, and up to a quarter of the machine's. `n_threads` defaults to every CPU; `on_progress` is called with the
    share that is done, in this thread.

    Raises:
        ValueError: no adapter, an unknown dtype, an `output` that is one of the sources, a `calibration` that is too short or
            no text, or one beside a `dtype`.
        InvalidScaleError: a scale that is not finite (a ValueError too).
        LoraIncompatibleError: an adapter does not fit the model, or is an aLoRA.
        InvalidAdapterFileError, LoraLoadError, ModelLoadError: a source cannot be read or is damaged.
        LoraError: an adapter given twice, a type that cannot be written here or calibrated, a sum too large for its type.
        LibraryNotFoundError, AbiMismatchError: `library`, or the one that `LLAMAFU_LIB` names, cannot be used.
        OSError: `output` cannot be written, or would not fit on its disk. On any error there is no new file.

    """
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
    outputs = _outputs(Path(output), base, shards)
    _refuse_sources(outputs, shards, adapters)
    reader = AdapterReader(base)
    files = [reader.read(path) for path in adapters]
    _check_adapters(files, base)
    uses = [(file, float(scale)) for file, scale in zip(files, adapters.values(), strict=True) if scale]
    loaded = _library(library)
    codec: Codec = NumpyCodec() if loaded is None else GgmlCodec(loaded)
    recipe = Recipe(uses, _kinds(shards, uses, dtype, codec), codec, n_threads or processor.usable_cpus())
    _check_space(outputs, shards, recipe.kinds)
    on_progress = _never_back(on_progress or (lambda _: None))
    with whole_files(outputs) as unfinished:
        try:
            job = BakeJob(shards, unfinished, recipe, Records(base, uses), on_progress)
            kept = None if calibration is None else job.calibrated(loaded, calibration, text)
            if kept is None:
                kept = job.nearest()
        except OSError as error:
            if error.filename is None and error.errno is not None:  # a failed write does not know its file
                raise OSError(error.errno, error.strerror, str(outputs[0])) from error
            raise
    if kept < MUCH_LOST:
        finer = "calibration='auto', or the dtype 'q8_0' or 'f16'," if calibration is None else "the dtype 'q8_0' or 'f16'"
        logger.warning("%s: rounding kept only %.0f%% of the changes; %s keeps more", outputs[0], kept * 100, finer)
    return outputs[0]


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


def _outputs(output: Path, base: BaseModel, shards: Sequence[Shard]) -> list[Path]:
    """Name the files to write: `big.gguf` is `big-00001-of-00002.gguf` and the other one where the model has two."""
    count = shards[0].container.metadata.get("split.count", 1)
    if count not in (0, 1, len(shards)):
        message = (
            f"{base.path} is one of {count} shards (split.count), and its name does not lead to the others; give them the "
            "names that they had, which end in -00001-of-00002.gguf or the like"
        )
        raise ModelLoadError(message)
    match = _SHARD_NAME.search(output.stem)
    if len(shards) > 1:
        stem = output.stem[: match.start()] if match else output.stem
        outputs = [output.with_name(f"{stem}-{i:05d}-of-{len(shards):05d}.gguf") for i in range(1, len(shards) + 1)]
        fits = match is None or output in outputs
    else:
        outputs, fits = [output], match is None
    if not fits:
        message = f"{output} is named like a shard, and the result has {len(shards)} files; give a name without -NNNNN-of-NNNNN"
        raise ValueError(message)
    for place in outputs:
        if place.is_dir():
            message = f"{place} is a folder; give the result the name of a file"
            raise IsADirectoryError(message)
    return outputs


def _refuse_sources(outputs: Sequence[Path], shards: Sequence[Shard], adapters: Iterable[str | os.PathLike[str]]) -> None:
    for place in outputs:
        refuse_source(place, [shard.path for shard in shards], what="files of the model")
        for adapter in map(Path, adapters):
            if adapter.is_dir() and adapter.resolve() in place.resolve().parents:
                message = f"{place} lies in the folder of the adapter {adapter}; choose another place"
                raise ValueError(message)
            if adapter.exists():
                refuse_source(place, [adapter])


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
        proven = finding.find(None if library is None else Path(library))
        return native.open_library(proven.path, proven.family)
    except LibraryNotFoundError:
        if library is not None or os.environ.get(finding.ENVIRONMENT):
            raise
        return None


def _calibration_text(calibration: str | os.PathLike[str] | None, dtype: str) -> str | None:
    """Read the text, None where there is none; raises ValueError."""
    if calibration is None:
        return None
    if dtype != "keep":
        message = f"the dtype is {dtype!r}, and calibration keeps the types; leave one of them out"
        raise ValueError(message)
    return read_text(calibration)


def _kinds(shards: Sequence[Shard], uses: Sequence[tuple[AdapterFile, float]], dtype: str, codec: Codec) -> dict[str, GGMLType]:
    """Choose the type of every changed tensor; raises LoraError, once a reason, when it cannot be read or written."""
    changed = {name for file, _ in uses for name in file.pairs}
    kinds: dict[str, GGMLType] = {}
    problems: dict[str, list[str]] = {}
    for shard in shards:
        for entry in shard.container.tensors.values():
            if entry.name not in changed:
                continue
            if entry.type is None:
                problem: str | None = "its type is unknown to the gguf package; a newer one may know it"
            else:
                kinds[entry.name] = kind = entry.type if dtype == "keep" else GGMLType[dtype.upper()]
                block = BLOCKS[kind][0]
                problem = codec.problem(entry.type, kind)
                if entry.shape[0] % block:
                    problem = f"its rows of {entry.shape[0]} values do not divide into {kind.name} blocks of {block}"
            if problem:
                problems.setdefault(problem, []).append(entry.name)
    if problems:
        named = [f"{names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: {why}" for why, names in problems.items()]
        raise LoraError("; ".join(named), code=ErrorCode.INVALID_PARAM)
    return kinds


def _check_space(outputs: Sequence[Path], shards: Sequence[Shard], kinds: Mapping[str, GGMLType]) -> None:
    folder = outputs[0].parent
    if not folder.is_dir():
        return  # the writer says so
    wanted = sum(len(shard.head) + sum(lengths(shard, kinds).values()) for shard in shards)
    free = shutil.disk_usage(folder).free
    if wanted > free:
        message = f"the result takes {wanted} bytes, and {free} are free in {folder}; free some, or choose another place for"
        raise OSError(errno.ENOSPC, message, str(outputs[0]))
