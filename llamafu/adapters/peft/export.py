"""GGUF adapters written as PEFT folders, with PEFT's names, order of rows and strengths."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llamafu._util.adapter_files import CONFIG, SAFETENSORS
from llamafu._util.atomic import whole_folder
from llamafu._util.listing import listed
from llamafu.adapters.compatibility import demand_fit
from llamafu.adapters.file import read_adapter
from llamafu.adapters.gguf.base_model import BaseModel
from llamafu.adapters.info import is_expert, is_flipped, split_name
from llamafu.adapters.peft.architectures import ARCHITECTURES, Architecture, row_heads, separate_halves
from llamafu.adapters.peft.hf_config import read_any_base
from llamafu.adapters.peft.safetensors import safetensors_bytes
from llamafu.adapters.peft.source_names import read_source_names
from llamafu.errors import LoraIncompatibleError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from llamafu.adapters.file import AdapterFile
    from llamafu.adapters.gguf.tensor_entry import TensorEntry
    from llamafu.adapters.info import AdapterInfo, TensorInfo

    Matrix = NDArray[np.floating[Any]]

_OUTSIDE = ("model.embed_tokens", "lm_head")
_HUB = re.compile(r"https://huggingface\.co/([\w.-]+/[\w.-]+)")


def export_peft(
    adapter: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    *,
    base: BaseModel | str | os.PathLike[str] | None = None,
) -> AdapterInfo:
    """Write the GGUF adapter at `adapter` as the new PEFT folder `directory`, and return the adapter's facts.

    The change to every matrix stays the same, and F16 stays F16. Modules have the names of the folder that the file was
    converted from (by this library), or else those of a text-only model. `base` is the GGUF model that the adapter is for
    (only its header is read), or its `config.json`; it is needed where the architecture reorders rows within heads, as llama
    does for q and k.

    Raises:
        LoraIncompatibleError: the architecture or a tensor has no PEFT form here, or needs `base`, or does not fit it.
        InvalidAdapterFileError, LoraLoadError, ModelLoadError: `adapter` or `base` cannot be read or is damaged.
        OSError: `directory` exists or cannot be written. On any error there is no new folder.

    """
    file = read_adapter(adapter)
    if base is not None and not isinstance(base, BaseModel):
        base = read_any_base(base)
    if base is not None:
        demand_fit(file, base)
    write_folder(file, Path(directory), base)
    return file.info


def write_folder(file: AdapterFile, directory: Path, base: BaseModel | None) -> None:
    """Write a checked adapter that fits `base` like `export_peft`, and raise what it raises."""
    modules, arrays = peft_form(file, base)
    merge = {key: value for key, value in file.info.metadata.items() if key.startswith("llamafu.merge.")}
    content = safetensors_bytes(arrays, {"format": "pt", **{key: json.dumps(value) for key, value in merge.items()}})
    with whole_folder(directory) as unfinished:
        (unfinished / CONFIG).write_text(json.dumps(_config(file.info, modules), indent=2) + "\n", encoding="utf-8")
        (unfinished / SAFETENSORS).write_bytes(content)


def peft_form(file: AdapterFile, base: BaseModel | None) -> tuple[dict[str, str], dict[str, Matrix]]:
    """Return PEFT's module names by base tensor, and PEFT's tensors; raises LoraIncompatibleError for all that have none."""
    architecture = file.info.architecture
    if architecture not in ARCHITECTURES:
        problem = f"adapters for {architecture!r} cannot be written as PEFT; the architectures are {', '.join(ARCHITECTURES)}"
        message = f"{file.path}: {problem}"
        raise LoraIncompatibleError(message, problems=(problem,))
    known = _known(ARCHITECTURES[architecture])
    sources = read_source_names(file.info.metadata)
    problems: list[str] = []
    modules: dict[str, str] = {}
    arrays: dict[str, Matrix] = {}
    for name, pair in file.pairs.items():
        module, layer = split_name(name)
        if is_expert(name) or module not in known:
            problems.append(f"{name} has no form in a PEFT folder; it can be kept as GGUF only")
            continue
        modules[name] = sources.of(known[module] if layer is None else known[module].replace(".0.", f".{layer}.", 1))
        a, b = (_values(file, entry) for entry in pair)
        try:
            heads = row_heads(name, architecture, base)
            b = b if heads is None else separate_halves(b, heads)
        except ValueError as error:
            problems.append(f"{name}: {error}")
        flipped = is_flipped(name)
        for side, values in (("A", a.T if flipped else a), ("B", b)):
            end = f"lora_embedding_{side}" if flipped else f"lora_{side}.weight"
            arrays[f"base_model.model.{modules[name]}.{end}"] = values
    if problems:
        message = f"{file.path} cannot be written as PEFT: {listed(problems, '; ')}"
        raise LoraIncompatibleError(message, problems=tuple(problems))
    return modules, arrays


def _known(architecture: Architecture) -> dict[str, str]:
    """Return PEFT's names for the modules of layer 0 and those outside the layers, by GGUF's names."""
    modules = [*(f"model.layers.0.{leaf}" for leaf in architecture.leaves), *_OUTSIDE]
    return {split_name(name)[0]: module for module in modules if (name := architecture.target_of(module)) is not None}


def _values(file: AdapterFile, entry: TensorEntry) -> Matrix:
    values = file.matrix(entry)
    return values.astype(np.float16) if entry.type is not None and entry.type.name == "F16" else values


def _config(info: AdapterInfo, modules: Mapping[str, str]) -> dict[str, Any]:
    """Return `adapter_config.json`, in which alpha / rank of each module is the strength that libllama gives it."""
    others = [tensor for tensor in info.tensors if tensor.rank != info.rank]
    return {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION" if read_source_names(info.metadata).headless else "CAUSAL_LM",
        "base_model_name_or_path": _hub_id(info),
        "r": info.rank,
        "lora_alpha": info.alpha or info.rank,
        "target_modules": list(modules.values()),
        "rank_pattern": _pattern(others, modules),
        "alpha_pattern": {} if info.alpha else _pattern(others, modules),
        "alora_invocation_tokens": list(info.invocation_tokens) or None,
        "use_rslora": False,
        "fan_in_fan_out": False,
        "bias": "none",
        "lora_dropout": 0.0,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _pattern(tensors: Iterable[TensorInfo], modules: Mapping[str, str]) -> dict[str, int]:
    return {re.escape(modules[tensor.name]): tensor.rank for tensor in tensors}


def _hub_id(info: AdapterInfo) -> str | None:
    address = info.metadata.get("general.base_model.0.repo_url")
    hub = _HUB.fullmatch(address) if isinstance(address, str) else None
    return hub[1] if hub else None
