"""Adapter folders of mlx-lm, translated to PEFT's names and layout.

In mlx-lm, A and B are transposed, [in, rank] and [rank, out], all experts are in one stack, and `scale` is the strength itself.
When mlx-lm loads a folder it adapts the modules that `keys` names in the last `num_layers` layers, and ignores tensors for
others. So they are ignored here too, and reported as left out.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from llamafu._util.adapter_files import CONFIG, MLX_WEIGHTS
from llamafu.adapters.info import split_name
from llamafu.adapters.invalid_file import invalid_file
from llamafu.adapters.peft.config import PeftConfig, parse_config
from llamafu.adapters.peft.module_name import decoder_module
from llamafu.adapters.peft.safetensors import read_safetensors, unique
from llamafu.errors import InvalidAdapterFileError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from llamafu.adapters.gguf.base_model import BaseModel

    Matrix = NDArray[np.floating[Any]]

_FACTOR = re.compile(r"(.+)\.lora_([ab])")
_STACK = "switch_mlp"
_REFUSED = {
    "dora": "a magnitude of every row beside the factors; train with --fine-tune-type lora, or fuse it (mlx_lm.fuse)",
    "full": "whole matrices and no factors; fuse it (mlx_lm.fuse) and convert the model",
}


class _Config(NamedTuple):
    """The configuration: ranks and strength in PEFT's terms, and which modules are adapted."""

    peft: PeftConfig
    layers: int
    """The number of last layers that are adapted; below 1 for all."""
    keys: frozenset[str] | None
    """The modules that are adapted, by their names in a layer or in the model; None for all."""
    sign: int
    """The sign of the scale, which B is multiplied by, since alpha has none."""


def read_mlx(
    config: bytes, weights: bytes, base: BaseModel, *, name: str
) -> tuple[PeftConfig, dict[str, Matrix], tuple[str, ...]]:
    """Return the configuration and the tensors as PEFT would have them, and the modules whose tensors are ignored.

    `name` is the folder's, for messages. Raises InvalidAdapterFileError with everything that is wrong.
    """
    problems: list[str] = []
    parsed, arrays = None, {}
    try:
        parsed = _config(config, name=f"{name}/{CONFIG}")
    except InvalidAdapterFileError as error:
        problems += error.problems
    try:
        arrays = read_safetensors(weights, name=f"{name}/{MLX_WEIGHTS}")
    except InvalidAdapterFileError as error:
        problems += error.problems
    if parsed is None or problems:
        raise invalid_file(name, problems)
    count = 1 + max((layer for _, layer in map(split_name, base.tensors) if layer is not None), default=-1)
    found: dict[str, Matrix] = {}
    ignored: dict[str, None] = {}
    for key, array in arrays.items():
        factor = _FACTOR.fullmatch(key)
        if factor is None:
            what = ": DoRA's magnitudes; train with --fine-tune-type lora" if key.endswith(".m") else ""
            problems.append(f"tensor {key[:200]!r} is no LoRA factor (...lora_a, ...lora_b){what}")
        elif not _is_adapted(factor[1], parsed, count):
            ignored[factor[1]] = None
        else:
            try:
                found |= _renamed(factor[1], factor[2], array * parsed.sign if factor[2] == "b" else array, parsed.peft.rank)
            except ValueError as error:
                problems.append(f"tensor {key[:200]!r} is {list(array.shape)}; {error}")
    if ignored and not found and not problems:
        problems.append(f"mlx-lm would use none of its {len(ignored)} modules: num_layers and keys name others")
    if problems:
        raise invalid_file(name, problems)
    return parsed.peft, found, tuple(ignored)


