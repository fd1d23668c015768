"""Options of one generation: names, types, limits, defaults and meanings in one place.

`complete`, `stream`, `chat` and `stream_chat` take them as keyword arguments; an unknown one is a `TypeError`.

A new option is a field of `Options` and a line of `OptionArguments`, a step of generation/sampling.py, and its test. The
flag of the command line and the fields of the server's bodies follow from the field. The client's `GenerationArguments` and
the table in docs/generating.md are compared with it by tests/test_options.py and tests/test_docs.py, which fail until they
agree.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, TypedDict, TypeVar

from llamafu._util.suggestions import did_you_mean
from llamafu.generation.option_spec import OptionSpec, about, list_options, specs_of, texts_of

if TYPE_CHECKING:
    from llamafu.lora.scales import LoraScales

LEAST_SEED, MOST_SEED = -(2**63), 2**64 - 1
"""What 64 bits hold, with a sign or without."""
REST_OF_CONTEXT = -1
"""The value of `max_tokens` without a limit of its own."""
MOST_TOP_K = 2**31 - 1
"""What libllama's type for it holds."""
MOST_DRAFTED = 64
"""Tokens that one step checks for one text beside its next one."""
_F = TypeVar("_F", bound=Callable[..., Any])


class OptionArguments(TypedDict, total=False):
    """The keyword arguments, for type checkers; `Options` says what they mean."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    frequency_penalty: float
    presence_penalty: float
    seed: int | None
    stop: str | Sequence[str]
    grammar: str | None
    json_schema: Mapping[str, Any] | str | None
    media: Sequence[Any]
    lora: LoraScales | None
    logprobs: int | None
    ignore_eos: bool
    prompt_lookup_num_tokens: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Checked options of one generation: a value outside its limits is a ValueError that says what is legal."""

    max_tokens: int = field(
        default=128,
        metadata=about(
            "the answer ends after this many new tokens; 0 computes the prompt alone, -1 goes on until the context is full",
            low=REST_OF_CONTEXT,
        ),
    )
    temperature: float = field(
        default=0.8,
        metadata=about("divides the logits before a token is drawn; 0 draws nothing and takes the likeliest token", low=0.0),
    )
    top_k: int = field(
        default=40, metadata=about("draw from this many likeliest tokens; 0 and -1 are off", low=-1, high=MOST_TOP_K)
    )
    top_p: float = field(
        default=0.95,
        metadata=about("draw from the likeliest tokens that make up this probability together; 1 is off", low=0.0, high=1.0),
    )
    min_p: float = field(
        default=0.05,
        metadata=about("drop tokens less likely than this fraction of the likeliest; 0 is off", low=0.0, high=1.0),
    )
    repeat_penalty: float = field(
        default=1.0,
        metadata=about(
            "the logit of a token among the last 64 is divided by this if positive, else multiplied; 1 is off",
            low=0.0,
            above=True,
        ),
    )
    frequency_penalty: float = field(
        default=0.0,
        metadata=about("subtracted from a token's logit for each time that it is among the last 64 tokens; 0 is off"),
    )
    presence_penalty: float = field(
        default=0.0, metadata=about("subtracted once from the logit of each token among the last 64; 0 is off")
    )
    seed: int | None = field(
        default=None,
        metadata=about(
            "any integer of 64 bits makes a run repeatable; -1, or none, draws a new one", low=LEAST_SEED, high=MOST_SEED
        ),
    )
    stop: str | Sequence[str] = field(
        default=(), metadata=about("the text ends before this string, or before the first of several")
    )
    grammar: str | None = field(
        default=None, metadata=about("GBNF that the text must follow; not beside json_schema", flag=False)
    )
    json_schema: Mapping[str, Any] | str | None = field(
        default=None,
        metadata=about("a JSON Schema, as a mapping or as JSON text, that the text must be valid under", flag=False),
    )
    media: Sequence[Any] = field(
        default=(), metadata=about("images or sounds; this version reads none, so that anything here is an error", flag=False)
    )
    lora: LoraScales | None = field(
        default=None,
        metadata=about(
            "{adapter or name: scale} for this call, a scale may be a function of the step; "
            "{} is the base model, None the active set",
            flag=False,
        ),
    )
    logprobs: int | None = field(
        default=None,
        metadata=about(
            "report log probabilities, with this many alternatives beside each token; None is off", low=0, flag=False
        ),
    )
    ignore_eos: bool = field(default=False, metadata=about("True never chooses an end-of-text token", flag=False))
    prompt_lookup_num_tokens: int | None = field(
        default=None,
        metadata=about(
            "guess up to this many next tokens from earlier places of the text, and check them in one step; an Engine only; "
            "0 is off, None the engine's default",
            low=0,
            high=MOST_DRAFTED,
            flag=False,
        ),
    )

    def __post_init__(self) -> None:
        for spec in OPTION_SPECS:
            spec.check(getattr(self, spec.name))
        if self.grammar is not None and self.json_schema is not None:
            message = "grammar and json_schema were both given; give one"
            raise ValueError(message)

    @classmethod
    def of(cls, arguments: OptionArguments) -> Self:
        """Check keyword arguments; an unknown one is a `TypeError` that names the nearest and all legal ones."""
        refuse_unknown(arguments, [spec.name for spec in OPTION_SPECS])
        return cls(**arguments)

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings as a tuple."""
        return texts_of(self.stop)

    @property
    def penalises(self) -> bool:
        """True when any penalty is on."""
        return self.repeat_penalty != 1.0 or self.frequency_penalty != 0.0 or self.presence_penalty != 0.0


OPTION_SPECS: tuple[OptionSpec, ...] = specs_of(Options)
"""Every option in the order of its declaration."""
Options.__doc__ = list_options(Options.__doc__, OPTION_SPECS)


def takes_options(function: _F) -> _F:
    """Show every option, with its default, in the signature of a function that takes `**options`."""
    signature = inspect.signature(function)
    kept = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    options = [
        inspect.Parameter(spec.name, inspect.Parameter.KEYWORD_ONLY, default=spec.default, annotation=spec.annotation)
        for spec in OPTION_SPECS
    ]
    function.__signature__ = signature.replace(parameters=[*kept, *options])  # type: ignore[attr-defined]
    return function


def refuse_unknown(arguments: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raise TypeError for an argument that is none of `names`, with the nearest and all of them."""
    for name in arguments:
        if name not in names:
            message = f"unknown option {name!r}{did_you_mean(name, names)} (options: {', '.join(names)})"
            raise TypeError(message)
