"""The KV memory that all sequences share: who holds which tokens, and which prefixes can be used again."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from llamafu.generation.media.prompt_layout import PromptLayout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llamafu.lora.scales import State

_PLAIN = PromptLayout()
Key = tuple[int, tuple[int, ...], tuple["State", ...]]
"""Identifies a block: the number of the block before it, its tokens, and the adapter state of each."""


class Memory(Protocol):
    """What this module calls of a context."""

    def cut(self, position: int, sequence: int = 0) -> bool:
        """Remove a sequence's tokens from a position on; False where the memory cannot."""

    def share(self, source: int, target: int, length: int) -> None:
        """Make what another sequence has at the first `length` positions also `target`'s."""


@dataclass(slots=True, eq=False)
class KvBlock:
    """Some tokens that were computed once, and the numbers of the sequences that hold them: see `PromptLayout.block_end`."""

    number: int
    key: Key | None
    size: int
    holders: set[int] = field(default_factory=set)


class KvCache:
    """Accounts for every token in the memory, shares blocks by content, and evicts. One thread at a time.

    A sequence number is running, kept (its sequence has ended, its blocks may be shared) or free. `size` is in tokens.
    `reuse` False is for recurrent memories, which can be neither shared nor cut at a position.
    """

    def __init__(self, memory: Memory, *, size: int, sequences: int, reuse: bool) -> None:
        self._memory = memory
        self.size = size
        self._reuse = reuse
        self._free = list(range(sequences - 1, -1, -1))
        self._blocks: dict[int, list[KvBlock]] = {}
        self._tails: dict[int, list[tuple[int, State]]] = {}
        self._layouts: dict[int, PromptLayout] = {}
        self._known: dict[Key, KvBlock] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()
        self._numbers = 0
        self._in_blocks = 0
        self.hits = 0

    @property
    def used(self) -> int:
        """Tokens in the memory; shared ones count once."""
        return self._in_blocks + sum(map(len, self._tails.values()))

    @property
    def free_tokens(self) -> int:
        """Tokens that can be added before anything has to be evicted."""
        return self.size - self.used

    def open(
        self, tokens: Sequence[int], states: Sequence[State], layout: PromptLayout = _PLAIN, *, share: bool = True
    ) -> tuple[int, int] | None:
        """Begin a sequence; return its number, and how many leading tokens are computed already; None if no number is free.

        The last token is never among them: its logits are needed. `share` False: none is.
        """
        shared: list[KvBlock] = []
        previous = -1
        length = 0
        while self._reuse and share and (end := layout.block_end(length)) < len(tokens):
            block = self._known.get((previous, tuple(tokens[length:end]), tuple(states[length:end])))
            if block is None:
                break
            shared.append(block)
            previous, length = block.number, end
        if shared:
            for holder in shared[-1].holders & self._kept.keys():
                self._kept.move_to_end(holder)
        source = next(iter(shared[-1].holders)) if shared else None
        if not self._free and not self._evict(sparing=source):
            if not self._evict():
                return None
            shared, source, length = [], None, 0  # the only number left was the one to share with
        number = self._free.pop()
        if source is not None:
            self._memory.share(source, number, layout.position(length))
            self.hits += 1
        for block in shared:
            block.holders.add(number)
        self._blocks[number], self._tails[number], self._layouts[number] = shared, [], layout
        return number, length

    def append(self, number: int, tokens: Sequence[int], states: Sequence[State]) -> None:
        """Account for tokens that were computed."""
        tail, blocks = self._tails[number], self._blocks[number]
        tail.extend(zip(tokens, states, strict=True))
        start = _length(blocks)
        while len(tail) >= (size := self._layouts[number].block_end(start) - start):
            full, tail[:] = tail[:size], tail[size:]
            start += size
            previous = blocks[-1].number if blocks else -1
            key = (previous, tuple(token for token, _ in full), tuple(state for _, state in full))
            # A block whose key is known already stays private (its key is None), and so do the blocks after it.
            is_new = self._reuse and key not in self._known and (not blocks or blocks[-1].key is not None)
            block = KvBlock(self._numbers, key if is_new else None, size, {number})
            self._numbers += 1
            self._in_blocks += size
            if block.key is not None:
                self._known[key] = block
            blocks.append(block)

    def close(self, number: int, *, keep: bool = True) -> None:
        """End a sequence. Its full blocks are kept for later sequences until evicted, unless another holds all of them."""
        blocks = self._blocks[number]
        useful = keep and any(block.key is not None and block.holders == {number} for block in blocks)
        if useful and self._memory.cut(self._layouts[number].position(_length(blocks)), number):
            self._tails[number] = []
            self._kept[number] = None
        else:
            self._forget(number)

    def make_space(self, tokens: int) -> bool:
        """Evict kept sequences, the least recently used first, until so many tokens fit; False when they do not fit then."""
        while self.free_tokens < tokens:
            if not self._evict():
                return False
        return True

    def evict_one(self) -> bool:
        """Evict one kept sequence; False when there is none."""
        return self._evict()

    def _evict(self, sparing: int | None = None) -> bool:
        number = next((number for number in self._kept if number != sparing), None)
        if number is None:
            return False
        del self._kept[number]
        self._forget(number)
        return True

    def _forget(self, number: int) -> None:
        self._memory.cut(0, number)
        del self._tails[number], self._layouts[number]
        for block in self._blocks.pop(number):
            block.holders.discard(number)
            if not block.holders:
                self._in_blocks -= block.size
                if block.key is not None:
                    del self._known[block.key]
        self._free.append(number)


def _length(blocks: Sequence[KvBlock]) -> int:
    """Return how many tokens are in blocks."""
    return sum(block.size for block in blocks)
