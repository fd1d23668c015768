"""PEFT's pairs of factors mapped to GGUF tensors: one matrix each, or one expert of a stack."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from llamafu.adapters.info import is_expert, is_flipped
from llamafu.adapters.peft.architectures import ARCHITECTURES, in_gguf_order
from llamafu.adapters.peft.module_name import decoder_module, described, part_of, split_expert

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from llamafu.adapters.gguf.base_model import BaseModel
    from llamafu.adapters.peft.config import PeftConfig

    Matrix = NDArray[np.floating[Any]]

_STACKED = re.compile(r"(.+\.experts)((?:\.base_layer)*)")
_PARAMETERS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
"""The parameters that hold all experts of a layer since transformers 5, in its order, and the projections fused in each."""
_PAIRS = (["A", "B"], ["embedding_A", "embedding_B"])
_MOST_EXPERTS = 4096  # far more than any libllama takes; a damaged header must not fill the memory


class FactorPair(NamedTuple):
    """Factors for one base tensor: A [rank, in] and B [out, rank]; of a stack of experts with a first dimension more."""

    target: str
    """The base tensor's name."""
    a: Matrix
    b: Matrix
    alpha: float
    """Divided by the rank it gives PEFT's strength."""
    expert: int | None = None
    """The number of the expert of a stack; None for a whole tensor."""


def factor_pairs_of(
    module: str, sides: dict[str, Matrix], config: PeftConfig, base: BaseModel, *, exchanged: bool
) -> list[FactorPair]:
    """Return the factors of one PEFT module by base tensor, in GGUF's layout; raises ValueError saying what is wrong.

    `sides` are the module's tensors, `exchanged` what `exchanged_sides` returns for all modules.
    """
    if (stacked := _STACKED.fullmatch(module)) is not None:
        return _parameter(stacked[1], _parameter_name(module, config), sides, config, base, exchanged=exchanged)
    stack, expert = split_expert(module)
    target = _target(stack, base)
    embedding = any(side.startswith("embedding_") for side in sides)
    if is_flipped(target) != embedding:
        kinds = (
            ("factors of token embeddings", "a linear layer")
            if embedding
            else ("factors of a linear layer", "token embeddings")
        )
        names = "lora_A and lora_B" if embedding else "lora_embedding_A and lora_embedding_B"
        message = f"it has {kinds[0]}, and is {kinds[1]} in the base model, whose factors are called {names}; save it with PEFT"
        raise ValueError(message)
    if is_expert(target) != (expert is not None):
        message = (
            "it is a stack of all experts, whose factors are read one expert at a time (experts.0.up_proj), or as PEFT writes "
            "them for target_parameters"
        )
        raise ValueError(message)
    # PEFT matches the patterns of ranks and alphas with the full name of a parameter that was adapted directly.
    name = f"{module}.weight" if config.adapts_parameter(f"{module}.weight") else module
    a, b = _matrices(sides, config.rank_of(name))
    if expert is not None and expert >= (count := _expert_count(base)):
        message = f"there is no expert {expert}; the base model has {count}, from 0"
        raise ValueError(message)
    return [FactorPair(target, a.T if embedding else a, in_gguf_order(b, target, base), config.alpha_of(name), expert)]


def exchanged_sides(modules: Mapping[str, dict[str, Matrix]], config: PeftConfig, base: BaseModel) -> bool:
    """Whether A and B of parameters that hold all experts have each other's shapes, as PEFT wrote them before 0.19.1.

    A parameter whose in and out differ shows it; where all are square, PEFT's version does. Raises ValueError where the
    version does not say it either.
    """
    readings = {False, True}
    found = False
    for module, sides in modules.items():
        if (stacked := _STACKED.fullmatch(module)) is None or sorted(sides) != _PAIRS[0]:
            continue
        if {side.ndim for side in sides.values()} != {2}:
            continue
        sizes = _parameter_sizes(stacked[1], _parameter_name(module, config), base)
        stored = (sides["A"].shape[-1], sides["B"].shape[0])
        if sizes is not None and stored in (sizes, sizes[::-1]):
            readings &= {exchanged for exchanged in (False, True) if stored == (sizes[::-1] if exchanged else sizes)}
            found = True
    if not found or not readings:
        return False  # a misfit is reported when sizes are compared with the base model's
    if len(readings) == 1:
        return readings.pop()
    if config.exchanges_sides is None:
        message = (
            "the factors of its experts (target_parameters) fit the base model in both layouts that PEFT has had, and "
            f"peft_version is {config.version!r}, which does not say which; write the version of PEFT that saved it into "
            'adapter_config.json, such as "peft_version": "0.18.1"'
        )
        raise ValueError(message)
    return config.exchanges_sides


def stack_experts(pairs: Sequence[FactorPair], base: BaseModel) -> FactorPair:
    """Return the one pair of a base tensor, or stack those of its experts; experts that were not adapted get zeros.

    Experts share a rank and an alpha in GGUF: smaller ranks are padded with zeros, and B is scaled where alpha differs.
    """
    first = pairs[0]
    if first.expert is None:
        return first
    rank = max(pair.a.shape[0] for pair in pairs)
    alphas = [pair.alpha if pair.a.shape[0] == rank else pair.alpha * rank / pair.a.shape[0] for pair in pairs]
    alpha = Counter(alphas).most_common(1)[0][0]
    count = _expert_count(base)
    a = np.zeros((count, rank, first.a.shape[1]), np.result_type(*(pair.a for pair in pairs)))
    b = np.zeros((count, first.b.shape[0], rank), np.result_type(*(pair.b for pair in pairs)))
    for pair, own in zip(pairs, alphas, strict=True):
        if (pair.a.shape[1], pair.b.shape[0]) != (a.shape[2], b.shape[1]):
            message = f"its experts are of different sizes, {list(pair.b.shape)} and {list(first.b.shape)}"
            raise ValueError(message)
        a[pair.expert, : pair.a.shape[0]] = pair.a
        b[pair.expert, :, : pair.b.shape[1]] = pair.b if own == alpha else pair.b.astype(np.float64) * (own / alpha)
    return FactorPair(first.target, a, b, alpha)


