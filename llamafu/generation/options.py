"""Options of one generation: names, types, limits, defaults and meanings in one place.

`complete`, `stream`, `chat` and `stream_chat` take them as keyword arguments; an unknown one is a `TypeError`.

A new option is a field of `Options`, or of `SamplingOptions`, and a line of `OptionArguments`, a step of
generation/sampling.py or of what that calls, and its test. The
flag of the command line and the fields of the server's bodies follow from the field. The client's `GenerationArguments` and
the table in docs/generating.md are compared with it by tests/test_options.py and tests/test_docs.py, which fail until they
agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, TypedDict, TypeVar

from llamafu._util.signatures import show_options
from llamafu._util.suggestions import did_you_mean
from llamafu.generation.logit_bias import check_logit_bias
from llamafu.generation.option_spec import OptionSpec, about, list_options, specs_of, texts_of
from llamafu.generation.sampler_order import order_of
from llamafu.generation.sampling_options import SamplingOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from llamafu.lora.scales import LoraScales

LEAST_SEED, MOST_SEED = -(2**63), 2**64 - 1
"""What 64 bits hold, with a sign or without."""
REST_OF_CONTEXT = -1
"""The value of `max_tokens` without a limit of its own."""
UNLIMITED_REASONING = -1
"""The value of `reasoning_budget` without a limit."""
MOST_DRAFTED = 64
"""Tokens that one step checks for one text beside its next one."""
_FORMS = ("grammar", "json_schema", "regex", "choices")
"""Options that say what the whole text must be."""
_F = TypeVar("_F", bound=Callable[..., Any])


class OptionArguments(TypedDict, total=False):
    """The keyword arguments, for type checkers; `Options` says what they mean."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    min_keep: int
    typical_p: float
    top_n_sigma: float
    xtc_probability: float
    xtc_threshold: float
    mirostat: int
    mirostat_tau: float
    mirostat_eta: float
    repeat_penalty: float
    frequency_penalty: float
    presence_penalty: float
    repeat_last_n: int
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_penalty_last_n: int
    dry_sequence_breakers: str | Sequence[str]
    samplers: str | Sequence[str] | None
    logit_bias: Mapping[int | str, float] | None
    logits_processor: Callable[[NDArray[np.int32], NDArray[np.float32]], None] | None
    seed: int | None
    stop: str | Sequence[str]
    stopping: Callable[[NDArray[np.int32]], bool] | None
    min_tokens: int
    reasoning_budget: int
    grammar: str | None
    json_schema: Mapping[str, Any] | str | None
    regex: str | None
    choices: str | Sequence[str]
    media: Sequence[Any]
    lora: LoraScales | None
    logprobs: int | None
    ignore_eos: bool
    prompt_lookup_num_tokens: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(SamplingOptions):
    """Checked options of one generation: a value outside its limits is a ValueError that says what is legal."""

    max_tokens: int = field(
        default=128,
        metadata=about(
            "the answer ends after this many new tokens; 0 computes the prompt alone, -1 goes on until the context is full",
            low=REST_OF_CONTEXT,
        ),
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
    stopping: Callable[[NDArray[np.int32]], bool] | None = field(
        default=None,
        metadata=about(
            "a function of the prompt's and the answer's tokens, called after each new one; the answer ends where it says True",
            flag=False,
        ),
    )
    min_tokens: int = field(
        default=0, metadata=about("end-of-text tokens and stop strings count only after this many new tokens", low=0)
    )
    reasoning_budget: int = field(
        default=UNLIMITED_REASONING,
        metadata=about(
            "a chat's reasoning is ended after this many tokens of it, and the answer goes on; 0 is none, -1 any number",
            low=UNLIMITED_REASONING,
        ),
    )
    grammar: str | None = field(
        default=None,
        metadata=about("GBNF that the text must follow; of it, json_schema, regex and choices only one", flag=False),
    )
    json_schema: Mapping[str, Any] | str | None = field(
        default=None,
        metadata=about("a JSON Schema, as a mapping or as JSON text, that the text must be valid under", flag=False),
    )
    regex: str | None = field(
        default=None,
        metadata=about("a regular expression, as JSON Schema's patterns, that the whole text must match", flag=False),
    )
    choices: str | Sequence[str] = field(default=(), metadata=about("the text must be one of these", flag=False))
    media: Sequence[Any] = field(
        default=(),
        metadata=about(
            "images and sounds, each for one marker <__media__> of the prompt; a model with a projector", flag=False
        ),
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
            value = getattr(self, spec.name)
            if value is not spec.default:
                object.__setattr__(self, spec.name, spec.check(value))
        forms = [name for name in _FORMS if getattr(self, name) is not None and getattr(self, name) not in ((), [])]
        if len(forms) > 1:
            message = f"{' and '.join(forms)} were given together; give one of them"
            raise ValueError(message)
        if 0 <= self.max_tokens < self.min_tokens:
            message = f"min_tokens={self.min_tokens} is more than max_tokens={self.max_tokens}; give fewer"
            raise ValueError(message)
        check_logit_bias(self.logit_bias)
        order_of(self.sampler_names)
        for name in ("logits_processor", "stopping"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                message = f"{name}={getattr(self, name)!r} cannot be called; give a function"
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


OPTION_SPECS: tuple[OptionSpec, ...] = specs_of(Options)
"""Every option in the order of its declaration."""
Options.__doc__ = list_options(Options.__doc__, OPTION_SPECS)


def takes_options(function: _F) -> _F:
    """Show every option, with its default, in the signature of a function that takes `**options`."""
    return show_options(function, OPTION_SPECS)


_ELSEWHERE = {
    "stream": "stream and stream_chat yield an answer piece by piece",
    "response_format": "give json_schema",
    "n_predict": "did you mean 'max_tokens'?",
    "do_sample": "temperature=0 takes the likeliest token, any other draws one",
    "n": "ask several times, at once with Engine.complete_many",
}
"""What does here what options of other libraries do whose names are not like any of ours."""


def refuse_unknown(arguments: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raise TypeError for an argument that is none of `names`, with the nearest and all of them."""
    for name in arguments:
        if name not in names:
            hint = f"; {_ELSEWHERE[name]}" if name in _ELSEWHERE else did_you_mean(name, names)
            message = f"unknown option {name!r}{hint} (options: {', '.join(names)})"
            raise TypeError(message)
