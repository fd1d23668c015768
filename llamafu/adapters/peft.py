"""What PEFT's `adapter_config.json` says, and whether a GGUF adapter can say it too."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from llamafu.adapters.container import invalid_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_Number = TypeVar("_Number", int, float)
CONFIG = "adapter_config.json"
_PATTERN_LIMIT = 1000  # characters
_ALPHAS = (1e-30, 1e30)  # what float32 holds with room to spare; 0 would mean the strength 1 to libllama
_OFF = ("use_dora", "lora_bias", "modules_to_save", "layer_replication", "trainable_token_indices")
_HARMLESS = {"use_rslora", "corda_config", "eva_config", "loftq_config", "lora_ga_config", "runtime_config"}
"""Keys that look like features and are either handled here or only matter to training."""
_OTHER_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that change the base model's weights, so that the factors fit no base model that is published."""


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """A checked LoRA configuration."""

    rank: int
    alpha: float
    rslora: bool
    """Whether the strength is alpha / sqrt(rank) and not alpha / rank."""
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    base_model: str | None
    """Hub id or path of the model it was trained on."""
    invocation_tokens: tuple[int, ...]
    """Of an activated adapter (aLoRA)."""
    target_parameters: tuple[str, ...]
    """Ends of the names of parameters that were adapted directly, such as a layer's stack of experts."""

    def adapts_parameter(self, name: str) -> bool:
        """Whether the parameter with this full name, `model.layers.0.mlp.experts.down_proj`, was adapted directly."""
        return any(f".{name}".endswith(f".{ending}") for ending in self.target_parameters)

    def rank_of(self, module: str) -> int:
        """Rank of the module with this full name, `model.layers.0.self_attn.q_proj`."""
        return _by_pattern(self.rank_pattern, module, self.rank)

    def alpha_of(self, module: str) -> float:
        """Alpha of this module as libllama means it: divided by the rank it gives PEFT's strength, rsLoRA's too."""
        alpha = _by_pattern(self.alpha_pattern, module, self.alpha)
        return alpha * math.sqrt(self.rank_of(module)) if self.rslora else alpha


def read_config(folder: Path) -> PeftConfig:
    """Read and check the configuration in `folder`.

    Raises:
        InvalidAdapterFileError: it is damaged, or says what no GGUF adapter can; `.problems` names every such key.
        OSError: it cannot be read.

    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise invalid_file(str(path), [f"no sound JSON: {error}"]) from error
    if not isinstance(config, dict):
        raise invalid_file(str(path), ["no JSON object"])
    problems = _unrepresentable(config) + _malformed(config)
    if problems:
        raise invalid_file(str(path), problems)
    return PeftConfig(
        rank=config["r"],
        alpha=float(config["lora_alpha"]),
        rslora=bool(config.get("use_rslora")),
        rank_pattern=config.get("rank_pattern") or {},
        alpha_pattern=config.get("alpha_pattern") or {},
        base_model=config.get("base_model_name_or_path") or None,
        invocation_tokens=tuple(config.get("alora_invocation_tokens") or ()),
        target_parameters=tuple(config.get("target_parameters") or ()),
    )


def _unrepresentable(config: Mapping[str, Any]) -> list[str]:
    """Name what changes the meaning of the factors and cannot be said in a GGUF adapter."""
    kind = config.get("peft_type")
    if kind != "LORA":
        return [f"peft_type is {kind!r}; only 'LORA' can be converted"]
    problems = []
    if config.get("bias", "none") != "none":
        problems.append(
            f"bias is {config['bias']!r}: trained biases have no place in a GGUF adapter, only 'none' can be converted"
        )
    features = [key for key in config if (key.startswith("use_") or key.endswith("_config")) and key not in _HARMLESS]
    problems += [
        f"{key} is {config[key]!r}: a GGUF adapter cannot express it, only adapters trained without it can be converted"
        for key in dict.fromkeys((*_OFF, *features))
        if config.get(key)
    ]
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_OTHER_BASE):
        problems.append(
            f"init_lora_weights is {start!r}, which changed the base model's weights; let PEFT save it as plain LoRA "
            "(path_initial_model_for_weight_conversion)"
        )
    if config.get("invocation_string") and not config.get("alora_invocation_tokens"):
        problems.append("invocation_string is given without alora_invocation_tokens; add the tokens")
    return problems


def _malformed(config: Mapping[str, Any]) -> list[str]:
    problems = []
    if not _is_rank(config.get("r")):
        problems.append(f"r is {config.get('r')!r}; it must be a whole number from 1")
    if not _is_alpha(config.get("lora_alpha")):
        problems.append(f"lora_alpha is {config.get('lora_alpha')!r}; it must be a number from 1e-30 to 1e30")
    for key, legal in (("rank_pattern", _is_rank), ("alpha_pattern", _is_alpha)):
        pattern = config.get(key) or {}
        if not isinstance(pattern, dict) or not all(legal(value) for value in pattern.values()):
            problems.append(f"{key} is {pattern!r}; each name in it needs a number above 0")
        else:
            problems += [f"{key}: {name!r} is no sound pattern of names" for name in pattern if not _compiles(name)]
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str | None) or not (base or "").isprintable():
        problems.append(f"base_model_name_or_path is {base!r}; it must be printable text")
    tokens = config.get("alora_invocation_tokens") or []
    if not isinstance(tokens, list) or not all(type(token) is int and 0 <= token < 1 << 32 for token in tokens):
        problems.append(f"alora_invocation_tokens is {tokens!r}; it must be a list of token numbers")
    parameters = config.get("target_parameters") or []
    if not isinstance(parameters, list) or not all(isinstance(name, str) and name for name in parameters):
        problems.append(f"target_parameters is {parameters!r}; it must be a list of names")
    return problems


def _is_rank(value: object) -> bool:
    return type(value) is int and value > 0


def _is_alpha(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and _ALPHAS[0] <= value <= _ALPHAS[1]


def _compiles(pattern: str) -> bool:
    if len(pattern) > _PATTERN_LIMIT:
        return False
    try:
        re.compile(_ending(pattern))
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _by_pattern(patterns: Mapping[str, _Number], module: str, default: _Number) -> _Number:
    """PEFT's rule: the first pattern counts that matches."""
    for pattern, value in patterns.items():
        if re.match(_ending(pattern), module):
            return value
    return default


def _ending(pattern: str) -> str:
    """Match `pattern` at the end of a module's name, from a dot or the beginning on."""
    return rf"(.*\.)?({pattern})$"
