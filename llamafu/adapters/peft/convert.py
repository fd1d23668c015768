"""PEFT folders converted to GGUF adapters: GGUF's names and order of rows, and the exact strength of every tensor."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from llamafu._util.atomic import demand_place, whole_file
from llamafu.adapters.compatibility import demand_fit
from llamafu.adapters.file import AdapterFile, check_adapter
from llamafu.adapters.gguf.base_model import BaseModel, model_files
from llamafu.adapters.invalid_file import invalid_file
from llamafu.adapters.peft.architectures import ARCHITECTURES
from llamafu.adapters.peft.dora import MAGNITUDE, dora_of
from llamafu.adapters.peft.dropped_modules import DroppedModules
from llamafu.adapters.peft.factor_mapping import FactorPair, exchanged_sides, factor_pairs_of, stack_experts
from llamafu.adapters.peft.factor_storage import DTYPES, store_factors
from llamafu.adapters.peft.folder import PeftFolder, read_folder
from llamafu.adapters.peft.fused_qkv import fuse_parts
from llamafu.adapters.peft.gguf_metadata import DROPPED, gguf_metadata
from llamafu.adapters.peft.hf_config import read_any_base
from llamafu.adapters.peft.module_factors import factors_by_module
from llamafu.adapters.peft.source_names import source_names
from llamafu.adapters.writer import adapter_bytes, refuse_source
from llamafu.errors import ErrorCode, LoraError, LoraIncompatibleError
from llamafu.hub.local import local_adapter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from llamafu.adapters.info import AdapterInfo
    from llamafu.adapters.peft.config import PeftConfig
    from llamafu.adapters.peft.dora import Cut, Dora
    from llamafu.adapters.peft.factor_storage import Stored

    Matrix = NDArray[np.floating[Any]]


class Conversion(NamedTuple):
    """A converted adapter, and what the conversion lost."""

    file: AdapterFile
    stored: Stored
    """The type of the tensors, and its loss."""
    cut: tuple[Cut, ...]
    """Of a DoRA adapter: the SVD's error, by matrix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions:
    """The options of `convert_peft`, which describes them."""

    dtype: str = "auto"
    drop: Sequence[str] = ()
    dora: str | None = None
    dora_rank: int | None = None
    overwrite: bool = True
    on_progress: Callable[[str, float], None] | None = None


def convert_peft(
    directory: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    base: BaseModel | str | os.PathLike[str] | None = None,
    dtype: Literal["auto", "f16", "f32"] = "auto",
    drop: Sequence[str] = (),
    dora: Literal["svd"] | None = None,
    dora_rank: int | None = None,
    overwrite: bool = True,
    on_progress: Callable[[str, float], None] | None = None,
) -> AdapterInfo:
    """Write the PEFT or mlx-lm adapter in the folder `directory` as a GGUF file, and return its facts.

    The same folder gives the same bytes.

    Args:
        directory: The folder with `adapter_config.json` and the weights.
        output: The GGUF file to write. It appears complete or not at all.
        base: The model that the adapter is for: a GGUF file (only its header is read), the `config.json` of a model on
            Hugging Face's hub, or the folder that has one. Required: architecture, head counts and sizes come from it.
        dtype: The type of the tensors. "auto" (the default) is F16 where it loses at most 1 % of every tensor's change, and
            F32 elsewhere. What F16 loses is logged (logger `llamafu.adapters`); where "f16" was asked for and loses more
            than that, as a warning, and the metadata key `llamafu.convert.lost` has it.
        drop: Modules to leave out: those of the parts "vision", "audio" and "projector" of a model, which no GGUF adapter
            can be for, and those whose names contain one of these names, whole from dot to dot, such as "lm_head" or
            "layers.3". The metadata key `llamafu.convert.dropped` lists them. Default: none.
        dora: "svd" turns a DoRA adapter into plain factors: the whole change of every matrix, truncated by an SVD. That
            reads the base model's weights: `base` has to be the GGUF model, or the folder with its `config.json` and
            safetensors. The metadata keys `llamafu.convert.dora.tensors`, `.ranks` and `.errors` have each tensor's name,
            rank, and the share of its change that was cut off. Default: None, a DoRA adapter is refused.
        dora_rank: The rank of these factors, at least 1. Default: four times the adapter's.
        overwrite: Whether a file at `output` may be replaced. Default: True.
        on_progress: Called after every matrix of a DoRA adapter with its name and the share that is done, from 0 to 1, in
            this thread.

    Raises:
        InvalidAdapterFileError: the folder is damaged or holds what a GGUF adapter cannot express; `.problems` has all.
        LoraIncompatibleError: it does not fit `base`, or the architecture cannot be converted.
        LoraError: no `base`, an unknown dtype or dora, `output` lies in the folder or is a file of the base model, or `drop`
            has what is in no module's name.
        ModelLoadError: `base` cannot be read, or has no weights where they are needed.
        OSError: `output` cannot be written, or exists and `overwrite` is false.

    """
    options = ConvertOptions(
        dtype=dtype, drop=drop, dora=dora, dora_rank=dora_rank, overwrite=overwrite, on_progress=on_progress
    )
    return convert_for_report(directory, output, base, options).file.info


