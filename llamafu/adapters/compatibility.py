"""Whether an adapter fits a base model: every mismatch is reported, not only the first."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from itertools import count, groupby
from typing import TYPE_CHECKING

from llamafu._util.listing import listed
from llamafu._util.suggestions import nearest_names
from llamafu.adapters.info import TensorInfo, is_expert, is_flipped, split_name
from llamafu.errors import LoraIncompatibleError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llamafu.adapters.file import AdapterFile
    from llamafu.adapters.gguf.base_model import BaseModel


_PROJECTOR_PARTS = {"v": "vision tower", "a": "audio tower", "mm": "projector"}
"""Parts of a projector file, by the beginning of their tensors' names."""


@dataclass(frozen=True, slots=True)
class CompatibilityReport:
    """The mismatches of an adapter and a base model; true where there are none."""

    problems: tuple[str, ...] = ()
    """Every mismatch; tensors of several layers with the same one share a line that lists the layers."""

    def __bool__(self) -> bool:
        return not self.problems


def check_compatibility(adapter: AdapterFile, base: BaseModel) -> CompatibilityReport:
    """Compare a checked adapter with a base model's header: architecture, every target and its sizes, invocation tokens."""
    info = adapter.info
    problems = []
    if info.architecture != base.architecture:
        problems.append(f"the adapter is for the architecture {info.architecture!r}, the base model is {base.architecture!r}")
    mismatches: dict[str, list[str]] = defaultdict(list)
    modules = _modules(base)
    for tensor in info.tensors:
        why = _mismatch(tensor, base, modules)
        if why:
            mismatches[why].append(tensor.name)
    for why, names in mismatches.items():
        problems += [f"{label}: {why}" for label in _by_layers(names)]
    size = base.vocabulary_size
    beyond = [token for token in info.invocation_tokens if size is not None and token >= size]
    if beyond:
        listed = ", ".join(map(str, beyond))
        problems.append(f"invocation tokens {listed} lie outside the base model's vocabulary of {size} tokens")
    return CompatibilityReport(tuple(problems))


def demand_fit(adapter: AdapterFile, base: BaseModel) -> None:
    """Raise LoraIncompatibleError, with every mismatch, unless `adapter` fits `base`."""
    report = check_compatibility(adapter, base)
    if not report:
        message = f"{adapter.path} does not fit {base.path.name}: {listed(report.problems, '; ')}"
        raise LoraIncompatibleError(message, problems=report.problems)


def _modules(base: BaseModel) -> dict[str, set[int | None]]:
    """Return the modules of the base model that have a matrix, each with its layers."""
    modules: dict[str, set[int | None]] = defaultdict(set)
    for name, shape in base.tensors.items():
        module, layer = split_name(name)
        if len(shape) > 1:
            modules[module].add(layer)
    return modules


def _mismatch(tensor: TensorInfo, base: BaseModel, modules: dict[str, set[int | None]]) -> str | None:
    """Return why `tensor` does not fit, in words that do not depend on the layer; None where it fits."""
    stored = base.tensors.get(tensor.name)
    if stored is None:
        return _absence(tensor, base, modules)
    if len(stored) == 1:
        return f"a vector of {stored[0]} values in the base model (norm, bias); libllama adapts matrices only"
    if is_flipped(tensor.name) and base.tied:
        return (
            "the base model's output matrix is tied to its token embeddings (there is no output.weight), "
            "and libllama aborts on an adapter for such embeddings; train without embed_tokens and lm_head"
        )
    experts = stored[2:] or ((1,) if is_expert(tensor.name) else ())
    *own_experts, own_out, own_in = tensor.shape
    wrong = []
    if (own_in, own_out) != stored[:2]:
        wrong.append(f"the adapter is {own_in} in, {own_out} out; the base model is {stored[0]} in, {stored[1]} out")
    if tuple(own_experts) != experts:
        wrong.append(f"the adapter has {_stack(own_experts)}, the base model {_stack(experts)}")
    return "; ".join(wrong) or None


def _stack(sizes: Iterable[int]) -> str:
    return " x ".join(f"{size} experts" for size in sizes) or "one matrix, no experts"


def _absence(tensor: TensorInfo, base: BaseModel, modules: dict[str, set[int | None]]) -> str:
    if (part := _PROJECTOR_PARTS.get(tensor.name.partition(".")[0])) is not None:
        return (
            f"it belongs to the model's {part} (its mmproj file), which is computed without adapters; train without it, or "
            "convert the PEFT folder without it: drop=[...] (llamafu convert --drop vision, audio or projector)"
        )
    if tensor.name == "output.weight":
        return "not in the base model, whose output matrix is tied to token_embd.weight; train without lm_head"
    if f"{tensor.name}.weight" in base.tensors:
        return "not in the base model; the name there ends in .weight"
    layers = [layer for layer in modules.get(tensor.module, ()) if layer is not None]
    if layers:
        return f"not in the base model, which has {tensor.module} in {_layers(layers)} only"
    return f"not in the base model; {_nearest(tensor.module, tuple(sorted(modules)))}"


@lru_cache(maxsize=256)
def _nearest(module: str, modules: tuple[str, ...]) -> str:
    """Name the modules most like a missing one; remembered, since every layer of an adapter asks the same."""
    near = nearest_names(module, modules, count=3, cutoff=0.5)
    return f"the nearest names in it are {', '.join(near)}" if near else f"it has {', '.join(modules)}"


def _by_layers(names: list[str]) -> list[str]:
    """Merge names that differ only in the layer: `blk.0-29.attn_q.weight`."""
    groups: dict[str, list[int]] = defaultdict(list)
    for name in names:
        _, layer = split_name(name)
        template = name if layer is None else name.replace(f"blk.{layer}.", "blk.{}.", 1)
        groups[template] += [] if layer is None else [layer]
    return [template.replace("{}", ranges(layers), 1) if layers else template for template, layers in groups.items()]


def _layers(layers: list[int]) -> str:
    return f"layer{'s' if len(layers) > 1 else ''} {ranges(layers)}"


def ranges(numbers: Iterable[int]) -> str:
    """Format `[0, 1, 2, 5]` as `0-2,5`."""
    counter = count()
    runs = [list(run) for _, run in groupby(sorted(set(numbers)), key=lambda number: number - next(counter))]
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
