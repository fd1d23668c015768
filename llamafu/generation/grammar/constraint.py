"""A grammar applied to a vocabulary: which tokens may come next in one text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llamafu.errors import GrammarError
from llamafu.generation.grammar.automaton import NOTHING, Automaton, Budget
from llamafu.generation.grammar.vocabulary import Steps

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llamafu.generation.grammar.compiled import CompiledGrammar

MOST_TO_COMPILE = 250_000
"""Steps for the first token, taken on the thread that makes the request."""
MOST_FOR_A_TOKEN = 50_000
"""Steps for one further token, once; each token adds `STEADY` steps to the budget again."""
STEADY = 10_000
_MOST_STATES = 10_000
_MASK_BYTES = 16_000_000


class Constraint:
    """One text under a GBNF grammar. One thread at a time.

    Raises GrammarError, also from `allowed` and `accept`, when the grammar allows nothing that the vocabulary can spell, or
    exceeds a bound.
    """

    def __init__(self, grammar: CompiledGrammar) -> None:
        self._vocabulary = vocabulary = grammar.vocabulary
        self._budget = Budget(MOST_TO_COMPILE)
        self._automaton = Automaton(grammar.network, self._budget)
        self._state = self._automaton.start
        self._steps = Steps()
        self._allowed: dict[object, NDArray[np.int64]] = {}
        self._most_masks = max(4, _MASK_BYTES // (8 * len(vocabulary)))
        self._accepted = 0
        if not grammar.begins and not len(self.allowed()) and not self.may_end:
            self.refuse()
        grammar.begins = True
        self._budget.renew(MOST_FOR_A_TOKEN)

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow the text."""
        return self._automaton.is_complete(self._state)

    @property
    def may_end(self) -> bool:
        """Whether the text may end here."""
        return self._automaton.accepts(self._state)

    def allowed(self) -> NDArray[np.int64]:
        """Return the tokens that may come next, those that end a text among them where it may end; sorted, read only."""
        outlook = self._automaton.outlook(self._state)
        known = self._allowed.get(outlook)
        if known is None:
            if len(self._allowed) >= self._most_masks:
                self._allowed.clear()
            known = self._allowed[outlook] = self._find()
        return known

    def try_accept(self, token: int) -> bool:
        """Append a token to the text if it is allowed, and tell whether it was: the other tokens need not be looked at."""
        vocabulary = self._vocabulary
        if token in vocabulary.ends:
            following = self._state if self.may_end else NOTHING
        elif not vocabulary.token_bytes[token] and token not in self.allowed():  # a control token, which the grammar may name
            following = NOTHING
        else:
            following = self._read(token)
        if following == NOTHING:
            return False
        self._enter(following, is_end=token in vocabulary.ends)
        return True

    def accept(self, token: int) -> None:
        """Append one of the allowed tokens to the text."""
        is_end = token in self._vocabulary.ends
        self._enter(self._state if is_end else self._read(token), is_end=is_end)

    def _read(self, token: int) -> int:
        """Return the state after a token that does not end the text, NOTHING where it may not come next."""
        return self._automaton.read(self._state, token, self._vocabulary.token_bytes[token])

    def _enter(self, state: int, *, is_end: bool) -> None:
        """Make `state` the text's. Every token adds to the budget, and too many states are forgotten."""
        assert state != NOTHING  # noqa: S101 - the token was allowed
        self._state = state
        self._accepted += not is_end
        self._budget.refill(STEADY)
        if len(self._automaton) > _MOST_STATES:
            self._state = self._automaton.forget(state)
            self._steps = Steps()
            self._allowed.clear()

    def refuse(self) -> None:
        """Raise the GrammarError of a text that no token can follow."""
        message = (
            f"grammar: after {self._accepted} tokens nothing that it allows can be written with this model's vocabulary; "
            "allow other characters there"
        )
        raise GrammarError(message)

    def _find(self) -> NDArray[np.int64]:
        may_follow = self._vocabulary.walk(self._automaton, self._steps, self._state)
        one_by_one, all_but = self._automaton.tokens(self._state)
        if all_but:
            others = np.array([bool(text) for text in self._vocabulary.token_bytes])
            if len(set(all_but)) == 1 and all_but[0] < len(others):
                others[all_but[0]] = False
            may_follow |= others
        may_follow[[token for token in one_by_one if token < len(may_follow)]] = True
        may_follow[self._vocabulary.ends] = self.may_end
        return np.flatnonzero(may_follow)
