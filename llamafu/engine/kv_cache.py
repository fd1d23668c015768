"""The KV memory that all sequences share: who holds which tokens, and which prefixes can be used again."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from llamafu.generation.prompt import PREFIX_BLOCK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llamafu.lora.scales import State

Key = tuple[int, tuple[int, ...], tuple["State", ...]]
"""Identifies a block: the number of the block before it, its tokens, and the adapter state of each."""


class Memory(Protocol):
    """What this module calls of a context."""

    def cut(self, position: int, sequence: int = 0) -> bool:
        """Remove a sequence's tokens from a position on; False where the memory cannot."""

    def share(self, source: int, target: int, length: int) -> None:
        """Make another sequence's first `length` tokens also `target`'s."""


@dataclass(slots=True, eq=False)
class KvBlock:
    """`PREFIX_BLOCK` tokens that were computed once, the sequences that hold them, and how many of those are running."""

    number: int
    key: Key | None
    holders: set[int] = field(default_factory=set)
    running: int = 1


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
        self._known: dict[Key, KvBlock] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()
        self._numbers = 0
        self._alive = 0
        self._idle = 0  # blocks that no running sequence holds
        self.hits = 0

    @property
    def used(self) -> int:
        """Tokens in the memory; shared ones count once."""
        return self._alive * PREFIX_BLOCK + sum(map(len, self._tails.values()))

    @property
    def free_tokens(self) -> int:
        """Tokens that can be added before anything has to be evicted."""
        return self.size - self.used

    def fits(self, tokens: Sequence[int], states: Sequence[State], *, share: bool = True) -> bool:
        """Whether a sequence and its first new token would find space, with every kept prefix but its own evicted."""
        needed = len(tokens) + 1
        evictable = self.free_tokens + self._idle * PREFIX_BLOCK
        if needed <= evictable or not share:
            return needed <= evictable
        shared = self._find(tokens, states)
        return needed <= evictable + sum(block.running > 0 for block in shared) * PREFIX_BLOCK

    def open(self, tokens: Sequence[int], states: Sequence[State], *, share: bool = True) -> tuple[int, int] | None:
        """Begin a sequence; return its number and how many leading tokens are computed already.

        The last token is never among them: its logits are needed. `share` False: none is. Kept prefixes are evicted until
        the rest and one new token fit, after the sequence has taken its own. None if no number is free, or no space.
        """
        if not self.fits(tokens, states, share=share):
            return None
        shared = self._find(tokens, states) if share else []
        if shared:
            for holder in shared[-1].holders & self._kept.keys():
                self._kept.move_to_end(holder)
        source = next(iter(shared[-1].holders)) if shared else None
        if not self._free and not self._evict(sparing=source):
            if not self._evict():
                return None
            shared, source = [], None  # the only number left was the one to share with
            if not self.fits(tokens, states, share=False):
                return None
        number = self._free.pop()
        length = len(shared) * PREFIX_BLOCK
        if source is not None:
            self._memory.share(source, number, length)
            self.hits += 1
        self._hold(shared, number)
        self._blocks[number], self._tails[number] = shared, []
        self.make_space(len(tokens) + 1 - length)
        return number, length

    def join(self, number: int, tokens: Sequence[int], states: Sequence[State]) -> int:
        """Let a running sequence have the next blocks of its text that others have computed since; return how many tokens."""
        blocks = self._blocks[number]
        if self.next_key(number, tokens, states) is None or not (found := self._find(tokens, states, blocks)):
            return 0
        self._memory.share(next(iter(found[-1].holders)), number, (len(blocks) + len(found)) * PREFIX_BLOCK)
        self._hold(found, number)
        self.hits += not blocks
        blocks += found
        return len(found) * PREFIX_BLOCK

    def next_key(self, number: int, tokens: Sequence[int], states: Sequence[State]) -> Key | None:
        """Return what the next block of a running sequence's text will be known by; None if it is not to be shared."""
        blocks = self._blocks[number]
        start = len(blocks) * PREFIX_BLOCK
        if not self._reuse or self._tails[number] or start + PREFIX_BLOCK >= len(tokens) or (blocks and blocks[-1].key is None):
            return None
        return _key(blocks[-1].number if blocks else -1, tokens, states, start)

    def _find(self, tokens: Sequence[int], states: Sequence[State], after: Sequence[KvBlock] = ()) -> list[KvBlock]:
        """Return the blocks of a text that are in the memory, those at its beginning or `after` others."""
        found: list[KvBlock] = []
        previous = after[-1].number if after else -1
        last = (len(tokens) - 1) // PREFIX_BLOCK if self._reuse else 0
        for place in range(len(after), last):
            block = self._known.get(_key(previous, tokens, states, place * PREFIX_BLOCK))
            if block is None:
                break
            found.append(block)
            previous = block.number
        return found

    def _hold(self, blocks: Sequence[KvBlock], number: int) -> None:
        """Account for a running sequence that shares blocks."""
        for block in blocks:
            block.holders.add(number)
            self._idle -= not block.running
            block.running += 1

    def append(self, number: int, tokens: Sequence[int], states: Sequence[State]) -> None:
        """Account for tokens that were computed."""
        tail, blocks = self._tails[number], self._blocks[number]
        tail.extend(zip(tokens, states, strict=True))
        while len(tail) >= PREFIX_BLOCK:
            full, tail[:] = tail[:PREFIX_BLOCK], tail[PREFIX_BLOCK:]
            previous = blocks[-1].number if blocks else -1
            key = (previous, tuple(token for token, _ in full), tuple(state for _, state in full))
            # A block whose key is known already stays private (its key is None), and so do the blocks after it.
            is_new = self._reuse and key not in self._known and (not blocks or blocks[-1].key is not None)
            block = KvBlock(self._numbers, key if is_new else None, {number})
            self._numbers += 1
            self._alive += 1
            if block.key is not None:
                self._known[key] = block
            blocks.append(block)

    def close(self, number: int, *, keep: bool = True) -> None:
        """End a sequence. Its full blocks are kept for later sequences until evicted, unless another holds all of them."""
        blocks = self._blocks[number]
        self._leave(blocks)
        useful = keep and any(block.key is not None and block.holders == {number} for block in blocks)
        if useful and self._memory.cut(len(blocks) * PREFIX_BLOCK, number):
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

    def _leave(self, blocks: Sequence[KvBlock]) -> None:
        """Account for a running sequence that ends."""
        for block in blocks:
            block.running -= 1
            self._idle += not block.running

    def _forget(self, number: int) -> None:
        """Free the memory and the number of a sequence that does not run."""
        self._memory.cut(0, number)
        del self._tails[number]
        for block in self._blocks.pop(number):
            block.holders.discard(number)
            if not block.holders:
                self._alive -= 1
                self._idle -= 1
                if block.key is not None:
                    del self._known[block.key]
        self._free.append(number)


def _key(previous: int, tokens: Sequence[int], states: Sequence[State], start: int) -> Key:
    end = start + PREFIX_BLOCK
    return previous, tuple(tokens[start:end]), tuple(states[start:end])
