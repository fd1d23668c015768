"""Fields of request bodies that are made from the declared options: type, range and description are those of `Options`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import AliasChoices, Field, create_model

from llamafu.generation.options import OPTION_SPECS
from llamafu.server.schemas.base import ObjectBody
from llamafu.server.schemas.content import StopTexts, Texts
from llamafu.server.schemas.sampler_fields import Bias, Breakers, Samplers

MOST_STOPS = 64
"""Stop strings of one request, and texts of most other options."""
_MOST_TEXTS = {"choices": 10_000}
_OTHER_NAMES = {
    "max_tokens": ("max_completion_tokens", "n_predict", "max_new_tokens"),
    "stop": ("stopping_strings",),
    "repeat_penalty": ("repetition_penalty", "rep_pen"),
    "repeat_last_n": ("penalty_range", "repetition_range", "repetition_penalty_range", "rep_pen_range"),
    "typical_p": ("typical", "typ_p"),
    "top_n_sigma": ("nsigma",),
    "mirostat": ("mirostat_mode",),
    "min_tokens": ("min_length",),
    "grammar": ("grammar_string", "guided_grammar"),
    "regex": ("guided_regex", "regex_pattern"),
    "choices": ("guided_choice",),
    "ignore_eos": ("ban_eos_token",),
    "seed": ("random_seed",),
    "reasoning_budget": ("thinking_budget", "thinking_budget_tokens"),
}
"""What TabbyAPI, llama-server and its page, vLLM, Mistral's and Alibaba's servers call some options."""
_OWN_FORM = ("grammar", "logprobs")
"""Options that the bodies declare themselves: one of several forms of an answer, and one whose type the route decides."""
_TYPES: dict[str, Any] = {"int": int, "float": float, "bool": bool, "text": str, "texts": Texts}
_OWN_TYPES: dict[str, Any] = {
    "stop": StopTexts,
    "dry_sequence_breakers": Breakers,
    "samplers": Samplers,
    "logit_bias": Bias,
}
"""Types of options that take more over HTTP than their kind says."""
_SPECS = {spec.name: spec for spec in OPTION_SPECS}
OPTION_NAMES = tuple(name for name, spec in _SPECS.items() if spec.kind != "object" or name in _OWN_TYPES)
"""Options that JSON can say in the form that the library takes, or that are brought into it here."""


def option_field(name: str, preferred: str | None = None) -> Any:
    """Return the field of the option `name`, absent by default; `preferred` is another name that is taken before it."""
    spec = _SPECS[name]
    names = list(dict.fromkeys([*([preferred] if preferred else []), name, *_OTHER_NAMES.get(name, ())]))
    limits = {"gt" if spec.above else "ge": spec.low, "le": spec.high}
    constraints: dict[str, Any] = {key: _plain(limit) for key, limit in limits.items() if limit is not None}
    if spec.kind == "texts":
        constraints["max_length"] = _MOST_TEXTS.get(name, MOST_STOPS)
    return Field(
        None,
        description=spec.doc,
        validation_alias=AliasChoices(*names) if len(names) > 1 else None,
        **constraints,
    )


def _plain(limit: float) -> float:
    """Return a limit as it is written in a message: 0, not 0.0."""
    return int(limit) if float(limit).is_integer() and abs(limit) < 2**53 else limit


if TYPE_CHECKING:
    SamplingBody = ObjectBody
else:
    _FIELDS = {
        name: ((_OWN_TYPES.get(name) or _TYPES[_SPECS[name].kind]) | None, option_field(name))
        for name in OPTION_NAMES
        if name not in _OWN_FORM
    }
    SamplingBody = create_model("SamplingBody", __base__=ObjectBody, **_FIELDS)
    SamplingBody.__doc__ = "Every option that has the same form in JSON as in Python; a newly declared one is a field here too."