def convert_for_report(
    directory: str | os.PathLike[str],
    output: str | os.PathLike[str],
    base: BaseModel | str | os.PathLike[str] | None,
    options: ConvertOptions,
) -> Conversion:
    """Convert like `convert_peft`, and return what was lost too."""
    folder, output = local_adapter(directory), Path(output)
    if base is None:
        message = f"{folder}: converting needs the base model's header; give its GGUF file or its config.json as base"
        raise LoraError(message, code=ErrorCode.INVALID_PARAM)
    if not isinstance(base, BaseModel):
        base = read_any_base(base)
    try:
        refuse_source(output, [folder])
        refuse_source(output, model_files(base), what="files of the base model")
    except ValueError as error:
        raise LoraError(str(error), code=ErrorCode.INVALID_PARAM) from None
    demand_place(output, overwrite=options.overwrite)
    on_progress = options.on_progress or (lambda _name, _share: None)
    dora = dora_of(options.dora, options.dora_rank, base, on_progress)
    conversion = convert_in_memory(read_folder(folder), base, dtype=options.dtype, drop=options.drop, dora=dora)
    demand_fit(conversion.file, base)
    with whole_file(Path(os.path.realpath(output)), overwrite=options.overwrite) as unfinished:
        unfinished.write_bytes(conversion.file.content)
    return conversion


def convert_folder(folder: PeftFolder, base: BaseModel, *, dtype: str = "auto", drop: Sequence[str] = ()) -> AdapterFile:
    """Convert a PEFT adapter in memory; raises what `convert_peft` raises, but does not compare its sizes with `base`.

    `dtype` may also be "exact": F16 where it loses nothing, and F32 elsewhere.
    """
    return convert_in_memory(folder, base, dtype=dtype, drop=drop).file


def convert_in_memory(
    folder: PeftFolder, base: BaseModel, *, dtype: str, drop: Sequence[str] = (), dora: Dora | None = None
) -> Conversion:
    """Convert like `convert_folder`, DoRA adapters too if `dora` is given, and return what was lost too."""
    if dtype not in DTYPES:
        message = f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}"
        raise LoraError(message, code=ErrorCode.INVALID_PARAM)
    if base.architecture not in ARCHITECTURES:
        problem = (
            f"PEFT adapters for {base.architecture!r} cannot be converted; the architectures are {', '.join(ARCHITECTURES)}"
        )
        message = f"{folder.path}: {problem}"
        raise LoraIncompatibleError(message, problems=(problem,))
    try:
        dropped = DroppedModules(drop)
    except ValueError as error:
        raise LoraError(str(error), code=ErrorCode.INVALID_PARAM) from None
    config, arrays, ignored = folder.parsed(base, dora=dora is not None)
    problems: list[str] = []
    modules = factors_by_module(arrays, dropped, problems, take_magnitudes=config.dora)
    if dropped.unused:
        hint = ", and one name each time it is given" if any("," in one for one in dropped.unused) else ""
        named = ", ".join(map(repr, dropped.unused))
        message = f"{folder.path}: no module has {named} in its name; drop takes whole parts of it{hint}"
        raise LoraError(message, code=ErrorCode.INVALID_PARAM)
    name, names = str(folder.weights_path), source_names(modules)
    pairs = _factor_pairs(modules, config, base, problems, dora if config.dora else None)
    if problems:
        raise invalid_file(name, problems)
    alpha = Counter(pair.alpha for pair in pairs).most_common(1)[0][0]
    tensors, stored = store_factors(pairs, alpha, dtype, name)
    fields = gguf_metadata(config, alpha=alpha, folder=folder.name) | names | ({} if dora is None else dora.fields())
    if dropped.modules or ignored:
        fields[DROPPED] = [*dropped.modules, *ignored]
    if stored.is_much and stored.dtype == "f16":
        fields["llamafu.convert.lost"] = np.float32(stored.lost)
    content = adapter_bytes(base.architecture, fields, dict(tensors))
    return Conversion(check_adapter(content, folder.path), stored, () if dora is None else tuple(dora.cut))


def _factor_pairs(
    modules: dict[str, dict[str, Matrix]], config: PeftConfig, base: BaseModel, problems: list[str], dora: Dora | None
) -> list[FactorPair]:
    """Return the factors of all modules by base tensor, in the file's order; what is wrong with them is added to `problems`."""
    found: dict[str, dict[int | None, FactorPair]] = {}
    reasons: dict[str, list[str]] = {}
    magnitudes = {module: sides.pop(MAGNITUDE, None) for module, sides in modules.items()}
    exchanged = False
    try:
        exchanged = exchanged_sides(modules, config, base)
    except ValueError as error:
        problems.append(str(error))
    for number, (module, sides) in enumerate(modules.items(), 1):
        try:
            pairs = factor_pairs_of(module, sides, config, base, exchanged=exchanged)
            if dora is not None:
                pairs = [dora.plain(pair, magnitudes[module], number / len(modules)) for pair in pairs]
        except ValueError as error:
            reasons.setdefault(str(error), []).append(module)
            continue
        for pair in pairs:
            of_target = found.setdefault(pair.target, {})
            if of_target and (pair.expert in of_target or None in (pair.expert, *of_target)):
                problems.append(f"module {module!r}: it is {pair.target!r} in GGUF, which another module is already")
            of_target[pair.expert] = pair
    problems += [f"{_listed(those)}: {reason}" for reason, those in reasons.items()]
    return _whole(found, base, problems)


def _whole(found: dict[str, dict[int | None, FactorPair]], base: BaseModel, problems: list[str]) -> list[FactorPair]:
    """Stack the experts of each tensor, and fuse tensors that are one in the base model."""
    whole = []
    for target, of_target in found.items():
        try:
            whole.append(stack_experts(list(of_target.values()), base))
        except ValueError as error:
            problems.append(f"{target!r}: {error}")
    if not problems:
        try:
            return fuse_parts(whole, base)
        except ValueError as error:
            problems.append(str(error))
    return []


def _listed(modules: Sequence[str]) -> str:
    return f"module {modules[0]!r}" + (f" and {len(modules) - 1} more" if len(modules) > 1 else "")
