"""The token sequences that DRY's sequence breakers are written with."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llamafu._native.model import Model

MOST_TAIL = 20
"""Tokens of a breaker after its first one: what follows them is not looked at, as in libllama."""
_MOST_BYTES = 40
"""Of a breaker, as in libllama."""
_MOST_KEPT = 16
"""Lists of breakers whose tables are kept for other requests."""

Tails = dict[int, frozenset[tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class BreakTable:
    """Which tokens begin a breaker, and what has to follow each: `()` where the token holds the whole of it."""

    tails: Tails

    def is_single(self, token: int) -> bool:
        """Whether the token holds a whole breaker."""
        return () in self.tails.get(token, ())


def break_table_of(model: Model, breakers: tuple[str, ...]) -> BreakTable:
    """Return the tokens of all `breakers`. Slow for those that nobody asked for lately: the whole vocabulary is looked at."""
    return model.derived(_BreakerCache).get(breakers)


class _BreakerCache:
    """The tables that were asked for last. Any thread; two may compute the same one at a time."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, ...], BreakTable] = OrderedDict()

    def get(self, breakers: tuple[str, ...]) -> BreakTable:
        with self._lock:
            known = self._kept.get(breakers)
            if known is not None:
                self._kept.move_to_end(breakers)
                return known
        texts = [breaker.encode("utf-8", "surrogatepass")[:_MOST_BYTES] for breaker in breakers]
        table = BreakTable(_tails(self._model, texts))
        with self._lock:
            self._kept[breakers] = table
            if len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        return table


def _tails(model: Model, breakers: Sequence[bytes]) -> Tails:
    """Return what has to follow each token that ends with a beginning of a breaker, or holds one."""

    def after(text: bytes) -> tuple[int, ...]:
        return tuple(model.tokenize(text, add_special=False, parse_special=False)[:MOST_TAIL])

    anything = re.compile(b"|".join(re.escape(breaker[:1]) for breaker in breakers))
    found: Tails = {}
    for token in range(model.n_vocab):
        text = model.token_bytes(token, special=True)
        if breakers and anything.search(text):
            rests = [rest for breaker in breakers for rest in _rests(text, breaker)]
            if rests:
                found[token] = frozenset(after(rest) if rest else () for rest in rests)
    return found


def _rests(text: bytes, breaker: bytes) -> list[bytes]:
    """Return what is left of a breaker after the end of a token: nothing where the token holds it."""
    if breaker in text:
        return [b""]
    longest = min(len(breaker) - 1, len(text))
    return [breaker[n:] for n in range(1, longest + 1) if text.endswith(breaker[:n])]
