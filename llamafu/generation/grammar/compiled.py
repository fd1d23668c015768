"""Grammars made ready for a vocabulary, kept for the requests that bring the same one again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from llamafu.generation.grammar.gbnf import parse
from llamafu.generation.grammar.network import Network

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamafu.generation.grammar.vocabulary import Vocabulary

_MOST_KEPT = 32
_MOST_NODES, _LARGEST_KEPT = 200_000, 50_000
"""Nodes of all grammars that are kept, and of one; each takes some hundred bytes."""


class CompiledGrammar:
    """A GBNF grammar without what the vocabulary cannot spell. Any number of texts may follow it at once, on any thread.

    Raises GrammarError for a grammar that cannot be read or exceeds a bound.
    """

    def __init__(self, grammar: str, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.network = Network(parse(grammar, vocabulary.token_id), max(map(len, vocabulary.token_bytes), default=0))
        self.network.prune(lambda number: vocabulary.can_spell(self.network.grammar.classes[number]))
        self.begins = False
        """Whether some text is known to have begun under it: then others can."""


class GrammarCache:
    """The grammars compiled last for one vocabulary. Any thread; two may compile the same one at a time."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._lock = threading.Lock()
        self._kept: OrderedDict[object, CompiledGrammar] = OrderedDict()

    def get(self, source: object, gbnf_of: Callable[[], str]) -> CompiledGrammar:
        """Return the grammar of `source`; where it is not kept, `gbnf_of` returns its text. Raises GrammarError."""
        with self._lock:
            known = self._kept.get(source)
            if known is not None:
                self._kept.move_to_end(source)
                return known
        made = CompiledGrammar(gbnf_of(), self._vocabulary)
        if len(made.network.kind) <= _LARGEST_KEPT:
            with self._lock:
                self._kept[source] = made
                while len(self._kept) > _MOST_KEPT or self._nodes() > _MOST_NODES:
                    self._kept.popitem(last=False)
        return made

    def _nodes(self) -> int:
        return sum(len(each.network.kind) for each in self._kept.values())
