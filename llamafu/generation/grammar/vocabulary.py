"""A vocabulary's texts as a trie of bytes: one walk finds all tokens that an automaton can read."""

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
    """Tokens by number. `token_bytes`: what each writes, empty for control tokens. `ends`: those that end a text.

    `token_id` returns the one token that a text such as `<|end|>` is, None when it is none. Immutable: any thread.
    """

    def __init__(self, token_bytes: Sequence[bytes], ends: Iterable[int], token_id: Callable[[str], int | None]) -> None:
        self.ends = np.array(sorted(ends), dtype=np.int64)
        self.token_bytes = list(token_bytes)
        for token in self.ends:
            self.token_bytes[token] = b""
        self.token_id = token_id
        self._build()

    def __len__(self) -> int:
        return len(self.token_bytes)

    def _build(self) -> None:
        """Number the trie's nodes level by level, so that the children of each are adjacent."""
        order = sorted(range(len(self.token_bytes)), key=self.token_bytes.__getitem__)
        order = order[sum(not text for text in self.token_bytes) :]
        lengths = np.array([len(self.token_bytes[token]) for token in order], dtype=np.int64)
        offsets = np.cumsum(lengths) - lengths
        text = np.frombuffer(b"".join(self.token_bytes[token] for token in order), dtype=np.uint8)
        tokens = np.array(order, dtype=np.int64)
        parent = np.zeros(len(order), dtype=np.int64)
        self._token_node = np.zeros(len(self.token_bytes), dtype=np.int64)
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
        """Return for each token whether the automaton can read its bytes from `state` on."""
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
        """Whether tokens can write some character of `ranges`; True too where several tokens might, byte by byte."""
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
        """The characters inside tokens, sorted, and the bytes of tokens that split a character."""
        characters: set[str] = set()
        loose: set[int] = set()
        for text in self.token_bytes:
            try:
                characters.update(text.decode())
            except UnicodeDecodeError:
                loose.update(text)
                characters.update(text.decode(errors="ignore"))
        return np.array(sorted(map(ord, characters)), dtype=np.int64), frozenset(loose)


class Steps:
    """The known transitions of an automaton as a table [state, byte]."""

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
