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
    """Some tokens that were computed once, the sequences that hold them, and how many of those are running.

    `PromptLayout.block_end` says which tokens.
    """

    number: int
    key: Key | None
    size: int
    end: int
    """Where it ends in the text of those that hold it."""
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
        self._layouts: dict[int, PromptLayout] = {}
        self._known: dict[Key, KvBlock] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()
        self._numbers = 0
        self._in_blocks = 0
        self._idle = 0  # tokens in blocks that no running sequence holds
        self.hits = 0

    @property
    def used(self) -> int:
        """Tokens in the memory; shared ones count once."""
        return self._in_blocks + sum(map(len, self._tails.values()))

    @property
    def free_tokens(self) -> int:
        """Tokens that can be added before anything has to be evicted."""
        return self.size - self.used

    def fits(
        self, tokens: Sequence[int], states: Sequence[State], layout: PromptLayout = _PLAIN, *, share: bool = True
    ) -> bool:
        """Whether a sequence and its first new token would find space, with every kept prefix but its own evicted."""
        needed = len(tokens) + 1
        evictable = self.free_tokens + self._idle
        if needed <= evictable or not share:
            return needed <= evictable
        return needed <= evictable + sum(block.size for block in self._find(tokens, states, layout) if block.running)

    def open(
        self, tokens: Sequence[int], states: Sequence[State], layout: PromptLayout = _PLAIN, *, share: bool = True
    ) -> tuple[int, int] | None:
        """Begin a sequence; return its number and how many leading tokens are computed already.

        The last token is never among them: its logits are needed. `share` False: none is. Kept prefixes are evicted until
        the rest and one new token fit, after the sequence has taken its own. None if no number is free, or no space.
        """
        if not self.fits(tokens, states, layout, share=share):
            return None
        shared = self._find(tokens, states, layout) if share else []
        if shared:
            for holder in shared[-1].holders & self._kept.keys():
                self._kept.move_to_end(holder)
        # A running holder if there is one: a kept one may have to go for the number.
        source = min(shared[-1].holders, key=self._kept.__contains__) if shared else None
        if not self._free and not self._evict(sparing=source):
            if not self._evict():
                return None
            shared, source = [], None  # the only number left was the one to share with
            if not self.fits(tokens, states, share=False):
                return None
        number = self._free.pop()
        length = _end(shared)
        if source is not None:
            self._memory.share(source, number, layout.position(length))
            self.hits += 1
        self._hold(shared, number)
        self._blocks[number], self._tails[number], self._layouts[number] = shared, [], layout
        self.make_space(len(tokens) + 1 - length)
        return number, length

    def join(self, number: int, tokens: Sequence[int], states: Sequence[State]) -> int:
        """Let a running sequence have the next blocks of its text that others have computed since; return how many tokens."""
        blocks, layout = self._blocks[number], self._layouts[number]
        if self.next_key(number, tokens, states) is None or not (found := self._find(tokens, states, layout, blocks)):
            return 0
        joined = _end(found) - _end(blocks)
        self._memory.share(next(iter(found[-1].holders)), number, layout.position(_end(found)))
        self._hold(found, number)
        self.hits += not blocks
        blocks += found
        return joined

    def next_key(self, number: int, tokens: Sequence[int], states: Sequence[State]) -> Key | None:
        """Return what the next block of a running sequence's text will be known by; None if it is not to be shared."""
        blocks = self._blocks[number]
        start = _end(blocks)
        end = self._layouts[number].block_end(start)
        if not self._reuse or self._tails[number] or end >= len(tokens) or (blocks and blocks[-1].key is None):
            return None
        return _key(blocks, tokens[start:end], states[start:end])

    def _find(
        self, tokens: Sequence[int], states: Sequence[State], layout: PromptLayout, after: Sequence[KvBlock] = ()
    ) -> list[KvBlock]:
        """Return the blocks of a text that are in the memory, those at its beginning or `after` others."""
        before = list(after[-1:])
        found: list[KvBlock] = []
        start = _end(after)
        while self._reuse and (end := layout.block_end(start)) < len(tokens):
            block = self._known.get(_key(found or before, tokens[start:end], states[start:end]))
            if block is None:
                break
            found.append(block)
            start = end
        return found

    def _hold(self, blocks: Sequence[KvBlock], number: int) -> None:
        """Account for a running sequence that shares blocks."""
        for block in blocks:
            block.holders.add(number)
            if not block.running:
                self._idle -= block.size
            block.running += 1

    def append(self, number: int, tokens: Sequence[int], states: Sequence[State]) -> None:
        """Account for tokens that were computed."""
        tail, blocks = self._tails[number], self._blocks[number]
        tail.extend(zip(tokens, states, strict=True))
        start = _end(blocks)
        while len(tail) >= (size := self._layouts[number].block_end(start) - start):
            full, tail[:] = tail[:size], tail[size:]
            start += size
            key = _key(blocks, [token for token, _ in full], [state for _, state in full])
            # A block whose key is known already stays private (its key is None), and so do the blocks after it.
            is_new = self._reuse and key not in self._known and (not blocks or blocks[-1].key is not None)
            block = KvBlock(self._numbers, key if is_new else None, size, start, {number})
            self._numbers += 1
            self._in_blocks += size
            if block.key is not None:
                self._known[key] = block
            blocks.append(block)

    def close(self, number: int, *, keep: bool = True) -> None:
        """End a sequence. Its full blocks are kept for later sequences until evicted, unless another holds all of them."""
        blocks = self._blocks[number]
        self._leave(blocks)
        useful = keep and any(block.key is not None and block.holders == {number} for block in blocks)
        if useful and self._memory.cut(self._layouts[number].position(_end(blocks)), number):
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
            if not block.running:
                self._idle += block.size

    def _forget(self, number: int) -> None:
        """Free the memory and the number of a sequence that does not run."""
        self._memory.cut(0, number)
        del self._tails[number], self._layouts[number]
        for block in self._blocks.pop(number):
            block.holders.discard(number)
            if not block.holders:
                self._in_blocks -= block.size
                self._idle -= block.size
                if block.key is not None:
                    del self._known[block.key]
        self._free.append(number)


def _end(blocks: Sequence[KvBlock]) -> int:
    """Return where blocks end in the text that begins with them."""
    return blocks[-1].end if blocks else 0


def _key(before: Sequence[KvBlock], tokens: Sequence[int], states: Sequence[State]) -> Key:
    """Return the key of a block with these tokens that follows others."""
    return before[-1].number if before else -1, tuple(tokens), tuple(states)
