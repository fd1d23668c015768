"""PEFT folders become GGUF adapters: names, the architectures' own transforms, and the exact strength of every tensor."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from llamafu._whole_file import whole_file
from llamafu.adapters.architectures import ARCHITECTURES
from llamafu.adapters.base import BaseModel
from llamafu.adapters.compatibility import demand_fit
from llamafu.adapters.container import invalid_file
from llamafu.adapters.file import AdapterFile, check_adapter
from llamafu.adapters.folder import PeftFolder, read_folder
from llamafu.adapters.fusing import fused
from llamafu.adapters.hf_config import read_any_base
from llamafu.adapters.left_out import LeftOut
from llamafu.adapters.peft import foreign
from llamafu.adapters.pieces import Piece, exchanged_sides, joined, pieces_of
from llamafu.adapters.source_names import source_names
from llamafu.adapters.write import adapter_bytes
from llamafu.errors import ErrorCode, LoraError, LoraIncompatibleError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from llamafu.adapters.info import AdapterInfo
    from llamafu.adapters.peft import PeftConfig
    from llamafu.adapters.write import Field

    Matrix = NDArray[np.floating[Any]]

_NAME = re.compile(r"base_model\.model\.(.+)\.lora_(?:([AB])\.weight|(embedding_[AB]))")
_IDLE = re.compile(
    r"base_model\.model\.(.+\.)?"
    r"((embed_tokens|lm_head)\.base_layer\.weight|\w+\.lora_velora_embed|\w+\.lora_monteclora_sampler\.\w+)"
)
"""What PEFT saves beside factors and does not answer with: copies of the base model's own embeddings, and what only training
uses."""
_PREFIX = re.compile(r"base_model\.model\.")
DROPPED = "llamafu.convert.dropped"
_LONGEST_NAME = 500  # characters
_MOST_LOST = 0.01  # of a tensor's norm, to values below the smallest of a type
_DTYPES = {"f16": "<f2", "f32": "<f4"}
HUB_ID = re.compile(r"([\w.-]*\w)/([\w.-]+)")


def convert_peft(
    directory: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    base: BaseModel | str | os.PathLike[str] | None = None,
    dtype: Literal["f16", "f32"] = "f16",
    drop: Sequence[str] = (),
) -> AdapterInfo:
    """Write the PEFT adapter in the folder `directory` as the GGUF file `output`, and return its facts.

    `base` is the GGUF model it is for (only its header is read), or the `config.json` of the model on Hugging Face's hub, or
    the folder that has it: architecture, head counts and sizes come from there. The same folder gives the same bytes, and
    `output` appears whole or not at all; a file there is replaced.

    `drop` leaves modules out: those of the parts "vision", "audio" and "projector" of a model, which no GGUF adapter can be
    for, or those that one of its names is in, whole from dot to dot, such as "lm_head" or "layers.3". Which ones were left
    out is in the file's metadata, `llamafu.convert.dropped`.

    Raises:
        InvalidAdapterFileError: the folder is damaged or holds what a GGUF adapter cannot express; `.problems` has all.
        LoraIncompatibleError: it does not fit `base`, or the architecture cannot be converted.
        LoraError: no `base`, `output` lies in the folder or is the base model, or `drop` has what is in no module's name.
        ModelLoadError: `base` cannot be read.
        OSError: `output` cannot be written.

    """
    folder, output = Path(directory), Path(output)
    if base is None:
        message = f"{folder}: converting needs the base model's header; give its GGUF file or its config.json as base"
        raise LoraError(message, code=ErrorCode.INVALID_PARAM)
    if not isinstance(base, BaseModel):
        base = read_any_base(base)
    target = Path(os.path.realpath(output))
    if target == Path(os.path.realpath(base.path)) or Path(os.path.realpath(folder)) in (target, *target.parents):
        message = f"{output}: the output must be neither the base model nor in the folder {folder}; choose another place"
        raise LoraError(message, code=ErrorCode.INVALID_PARAM)
    file = convert_folder(read_folder(folder), base, dtype=dtype, drop=drop)
    demand_fit(file, base)
    with whole_file(target) as unfinished:
        unfinished.write_bytes(file.content)
    return file.info


def convert_folder(
    folder: PeftFolder, base: BaseModel, *, dtype: Literal["f16", "f32"] = "f16", drop: Sequence[str] = ()
) -> AdapterFile:
    """Convert a PEFT adapter in memory; raises what `convert_peft` raises, but does not compare sizes."""
    if dtype not in _DTYPES:
        message = f"dtype is {dtype!r}; it must be one of {', '.join(_DTYPES)}"
        raise LoraError(message, code=ErrorCode.INVALID_PARAM)
    if base.architecture not in ARCHITECTURES:
        problem = (
            f"PEFT adapters for {base.architecture!r} cannot be converted; the architectures are {', '.join(ARCHITECTURES)}"
        )
        message = f"{folder.path}: {problem}"
        raise LoraIncompatibleError(message, problems=(problem,))
    try:
        left_out = LeftOut(drop)
    except ValueError as error:
        raise LoraError(str(error), code=ErrorCode.INVALID_PARAM) from None
    config, arrays, idle = folder.parsed(base)
    problems: list[str] = []
    modules = _by_module(arrays, left_out, problems)
    if left_out.unused:
        message = (
            f"{folder.path}: no module has {', '.join(map(repr, left_out.unused))} in its name; drop takes whole parts of it"
        )
        raise LoraError(message, code=ErrorCode.INVALID_PARAM)
    pieces = _pieces(modules, config, base, problems, str(folder.weights_path))
    alpha = Counter(piece.alpha for piece in pieces).most_common(1)[0][0]
    tensors = _folded(pieces, alpha, _DTYPES[dtype], str(folder.weights_path))
    fields = _fields(alpha, config, folder.name) | source_names(modules)
    if left_out.modules or idle:
        fields[DROPPED] = [*left_out.modules, *idle]
    return check_adapter(adapter_bytes(base.architecture, fields, dict(tensors)), folder.path)


def _pieces(
    modules: dict[str, dict[str, Matrix]], config: PeftConfig, base: BaseModel, problems: list[str], name: str
) -> list[Piece]:
    """Pair the tensors, in the file's order, under the base model's names and in its layout."""
    found: dict[str, dict[int | None, Piece]] = {}
    reasons: dict[str, list[str]] = {}
    exchanged = False
    try:
        exchanged = exchanged_sides(modules, config, base)
    except ValueError as error:
        problems.append(str(error))
    for module, sides in modules.items():
        try:
            pieces = pieces_of(module, sides, config, base, exchanged=exchanged)
        except ValueError as error:
            reasons.setdefault(str(error), []).append(module)
            continue
        for piece in pieces:
            of_target = found.setdefault(piece.target, {})
            if of_target and (piece.expert in of_target or None in (piece.expert, *of_target)):
                problems.append(f"module {module!r}: it is {piece.target!r} in GGUF, which another module is already")
            of_target[piece.expert] = piece
    problems += [f"{_listed(those)}: {reason}" for reason, those in reasons.items()]
    whole = []
    for target, of_target in found.items():
        try:
            whole.append(joined(list(of_target.values()), base))
        except ValueError as error:
            problems.append(f"{target!r}: {error}")
    if not problems:
        try:
            return fused(whole, base)
        except ValueError as error:
            problems.append(str(error))
    raise invalid_file(name, problems)


def _listed(modules: Sequence[str]) -> str:
    return f"module {modules[0]!r}" + (f" and {len(modules) - 1} more" if len(modules) > 1 else "")


def _by_module(arrays: dict[str, Matrix], left_out: LeftOut, problems: list[str]) -> dict[str, dict[str, Matrix]]:
    """Gather the sides of every module that is not left out; what is no factor becomes a problem."""
    modules: dict[str, dict[str, Matrix]] = {}
    for key, array in arrays.items():
        if len(key) > _LONGEST_NAME:
            problems.append(f"tensor {key[:80]!r}... has a name of {len(key)} characters; at most {_LONGEST_NAME} are read")
            continue
        if _IDLE.fullmatch(key) or left_out.takes(_module_of(key)):
            continue
        match = _NAME.fullmatch(key)
        if match is None:
            problems.append(f"tensor {key!r} is no LoRA factor (...lora_A.weight, ...lora_B.weight){foreign(key)}")
        elif not np.isfinite(array).all():
            problems.append(f"tensor {key!r} holds NaN or infinite values")
        else:
            modules.setdefault(match[1], {})[match[2] or match[3]] = array
    if not modules and not problems:
        problems.append("all of its modules were left out" if left_out.modules else "the file has no tensors")
    return modules


def _module_of(key: str) -> str:
    """Return the module that a tensor of PEFT's belongs to, factor or not."""
    return _PREFIX.sub("", key).partition(".lora_")[0].removesuffix(".weight").removesuffix(".bias")


