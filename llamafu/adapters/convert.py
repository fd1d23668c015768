"""PEFT folders become GGUF adapters: names, the architectures' own transforms, and the exact strength of every tensor."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import gguf
import numpy as np

from llamafu._whole_file import whole_file
from llamafu.adapters.base import BaseModel, read_base
from llamafu.adapters.compatibility import check_compatibility
from llamafu.adapters.container import invalid_file
from llamafu.adapters.file import AdapterFile, AdapterFileNotFoundError, check_adapter
from llamafu.adapters.info import split_name
from llamafu.adapters.peft import CONFIG, PeftConfig, read_config
from llamafu.adapters.safetensors import read_safetensors
from llamafu.adapters.write import adapter_bytes
from llamafu.errors import ErrorCode, LoraError, LoraIncompatibleError, LoraLoadError

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

    from llamafu.adapters.info import AdapterInfo
    from llamafu.adapters.write import Field

    Matrix = NDArray[np.floating[Any]]

ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3}
"""What can be converted, in GGUF's terms; Mistral models are "llama" too."""

WEIGHTS = "adapter_model.safetensors"
_NAME = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
_LAYER = re.compile(r"\.layers\.([0-9]{1,5})\.")
_DTYPES = {"f16": "<f2", "f32": "<f4"}
HUB_ID = re.compile(r"([\w.-]*\w)/([\w.-]+)")


class _Factors(NamedTuple):
    """The pair of one base tensor, in NumPy's order: A is (rank, in), B is (out, rank)."""

    target: str
    a: Matrix
    b: Matrix
    alpha: float
    """Divided by the rank, as libllama does with the file's one alpha, it gives PEFT's strength."""


def convert_peft(
    directory: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    base: BaseModel | str | os.PathLike[str] | None = None,
    dtype: Literal["f16", "f32"] = "f16",
) -> AdapterInfo:
    """Write the PEFT adapter in the folder `directory` as the GGUF file `output`, and return its facts.

    `base` is the GGUF model it is for (only its header is read): architecture, head counts and sizes come from there. The
    same folder gives the same bytes, and `output` appears whole or not at all; a file there is replaced.

    Raises:
        InvalidAdapterFileError: the folder is damaged or holds what a GGUF adapter cannot express; `.problems` has all.
        LoraIncompatibleError: it does not fit `base`, or the architecture cannot be converted.
        LoraError: no `base`, or `output` lies in the folder or is the base model.
        ModelLoadError: `base` cannot be read.
        OSError: `output` cannot be written.

    """
    folder, output = Path(directory), Path(output)
    if base is None:
        message = f"{folder}: converting needs the base model's header; give the GGUF model that it is for as base"
        raise LoraError(message, code=ErrorCode.INVALID_PARAM)
    if not isinstance(base, BaseModel):
        base = read_base(base)
    target = output.resolve()
    if target == base.path.resolve() or folder.resolve() in (target, *target.parents):
        message = f"{output}: the output must be neither the base model nor in the folder {folder}; choose another place"
        raise LoraError(message, code=ErrorCode.INVALID_PARAM)
    file = read_peft(folder, base, dtype=dtype)
    report = check_compatibility(file, base)
    if not report:
        message = f"{folder} does not fit {base.path.name}: {'; '.join(report.problems)}"
        raise LoraIncompatibleError(message, problems=report.problems)
    with whole_file(target) as unfinished:
        unfinished.write_bytes(file.content)
    return file.info


def read_peft(folder: Path, base: BaseModel, *, dtype: Literal["f16", "f32"] = "f16") -> AdapterFile:
    """Convert the PEFT adapter in `folder` in memory; raises what `convert_peft` raises, but does not compare sizes."""
    if dtype not in _DTYPES:
        message = f"dtype is {dtype!r}; it must be one of {', '.join(_DTYPES)}"
        raise LoraError(message, code=ErrorCode.INVALID_PARAM)
    if base.architecture not in ARCHITECTURES:
        problem = (
            f"PEFT adapters for {base.architecture!r} cannot be converted; the architectures are {', '.join(ARCHITECTURES)}"
        )
        message = f"{folder}: {problem}"
        raise LoraIncompatibleError(message, problems=(problem,))
    weights = folder / WEIGHTS
    try:
        config = read_config(folder)
        if not weights.exists() and (folder / "adapter_model.bin").exists():
            problem = (
                "its weights are adapter_model.bin, a Python pickle; save it as safetensors (PEFT: safe_serialization=True)"
            )
            raise invalid_file(str(folder), [problem])
        content = weights.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        message = f"{folder}: no PEFT adapter, it needs {CONFIG} and {WEIGHTS}"
        raise AdapterFileNotFoundError(message) from error
    except OSError as error:
        message = f"{folder}: the adapter cannot be read: {error.strerror}"
        raise LoraLoadError(message, code=ErrorCode.FILE_READ_FAILED) from error
    factors = _factors(read_safetensors(content, name=str(weights)), config, base, str(weights))
    alpha = Counter(pair.alpha for pair in factors).most_common(1)[0][0]
    tensors = _folded(factors, alpha, _DTYPES[dtype], str(weights))
    return check_adapter(_gguf_bytes(tensors, alpha, config, base.architecture, folder.resolve().name), folder)


def interleave_heads(b: Matrix, heads: int) -> Matrix:
    """Reorder the rows of a q or k factor for llama.cpp's rotary layout.

    PEFT's base rotates row i of a head with row i + head_size/2; GGUF llama models rotate neighbours, so
    within every head the two halves are dealt out in turn.
    """
    if heads < 1 or b.shape[0] % (2 * heads):
        message = f"{b.shape[0]} output rows do not split into {heads} heads of even size: wrong base model"
        raise ValueError(message)
    return b.reshape(heads, 2, -1, b.shape[1]).transpose(0, 2, 1, 3).reshape(b.shape)