def _config(content: bytes, *, name: str) -> _Config:
    try:
        config = json.loads(content.decode("utf-8-sig"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise invalid_file(name, [f"no sound JSON: {error}"]) from error
    problems = _problems(config) if isinstance(config, dict) else ["no JSON object"]
    if problems:
        raise invalid_file(name, problems)
    parameters = config["lora_parameters"]
    rank, keys, scale = int(parameters["rank"]), parameters.get("keys"), parameters["scale"]
    said = {"r": rank, "lora_alpha": abs(scale) * rank, "base_model_name_or_path": config.get("model")}
    peft = parse_config(json.dumps({"peft_type": "LORA", **said}).encode(), name=name)
    return _Config(peft, _layers(config), None if keys is None else frozenset(keys), -1 if scale < 0 else 1)


def _problems(config: Mapping[str, Any]) -> list[str]:
    """List what a GGUF adapter cannot express, or mlx-lm does not write."""
    if config.get("peft_type"):
        return [f"it is PEFT's, and the weights are mlx-lm's ({MLX_WEIGHTS}); give both files of one adapter"]
    kind = config.get("fine_tune_type") or ("dora" if config.get("use_dora") else "lora")
    if kind != "lora":
        why = _REFUSED.get(str(kind), "not known here; known are lora, dora and full")
        return [f"fine_tune_type is {_shown(kind)}: {why}. A GGUF adapter cannot express it"]
    parameters = config.get("lora_parameters")
    if not isinstance(parameters, dict):
        return [f"lora_parameters is {_shown(parameters)}; it must have the rank and the scale"]
    rank, scale, alpha, keys = (parameters.get(key) for key in ("rank", "scale", "alpha", "keys"))
    problems = []
    if not isinstance(rank, int | float) or isinstance(rank, bool) or not rank >= 1 or rank % 1:
        problems.append(f"lora_parameters.rank is {_shown(rank)}; it must be a whole number from 1")
    if not isinstance(scale, int | float) or isinstance(scale, bool) or not abs(scale) > 0:
        problems.append(f"lora_parameters.scale is {_shown(scale)}; it must be a number other than 0")
    if alpha is not None and alpha != rank:
        problems.append(
            f"lora_parameters.alpha is {_shown(alpha)}: mlx-lm of before 2025 multiplied the scale by alpha / rank, newer ones "
            "take no notice of it; remove it, and where an old one trained the adapter multiply the scale"
        )
    if keys is not None and not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
        problems.append(f"lora_parameters.keys is {_shown(keys)}; it must be a list of modules' names")
    if type(_layers(config)) is not int:
        problems.append(f"num_layers is {_shown(_layers(config))}; it must be a whole number, -1 for all layers")
    return problems


def _layers(config: Mapping[str, Any]) -> Any:
    """Return the number of last layers, which older versions had in another field."""
    return next((found for key in ("num_layers", "lora_layers") if (found := config.get(key)) is not None), -1)


def _shown(value: object) -> str:
    return f"{value!r:.80}"


def _is_adapted(module: str, config: _Config, count: int) -> bool:
    """Whether mlx-lm adapts this module of a model with `count` layers."""
    name = decoder_module(module)
    layer = None if name is None else name.layer
    if layer is not None and 0 < config.layers <= count - 1 - layer:
        return False
    leaf = "" if name is None else name.plain.removeprefix("model.layers.0.")
    return config.keys is None or module in config.keys or (layer is not None and leaf in config.keys)


def _renamed(module: str, side: str, array: Matrix, rank: int) -> dict[str, Matrix]:
    """Return a factor by PEFT's names, one for each expert of a stack; raises ValueError saying which shape it must have."""
    letter = side.upper()
    parts = module.split(".")
    if _STACK in parts:
        if side == "a" and array.ndim == 2 and not array.shape[0] % rank:  # noqa: PLR2004 - as older versions had them
            array = array.reshape(-1, rank, array.shape[1])
        if array.ndim != 3 or array.shape[1 if side == "a" else 2] != rank:  # noqa: PLR2004 - the experts in front
            message = f"it must be {f'[experts, {rank}, in]' if side == 'a' else f'[experts, out, {rank}]'}"
            raise ValueError(message)
        place = parts.index(_STACK)
        stem, leaf = ".".join(parts[:place]), ".".join(parts[place + 1 :])
        return {f"base_model.model.{stem}.experts.{i}.{leaf}.lora_{letter}.weight": each for i, each in enumerate(array)}
    if array.ndim != 2 or array.shape[1 if side == "a" else 0] != rank:  # noqa: PLR2004 - matrices
        message = f"it must be {f'[in, {rank}]' if side == 'a' else f'[{rank}, out]'}"
        raise ValueError(message)
    end = f"lora_embedding_{letter}" if parts[-1] == "embed_tokens" else f"lora_{letter}.weight"
    return {f"base_model.model.{module}.{end}": array.T}