def _folded(pieces: list[Piece], alpha: float, dtype: str, name: str) -> list[tuple[str, Matrix]]:
    """Return the GGUF tensors. Where the file's one alpha would give a wrong strength, B makes up for it."""
    problems = []
    tensors: list[tuple[str, Matrix]] = []
    for piece in pieces:
        share = 1 if piece.alpha == alpha else piece.alpha / float(np.float32(alpha))
        b = piece.b if share == 1 else piece.b.astype(np.float64) * share
        for side, array in (("a", piece.a), ("b", b)):
            with np.errstate(over="ignore"):
                stored = np.ascontiguousarray(array).astype(dtype)
            if not np.isfinite(stored).all():
                problems.append(f"{piece.target}.lora_{side} has values beyond {np.finfo(dtype).max:g}; choose the dtype 'f32'")
            elif share != 1 and np.linalg.norm(array - stored) > _MOST_LOST * np.linalg.norm(array):
                problems.append(
                    f"{piece.target}.lora_{side} has alpha {piece.alpha:g} where most have {alpha:g}, and its values are too "
                    f"small for {np.dtype(dtype).name} once that is made up for; choose the dtype 'f32'"
                )
            tensors.append((f"{piece.target}.lora_{side}", stored))
    if problems:
        raise invalid_file(name, problems)
    return tensors


def _fields(alpha: float, config: PeftConfig, name: str) -> dict[str, Field]:
    fields: dict[str, Field] = {
        "general.name": title(name.encode("utf-8", "replace").decode()),  # a folder's name may be any bytes
        **(_base_model(config.base_model) if config.base_model else {}),
        "adapter.lora.alpha": np.float32(alpha),
    }
    if config.invocation_tokens:
        fields["adapter.alora.invocation_tokens"] = np.array(config.invocation_tokens, np.uint32)
    fields["general.quantization_version"] = np.uint32(2)
    return fields


def _base_model(name_or_path: str) -> dict[str, Field]:
    """Name the base model; a hub id `organisation/name` also gives its organisation, a path only its last part."""
    hub = HUB_ID.fullmatch(name_or_path)
    fields: dict[str, Field] = {
        "general.base_model.count": np.uint32(1),
        "general.base_model.0.name": title(hub[2] if hub else re.split(r"[/\\]", name_or_path.rstrip("/\\"))[-1]),
    }
    if hub:
        fields["general.base_model.0.organization"] = hub[1]
    return fields


def title(name: str) -> str:
    """Turn a folder or model name into words, with a capital at the start of those that have none."""
    return " ".join(word.capitalize() if word.islower() else word for word in name.split("-"))