def row_heads(target: str, architecture: str, base: BaseModel | None) -> int | None:
    """Return the number of heads by which the rows of the tensor `target` are reordered, None where they are not.

    Raises ValueError where `base` would have to say it and does not.
    """
    key = {"attn_q": "head_count", "attn_k": "head_count_kv"}.get(split_name(target)[0])
    if architecture != "llama" or key is None:
        return None
    if base is None:
        message = "its rows are in an order that depends on the number of heads; give the GGUF model that it is for as base"
        raise ValueError(message)
    count = base.metadata.get(f"llama.attention.{key}", base.metadata.get("llama.attention.head_count"))
    if not isinstance(count, int):
        message = f"the base model does not say how many heads it has (llama.attention.{key} is {count!r})"
        raise ValueError(message)  # noqa: TRY004 - a wrong file, not a wrong call
    return count


def _factors(arrays: dict[str, Matrix], config: PeftConfig, base: BaseModel, name: str) -> list[_Factors]:
    """Pair the tensors, in the file's order, under the base model's names and in its layout."""
    problems: list[str] = []
    names = gguf.get_tensor_name_map(ARCHITECTURES[base.architecture], 1)
    found: dict[str, _Factors] = {}
    for module, sides in _by_module(arrays, problems).items():
        try:
            pair = _pair(module, sides, _target(names, module), config, base)
        except ValueError as error:
            problems.append(f"module {module!r}: {error}")
        else:
            if pair.target in found:
                problems.append(f"module {module!r}: it is {pair.target!r} in GGUF, which another module is already")
            found[pair.target] = pair
    if problems:
        raise invalid_file(name, problems)
    return list(found.values())


def _by_module(arrays: dict[str, Matrix], problems: list[str]) -> dict[str, dict[str, Matrix]]:
    modules: dict[str, dict[str, Matrix]] = {}
    for key, array in arrays.items():
        match = _NAME.fullmatch(key)
        if match is None:
            problems.append(f"tensor {key!r} is no LoRA factor (...lora_A.weight, ...lora_B.weight) of a linear layer")
        elif not np.isfinite(array).all():
            problems.append(f"tensor {key!r} holds NaN or infinite values")
        else:
            modules.setdefault(match[1], {})[match[2]] = array
    if not arrays:
        problems.append("the file has no tensors")
    return modules


def _target(names: gguf.TensorNameMap, module: str) -> str | None:
    """Name the base tensor of a module; the map knows layer 0, for the others differ in the number only."""
    layer = _LAYER.search(module)
    known = names.get_name(_LAYER.sub(".layers.0.", module, count=1))
    if known is None:
        return None
    return f"{known.replace('blk.0.', f'blk.{int(layer[1])}.', 1) if layer else known}.weight"


def _pair(module: str, sides: dict[str, Matrix], target: str | None, config: PeftConfig, base: BaseModel) -> _Factors:
    """Check one module's factors; raises ValueError saying what is wrong with them."""
    rank = config.rank_of(module)
    problem = ""
    if target is None or target == "token_embd.weight":
        target, problem = "", "it is no linear layer known for this architecture and cannot be converted"
    elif len(sides) == 1:
        problem = f"lora_{''.join(sides)} has no partner"
    else:
        a, b = sides["A"].shape, sides["B"].shape
        if len(a) != 2 or len(b) != 2 or a[0] != rank or b[1] != rank or not a[1] or not b[0]:  # noqa: PLR2004 - matrices
            problem = f"A is {list(a)} and B is {list(b)}; they must be [{rank}, in] and [out, {rank}]"
    if problem:
        raise ValueError(problem)
    return _Factors(target, sides["A"], _arranged(sides["B"], target, base), config.alpha_of(module))


def _arranged(b: Matrix, target: str, base: BaseModel) -> Matrix:
    """Bring the rows of B into the order of the base model's; raises ValueError when the heads do not fit."""
    heads = row_heads(target, base.architecture, base)
    return interleave_heads(b, heads) if heads else b


def _folded(factors: list[_Factors], alpha: float, dtype: str, name: str) -> list[tuple[str, Matrix]]:
    """Return the GGUF tensors. Where the file's one alpha would give a wrong strength, B makes up for it."""
    problems = []
    tensors: list[tuple[str, Matrix]] = []
    for pair in factors:
        share = 1 if pair.alpha == alpha else pair.alpha / float(np.float32(alpha))
        b = pair.b if share == 1 else pair.b.astype(np.float64) * share
        for side, array in (("a", pair.a), ("b", b)):
            with np.errstate(over="ignore"):
                stored = np.ascontiguousarray(array).astype(dtype)
            if not np.isfinite(stored).all():
                problems.append(f"{pair.target}.lora_{side} has values beyond {np.finfo(dtype).max:g}; choose the dtype 'f32'")
            tensors.append((f"{pair.target}.lora_{side}", stored))
    if problems:
        raise invalid_file(name, problems)
    return tensors


def _gguf_bytes(tensors: list[tuple[str, Matrix]], alpha: float, config: PeftConfig, architecture: str, name: str) -> bytes:
    fields: dict[str, Field] = {
        "general.name": title(name.encode("utf-8", "replace").decode()),  # a folder's name may be any bytes
        **(_base_model(config.base_model) if config.base_model else {}),
        "adapter.lora.alpha": np.float32(alpha),
    }
    if config.invocation_tokens:
        fields["adapter.alora.invocation_tokens"] = np.array(config.invocation_tokens, np.uint32)
    fields["general.quantization_version"] = np.uint32(2)
    return adapter_bytes(architecture, fields, dict(tensors))


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
