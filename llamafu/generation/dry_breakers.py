"""The token sequences that DRY's sequence breakers are written with."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from llamafu._native.model import Model

MOST_TAIL = 20
"""Tokens of a breaker after its first one: what follows them is not looked at, as in libllama."""
_MOST_BYTES = 40
"""Of a breaker, as in libllama."""
_MOST_KEPT = 64
"""Breakers whose tokens are kept for other requests."""

Tails = dict[int, frozenset[tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class BreakTable:
    """Which tokens begin a breaker, and what has to follow each: `()` where the token holds the whole of it."""

    tails: Tails

    def is_single(self, token: int) -> bool:
        """Whether the token holds a whole breaker."""
        return () in self.tails.get(token, ())


def break_table_of(model: Model, breakers: Iterable[str]) -> BreakTable:
    """Return the tokens of all `breakers`. Slow for those that nobody asked for lately: each looks at the whole vocabulary."""
    cache = model.derived(_BreakerCache)
    joined: Tails = {}
    for breaker in breakers:
        for token, tails in cache.get(breaker.encode("utf-8", "surrogatepass")[:_MOST_BYTES]).items():
            joined[token] = joined.get(token, frozenset()) | tails
    return BreakTable(joined)


class _BreakerCache:
    """The tails of the breakers that were asked for last. Any thread; two may compute the same one at a time."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._kept: OrderedDict[bytes, Tails] = OrderedDict()

    def get(self, breaker: bytes) -> Tails:
        found = self._kept.get(breaker)
        if found is None:
            found = self._kept[breaker] = _tails(self._model, breaker)
            if len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        return found


def _tails(model: Model, breaker: bytes) -> Tails:
    """Return what has to follow each token that ends with a beginning of the breaker, or holds it."""

    def after(start: int) -> tuple[int, ...]:
        return tuple(model.tokenize(breaker[start:], add_special=False, parse_special=False)[:MOST_TAIL])

    found: Tails = {}
    for token in range(model.n_vocab):
        text = model.token_bytes(token, special=True)
        if breaker in text:
            found[token] = frozenset({()})
        elif starts := _overlaps(text, breaker):
            found[token] = frozenset(map(after, starts))
    return found


def _overlaps(text: bytes, breaker: bytes) -> Sequence[int]:
    """Return the lengths of the beginnings of `breaker` that `text` ends with, the whole left out."""
    return [n for n in range(1, min(len(breaker) - 1, len(text)) + 1) if text.endswith(breaker[:n])]
