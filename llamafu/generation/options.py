"""Options of one generation: names, defaults and limits in one place.

`complete`, `stream`, `chat` and `stream_chat` take them as keyword arguments; an unknown one is a `TypeError`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self, TypedDict, TypeVar, Union

from llamafu._util.arguments import check_whole
from llamafu._util.suggestions import did_you_mean

if TYPE_CHECKING:
    from llamafu.lora.handles import LoraAdapter

Scale = Union[float, Callable[[int], float]]  # noqa: UP007 - evaluated at run time
LoraScales = Mapping[Union["LoraAdapter", str], Scale]

LEAST_SEED, MOST_SEED = -(2**63), 2**64 - 1
"""What 64 bits hold, with a sign or without."""
MOST_TOP_K = 2**31 - 1
"""What libllama's type for it holds."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Checked options of one generation.

    `max_tokens`: at most so many new tokens. `temperature` 0 is greedy. `top_k` 0, `top_p` 1, `min_p` 0,
    `repeat_penalty` 1 and the other penalties at 0 are off; penalties look at the last 64 tokens, the prompt's
    included. `seed` (any of 64 bits) makes a run repeatable, None and -1 draw one. `stop`: one or more strings that end
    the text and are not part of it. `grammar` is GBNF, `json_schema` a JSON Schema; not both. `lora`: scales
    by adapter or name for this call alone, `{}` is the base model, None the active set; a scale may be a function
    of the step. `logprobs`: None, or how many alternatives to report beside each token. `ignore_eos`: never
    choose an end-of-text token. `media`: images or sounds for a model with a projector.
    """

    max_tokens: int = 128
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    stop: str | Sequence[str] = ()
    grammar: str | None = None
    json_schema: Mapping[str, Any] | str | None = None
    media: Sequence[Any] = ()
    lora: LoraScales | None = None
    logprobs: int | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        check_whole("max_tokens", self.max_tokens, low=1)
        check_whole("top_k", self.top_k, low=0, high=MOST_TOP_K)
        _number("temperature", self.temperature, low=0.0)
        _number("top_p", self.top_p, low=0.0, high=1.0)
        _number("min_p", self.min_p, low=0.0, high=1.0)
        _number("repeat_penalty", self.repeat_penalty, low=0.0, above=True)
        _number("frequency_penalty", self.frequency_penalty)
        _number("presence_penalty", self.presence_penalty)
        if self.seed is not None:
            check_whole("seed", self.seed, low=LEAST_SEED, high=MOST_SEED)
        if self.logprobs is not None:
            check_whole("logprobs", self.logprobs, low=0)
        for text in self.stops:
            if not isinstance(text, str) or not text:
                message = f"stop={text!r} is not a non-empty string; give a string or a sequence of them"
                raise ValueError(message)
        if self.grammar is not None and self.json_schema is not None:
            message = "grammar and json_schema were both given; give one"
            raise ValueError(message)

    @classmethod
    def of(cls, arguments: OptionArguments) -> Self:
        """Check keyword arguments; an unknown one is a `TypeError` that names the nearest and all legal ones."""
        refuse_unknown(arguments, [field.name for field in fields(cls)])
        return cls(**arguments)

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def penalises(self) -> bool:
        """True when any penalty is on."""
        return self.repeat_penalty != 1.0 or self.frequency_penalty != 0.0 or self.presence_penalty != 0.0


def takes_options(function: _F) -> _F:
    """Show every option, with its default, in the signature of a function that takes `**options`."""
    signature = inspect.signature(function)
    kept = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    options = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type) for f in fields(Options)
    ]
    function.__signature__ = signature.replace(parameters=[*kept, *options])  # type: ignore[attr-defined]
    return function


def refuse_unknown(arguments: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raise TypeError for an argument that is none of `names`, with the nearest and all of them."""
    for name in arguments:
        if name not in names:
            message = f"unknown option {name!r}{did_you_mean(name, names)} (options: {', '.join(names)})"
            raise TypeError(message)


def _number(name: str, value: object, *, low: float = -math.inf, high: float = math.inf, above: bool = False) -> None:
    sound = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if sound and low <= value <= high and not (above and value == low):  # type: ignore[operator] # sound says it is a number
        return
    if high < math.inf:
        limit = f"from {low:g} to {high:g}"
    elif low > -math.inf:
        limit = f"{'above' if above else 'of at least'} {low:g}"
    else:
        limit = "that is finite"
    message = f"{name}={value!r} is not a number {limit}"
    raise ValueError(message)
