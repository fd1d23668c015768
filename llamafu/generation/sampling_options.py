"""Options that say how the next token is drawn: the samplers, and what changes logits before them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llamafu.generation.option_spec import about, texts_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

MOST = 2**31 - 1
"""What libllama's type for numbers of tokens holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """The part of `Options` that the samplers read; `Options` checks it."""

    temperature: float = field(
        default=0.8,
        metadata=about("divides the logits before a token is drawn; 0 draws nothing and takes the likeliest token", low=0.0),
    )
    top_k: int = field(default=40, metadata=about("draw from this many likeliest tokens; 0 and -1 are off", low=-1, high=MOST))
    top_p: float = field(
        default=0.95,
        metadata=about("draw from the likeliest tokens that make up this probability together; 1 is off", low=0.0, high=1.0),
    )
    min_p: float = field(
        default=0.05,
        metadata=about("drop tokens less likely than this fraction of the likeliest; 0 is off", low=0.0, high=1.0),
    )
    min_keep: int = field(
        default=0,
        metadata=about("typical, top-p, min-p and XTC leave at least this many tokens; 0 is 1", low=0, high=MOST),
    )
    typical_p: float = field(
        default=1.0,
        metadata=about(
            "draw from the tokens whose surprise is nearest to the expected one and that make up this probability together; "
            "1 is off",
            low=0.0,
            high=1.0,
        ),
    )
    top_n_sigma: float = field(
        default=-1.0,
        metadata=about(
            "drop tokens whose logit is more than this many standard deviations below the best; 0 and -1 are off", low=-1.0
        ),
    )
    xtc_probability: float = field(
        default=0.0,
        metadata=about("how likely XTC acts at a token, which drops the likeliest tokens; 0 is off", low=0.0, high=1.0),
    )
    xtc_threshold: float = field(
        default=0.1,
        metadata=about(
            "XTC drops all tokens of at least this probability but the least likely of them; above 0.5 is off",
            low=0.0,
            high=1.0,
        ),
    )
    mirostat: int = field(
        default=0,
        metadata=about(
            "1 and 2, mirostat's versions, hold the surprise of the tokens at mirostat_tau, in place of top-n-sigma, top-k, "
            "typical, top-p, min-p and XTC; 0 is off",
            low=0,
            high=2,
        ),
    )
    mirostat_tau: float = field(default=5.0, metadata=about("mirostat's target, in bits a token", low=0.0))
    mirostat_eta: float = field(
        default=0.1, metadata=about("how fast mirostat learns: this share of its last error is made good", low=0.0)
    )
    repeat_penalty: float = field(
        default=1.0,
        metadata=about(
            "the logit of a token among the last repeat_last_n is divided by this if positive, else multiplied; 1 is off",
            low=0.0,
            above=True,
        ),
    )
    frequency_penalty: float = field(
        default=0.0,
        metadata=about(
            "subtracted from a token's logit for each time that it is among the last repeat_last_n tokens; 0 is off"
        ),
    )
    presence_penalty: float = field(
        default=0.0, metadata=about("subtracted once from the logit of each token among the last repeat_last_n; 0 is off")
    )
    repeat_last_n: int = field(
        default=64,
        metadata=about(
            "how many tokens the three penalties look back at, the prompt's included; 0 is off, -1 all of them",
            low=-1,
            high=MOST,
        ),
    )
    dry_multiplier: float = field(
        default=0.0,
        metadata=about(
            "DRY subtracts this from the logit of a token that would go on with a repetition, times dry_base for each token of "
            "it beyond dry_allowed_length; 0 is off",
            low=0.0,
        ),
    )
    dry_base: float = field(default=1.75, metadata=about("see dry_multiplier", low=1.0))
    dry_allowed_length: int = field(default=2, metadata=about("tokens that may be repeated before DRY acts", low=0, high=MOST))
    dry_penalty_last_n: int = field(
        default=-1,
        metadata=about("how many tokens DRY looks back at, the prompt's included; 0 is off, -1 all of them", low=-1, high=MOST),
    )
    dry_sequence_breakers: str | Sequence[str] = field(
        default=("\n", ":", '"', "*"), metadata=about("texts over which DRY sees no repetition", flag=False)
    )
    samplers: str | Sequence[str] | None = field(
        default=None,
        metadata=about("which samplers act, in this order; None is all of them in llama.cpp's order", flag=False),
    )
    logit_bias: Mapping[int | str, float] | None = field(
        default=None,
        metadata=about(
            "{token id or the text of one token: number from -100 to 100} that is added to its logit; False forbids the token",
            flag=False,
        ),
    )
    logits_processor: Callable[[NDArray[np.int32], NDArray[np.float32]], None] | None = field(
        default=None,
        metadata=about(
            "a function (tokens, logits) that changes the logits of all tokens in place; the tokens are the prompt's and the "
            "answer's so far",
            flag=False,
        ),
    )

    @property
    def breakers(self) -> tuple[str, ...]:
        """DRY's sequence breakers as a tuple."""
        return texts_of(self.dry_sequence_breakers)

    @property
    def sampler_names(self) -> tuple[str, ...] | None:
        """The samplers as a tuple, None for all."""
        return None if self.samplers is None else texts_of(self.samplers)

    @property
    def penalises(self) -> bool:
        """True when any of the three penalties is on."""
        is_on = self.repeat_penalty != 1.0 or self.frequency_penalty != 0.0 or self.presence_penalty != 0.0
        return is_on and self.repeat_last_n != 0

    @property
    def uses_dry(self) -> bool:
        """True when DRY is on."""
        return self.dry_multiplier != 0.0 and self.dry_penalty_last_n != 0
