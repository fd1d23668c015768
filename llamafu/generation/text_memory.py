"""What the samplers of one generation remember of its text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from llamafu.generation.dry import Dry
from llamafu.generation.penalties import Penalties
from llamafu.generation.token_history import TokenHistory

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from llamafu._native.model import Model
    from llamafu.generation.options import Options
    from llamafu.generation.sampler_pipeline import LogitStep


class Learner(Protocol):
    """Takes note of every token that enters the text."""

    def append(self, token: int) -> None:
        """Take the newest token."""


class TextMemory:
    """The tokens of prompt and answer, as far as an option that is on asks for them. One thread at a time.

    `steps` change logits for what the text says, by the names that `samplers` has for them. `learners` hear of every new token.
    """

    def __init__(self, model: Model, options: Options, prompt: Sequence[int]) -> None:
        self.steps: dict[str, LogitStep] = {}
        self.learners: list[Learner] = []
        self._history: TokenHistory | None = None
        if options.uses_dry or options.logits_processor is not None or options.stopping is not None:
            self._history = TokenHistory(prompt)
            self.learners.append(self._history)
        if options.penalises:
            penalties = Penalties(options, prompt)
            self.steps["penalties"] = penalties
            self.learners.append(penalties)
        if options.uses_dry and self._history is not None:
            dry = Dry(model, options, self._history)
            self.steps["dry"] = dry
            self.learners.append(dry)

    @property
    def tokens(self) -> NDArray[np.int32]:
        """The prompt's tokens and the answer's so far, where something asks for them."""
        assert self._history is not None  # noqa: S101 - an option that reads them is on
        return self._history.tokens

    def append(self, token: int) -> None:
        """Take a new token of the answer."""
        for learner in self.learners:
            learner.append(token)
