"""PEFT's `adapter_config.json`: read, and checked for settings that a GGUF adapter cannot express."""

from __future__ import annotations

import json
import math
import re
import reprlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llamafu.adapters.invalid_file import invalid_file
from llamafu.adapters.peft.config_fields import HARMLESS, READ, REFUSED
from llamafu.adapters.peft.pattern_table import PatternTable
from llamafu.adapters.peft.safetensors import unique

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LARGEST_CONFIG = 10_000_000  # bytes
_ALPHAS = (1e-30, 1e30)  # what float32 holds with room to spare; 0 would mean the strength 1 to libllama
_MOST_RANK = 1 << 20
_VERSION = re.compile(r"([0-9]{1,5})\.([0-9]{1,5})\.([0-9]{1,5})(\.?dev)?")
_SIDES_FIXED = (0, 19, 1)  # the version of PEFT that no longer exchanges A and B of parameters
_MOST_STATES = 50_000  # of all patterns together

_SAME_BASE = ("gaussian", "eva", "orthogonal", "mica")
_OTHER_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that leave the base model's weights as they are, and those that change them, so that the factors are for
weights that nobody has published."""


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """A checked LoRA configuration."""

    rank: int
    alpha: float
    rslora: bool
    """Whether the strength is alpha / sqrt(rank) and not alpha / rank."""
    rank_pattern: PatternTable[int]
    alpha_pattern: PatternTable[float]
    base_model: str | None
    """Hub id or path of the model it was trained on."""
    invocation_tokens: tuple[int, ...]
    """Of an activated adapter (aLoRA)."""
    target_parameters: tuple[str, ...]
    """Ends of the names of parameters that were adapted directly, such as a layer's stack of experts."""
    version: str | None
    """PEFT's own version; None where the configuration does not have it (before 0.18)."""
    dora: bool = False
    """Whether the adapter is a DoRA adapter, with magnitudes in addition to the factors."""

    @property
    def exchanges_sides(self) -> bool | None:
        """Whether this PEFT exchanged the shapes of A and B for parameters that hold all experts; None where unknown.

        It did so up to 0.19.0. Development versions of 0.19.1 may do either.
        """
        found = _VERSION.match(self.version or "")
        if found is None:
            return None
        numbers = tuple(map(int, found.group(1, 2, 3)))
        return None if numbers == _SIDES_FIXED and found[4] else numbers < _SIDES_FIXED

    def adapts_parameter(self, name: str) -> bool:
        """Whether the parameter with this full name, `model.layers.0.mlp.experts.down_proj`, was adapted directly."""
        return any(f".{name}".endswith(f".{ending}") for ending in self.target_parameters)

    def rank_of(self, module: str) -> int:
        """Rank of the module with this full name, `model.layers.0.self_attn.q_proj`."""
        return self.rank_pattern.find(module, self.rank)

    def alpha_of(self, module: str) -> float:
        """Alpha of this module such that alpha / rank is PEFT's strength, of rsLoRA (alpha / root of the rank) too."""
        alpha = self.alpha_pattern.find(module, self.alpha)
        return alpha * math.sqrt(self.rank_of(module)) if self.rslora else alpha