def _target(module: str, base: BaseModel) -> str:
    """Return the base tensor's name for a module; raises ValueError saying why there is none."""
    architecture = ARCHITECTURES[base.architecture]
    target = architecture.target_of(module)
    if target is not None:
        return target
    if part := part_of(module):
        message = (
            f"it belongs to the {described(part)}, which GGUF keeps in a file of its own, that no adapter reaches; "
            f"leave it out with drop=[{part!r}] (llamafu convert --drop {part})"
        )
    elif decoder_module(module) is None:
        message = (
            "its name is none of a decoder's (model.layers.0..., language_model.model.layers.0..., embed_tokens, lm_head); "
            "leave it out with drop=[...] (llamafu convert --drop) and a part of its name, if the answers can do without it"
        )
    else:
        message = (
            f"{base.architecture!r} models have no such linear layer: theirs are {', '.join(architecture.leaves)}; give the "
            "base model that it was trained on, or leave it out with drop=[...] (llamafu convert --drop)"
        )
    raise ValueError(message)


def _parameter_name(module: str, config: PeftConfig) -> str | None:
    """Return the parameter that a stack's factors are for. PEFT wraps one after another, so the first is nested deepest."""
    stacked = _STACKED.fullmatch(module)
    assert stacked is not None  # noqa: S101 - the caller looked
    adapted = [name for name in _PARAMETERS if config.adapts_parameter(f"{stacked[1]}.{name}")]
    depth = stacked[2].count(".")
    return adapted[-1 - depth] if depth < len(adapted) else None


def _parameter_sizes(module: str, parameter: str | None, base: BaseModel) -> tuple[int, int] | None:
    """Return in and out of one expert's matrix in a parameter; None where the base model does not say."""
    names = _PARAMETERS.get(parameter or "", ())
    targets = [ARCHITECTURES[base.architecture].target_of(f"{module}.{name}") for name in names]
    whole = (targets[0] or "").replace("ffn_gate_exps", "ffn_gate_up_exps") if targets else ""
    shapes = [base.tensors.get(whole)] if whole in base.tensors else [base.tensors.get(target or "") for target in targets]
    known = [shape for shape in shapes if shape is not None]
    return (known[0][0], sum(shape[1] for shape in known)) if known and len(known) == len(shapes) else None


def _parameter(
    module: str, parameter: str | None, sides: dict[str, Matrix], config: PeftConfig, base: BaseModel, *, exchanged: bool
) -> list[FactorPair]:
    """Split the factors of a parameter that holds all experts into those of its projections, each a stack of experts."""
    if parameter is None:
        message = (
            "it holds all experts of a layer, and target_parameters in adapter_config.json does not name the parameter that "
            f"its factors are for, {' or '.join(f'mlp.experts.{name}' for name in _PARAMETERS)}: it is "
            f"{list(config.target_parameters)}"
        )
        raise ValueError(message)
    projections = _PARAMETERS[parameter]
    targets = [_target(f"{module}.{name}", base) for name in projections]
    count, rank = _expert_count(base), config.rank_of(f"{module}.{parameter}")
    a, b = _matrices(sides, count * rank)
    a, b = a.reshape(count, rank, -1), b.reshape(-1, rank, count).transpose(2, 0, 1)
    if exchanged:
        a, b = b.transpose(0, 2, 1), a.transpose(0, 2, 1)
    if b.shape[1] % len(projections):
        message = f"B has {b.shape[1]} rows, which do not split into those of {' and '.join(projections)}"
        raise ValueError(message)
    alpha = config.alpha_of(f"{module}.{parameter}")
    return [
        FactorPair(target, a, part, alpha) for target, part in zip(targets, np.split(b, len(projections), axis=1), strict=True)
    ]


def _matrices(sides: dict[str, Matrix], rank: int) -> tuple[Matrix, Matrix]:
    names = sorted(sides)
    if names not in _PAIRS:
        listed = ", ".join(f"lora_{name}" for name in names)
        message = f"{listed} has no partner" if len(names) == 1 else f"{listed} are no pair"
        raise ValueError(message)
    a, b = (sides[name] for name in names)
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != rank or b.shape[1] != rank or 0 in a.shape + b.shape:  # noqa: PLR2004 - matrices
        message = f"A is {list(a.shape)} and B is {list(b.shape)}; they must be [{rank}, in] and [out, {rank}]"
        raise ValueError(message)
    return a, b


def _expert_count(base: BaseModel) -> int:
    count = base.metadata.get(f"{base.architecture}.expert_count")
    if not isinstance(count, int) or not 1 <= count <= _MOST_EXPERTS:
        message = f"it belongs to an expert, of which the base model has none ({base.architecture}.expert_count is {count!r})"
        raise ValueError(message)
    return count
