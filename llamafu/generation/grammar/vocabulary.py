"""A vocabulary's texts as a tree of bytes: which tokens are a way through an automaton, all in one walk."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from llamafu.generation.grammar.automaton import NOTHING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from llamafu.generation.grammar.automaton import Automaton
    from llamafu.generation.grammar.rules import Ranges

_UNKNOWN = -1
_BYTES = 256


class Vocabulary:
    """Tokens by number. `pieces`: their bytes, none for a token that writes nothing. `ends`: those that end a text.

    `token_id` returns the one token that a text such as `<|end|>` is, None when it is none. Immutable: any thread.
    """

    def __init__(self, pieces: Sequence[bytes], ends: Iterable[int], token_id: Callable[[str], int | None]) -> None:
        self.ends = np.array(sorted(ends), dtype=np.int64)
        self.pieces = list(pieces)
        for token in self.ends:
            self.pieces[token] = b""
        self.token_id = token_id
        self._build()

    def __len__(self) -> int:
        return len(self.pieces)

    def _build(self) -> None:
        """Number the tree's nodes level by level, so that the children of each lie side by side."""
        order = sorted(range(len(self.pieces)), key=self.pieces.__getitem__)
        order = order[sum(not piece for piece in self.pieces) :]
        lengths = np.array([len(self.pieces[token]) for token in order], dtype=np.int64)
        offsets = np.cumsum(lengths) - lengths
        text = np.frombuffer(b"".join(self.pieces[token] for token in order), dtype=np.uint8)
        tokens = np.array(order, dtype=np.int64)
        parent = np.zeros(len(order), dtype=np.int64)
        self._token_node = np.zeros(len(self.pieces), dtype=np.int64)
        bytes_of, parents_of = [np.zeros(1, np.uint8)], [np.full(1, -1, np.int64)]
        count, depth = 1, 0
        while len(tokens):
            byte = text[offsets + depth]
            is_new = np.ones(len(tokens), dtype=bool)
            is_new[1:] = (parent[1:] != parent[:-1]) | (byte[1:] != byte[:-1])
            bytes_of.append(byte[is_new])
            parents_of.append(parent[is_new])
            node = count - 1 + np.cumsum(is_new)
            count += int(is_new.sum())
            depth += 1
            ends_here = lengths == depth
            self._token_node[tokens[ends_here]] = node[ends_here]
            longer = ~ends_here
            tokens, lengths, offsets, parent = tokens[longer], lengths[longer], offsets[longer], node[longer]
        self._byte = np.concatenate(bytes_of)
        parents = np.concatenate(parents_of)
        self._first_child = np.searchsorted(parents, np.arange(count))
        self._children = np.searchsorted(parents, np.arange(count), side="right") - self._first_child

    def walk(self, automaton: Automaton, steps: Steps, state: int) -> NDArray[np.bool_]:
        """Return for each token whether its bytes are a way on from `state`."""
        reached = np.zeros(len(self._byte), dtype=bool)
        nodes, states = np.zeros(1, np.int64), np.full(1, state, np.int64)
        while len(nodes):
            counts = self._children[nodes]
            total = int(counts.sum())
            if not total:
                break
            ends = np.cumsum(counts)
            children = np.arange(total) + np.repeat(self._first_child[nodes] - ends + counts, counts)
            after = steps.after(automaton, np.repeat(states, counts), self._byte[children])
            going = after != NOTHING
            nodes, states = children[going], after[going]
            reached[nodes] = True
        return reached[self._token_node]

    def can_spell(self, ranges: Ranges) -> bool:
        """Whether it may have tokens for some character out of `ranges`; where it takes several tokens, that is a guess."""
        characters, loose = self._spelt
        for low, high in ranges:
            at = int(np.searchsorted(characters, low))
            if at < len(characters) and characters[at] <= high:
                return True
            if loose and (low != high or loose.issuperset(chr(low).encode())):
                return True
        return False

    @cached_property
    def _spelt(self) -> tuple[NDArray[np.int64], frozenset[int]]:
        """The characters inside tokens, sorted, and the bytes of tokens that are no whole characters."""
        characters: set[str] = set()
        loose: set[int] = set()
        for piece in self.pieces:
            try:
                characters.update(piece.decode())
            except UnicodeDecodeError:
                loose.update(piece)
                characters.update(piece.decode(errors="ignore"))
        return np.array(sorted(map(ord, characters)), dtype=np.int64), frozenset(loose)


class Steps:
    """What is known of an automaton's steps, as a table."""

    def __init__(self) -> None:
        self._table = np.full((64, _BYTES), _UNKNOWN, dtype=np.int64)
        self._table[NOTHING] = NOTHING

    def after(self, automaton: Automaton, states: NDArray[np.int64], bytes_: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return the state after each byte in each state."""
        self._grow(len(automaton))
        found = self._table[states, bytes_]
        missing = found == _UNKNOWN
        if missing.any():
            for pair in np.unique(states[missing] * _BYTES + bytes_[missing]).tolist():
                state, byte = divmod(pair, _BYTES)
                if self._table[state, byte] == _UNKNOWN:
                    after, low, high = automaton.byte(state, byte)
                    self._table[state, low : high + 1] = after
            found = self._table[states, bytes_]
        return found

    def _grow(self, count: int) -> None:
        if count > len(self._table):
            more = np.full((max(count, 2 * len(self._table)) - len(self._table), _BYTES), _UNKNOWN, dtype=np.int64)
            self._table = np.concatenate([self._table, more])