def parse_config(content: bytes, *, name: str, dora: bool = False) -> PeftConfig:
    """Check the configuration `content`; `name` is for messages. `dora`: whether DoRA adapters are accepted.

    Raises:
        InvalidAdapterFileError: it is damaged, or has settings that no GGUF adapter can express; `.problems` names all.

    """
    try:
        config = json.loads(content.decode("utf-8-sig"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise invalid_file(name, [f"no sound JSON: {error}"]) from error
    if not isinstance(config, dict):
        raise invalid_file(name, ["no JSON object"])
    problems = _unrepresentable(config, dora=dora)
    ranks = _patterns(config, "rank_pattern", _is_rank, problems)
    alphas = _patterns(config, "alpha_pattern", _is_alpha, problems)
    problems += _malformed(config)
    if problems:
        raise invalid_file(name, problems)
    return PeftConfig(
        rank=config["r"],
        alpha=float(config["lora_alpha"]),
        rslora=bool(config.get("use_rslora")),
        rank_pattern=ranks,
        alpha_pattern=alphas,
        base_model=config.get("base_model_name_or_path") or None,
        invocation_tokens=tuple(config.get("alora_invocation_tokens") or ()),
        target_parameters=tuple(config.get("target_parameters") or ()),
        dora=bool(config.get("use_dora")),
        version=version if isinstance(version := config.get("peft_version"), str) else None,
    )


def _unrepresentable(config: Mapping[str, Any], *, dora: bool) -> list[str]:
    """List the settings that change the meaning of the factors and have no place in a GGUF adapter."""
    kind = config.get("peft_type")
    if kind != "LORA":
        return [f"peft_type is {_shown(kind)}; only 'LORA' can be converted, other methods have no place in a GGUF adapter"]
    problems = [
        f"{key} is {_shown(config[key])}: {what}. A GGUF adapter cannot express it"
        for key, what in REFUSED.items()
        if config.get(key) and not (dora and key == "use_dora" and config[key] is True)
    ]
    problems += [
        f"{key!r} is {_shown(value)}, a field that is not known here: it may change what the adapter does; "
        "if it only matters to training, remove it from the configuration"
        for key, value in config.items()
        if value and key not in READ | HARMLESS and key not in REFUSED
    ]
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_OTHER_BASE):
        problems.append(
            f"init_lora_weights is {_shown(start)}, which changed the base model's weights; let PEFT save it as plain LoRA "
            "(save_pretrained with path_initial_model_for_weight_conversion)"
        )
    elif not isinstance(start, bool | None) and start not in _SAME_BASE:
        problems.append(
            f"init_lora_weights is {_shown(start)}, which is not known here: it may have changed the base model's weights; "
            f"known are true, false, {', '.join(_SAME_BASE)}"
        )
    if config.get("invocation_string") and not config.get("alora_invocation_tokens"):
        problems.append("invocation_string is given without alora_invocation_tokens; add the tokens")
    return problems


def _malformed(config: Mapping[str, Any]) -> list[str]:
    problems = []
    if not _is_rank(config.get("r")):
        problems.append(f"r is {_shown(config.get('r'))}; it must be a whole number from 1 to {_MOST_RANK}")
    if not _is_alpha(config.get("lora_alpha")):
        problems.append(f"lora_alpha is {_shown(config.get('lora_alpha'))}; it must be a number from 1e-30 to 1e30")
    if not isinstance(config.get("use_rslora"), bool | None):
        problems.append(f"use_rslora is {_shown(config['use_rslora'])}; it must be true or false")
    if config.get("bias") not in (None, "none", "all", "lora_only"):
        problems.append(f"bias is {_shown(config['bias'])}; it must be 'none', 'all' or 'lora_only'")
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str | None) or not (base or "").isprintable():
        problems.append(f"base_model_name_or_path is {_shown(base)}; it must be printable text")
    tokens = config.get("alora_invocation_tokens") or []
    if not isinstance(tokens, list) or not all(type(token) is int and 0 <= token < 1 << 32 for token in tokens):
        problems.append(f"alora_invocation_tokens is {_shown(tokens)}; it must be a list of token numbers")
    parameters = config.get("target_parameters") or []
    if not isinstance(parameters, list) or not all(isinstance(name, str) and name for name in parameters):
        problems.append(f"target_parameters is {_shown(parameters)}; it must be a list of names")
    return problems


def _patterns(config: Mapping[str, Any], key: str, legal: Callable[[object], bool], problems: list[str]) -> PatternTable[Any]:
    """Return the table of the field `key`, which has a number for each pattern of module names; or add to `problems`."""
    table: PatternTable[Any] = PatternTable()
    values = config.get(key) or {}
    if not isinstance(values, dict) or not all(legal(value) for value in values.values()):
        problems.append(f"{key} is {_shown(values)}; each name in it needs a number above 0")
        return table
    for name, value in values.items():
        try:
            table.add(name, value)
        except ValueError as error:
            problems.append(f"{key}: {_shown(name)} is no pattern of names that can be used: {error}")
            continue
        if table.size > _MOST_STATES:
            problems.append(f"{key} has {len(values)} patterns, which are too many and too large; name the modules")
            break
    return table


def _is_rank(value: object) -> bool:
    return type(value) is int and 0 < value <= _MOST_RANK


def _is_alpha(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and _ALPHAS[0] <= value <= _ALPHAS[1]


def _shown(value: object) -> str:
    """Return a short form of a value of the configuration, which may be of any size and depth."""
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
