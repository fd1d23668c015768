"""A grammar that reads bytes and tokens: which may come next, and whether the text is complete.

A state is what may stand next in every way of reading the text so far. Ways that stand at the same node are one: what
each goes back to after its rule are links of one set, so that a grammar that can be read in exponentially many ways still has
no more alternatives alive than it has nodes. States and steps are made when they are first needed, and counted: `Budget`
ends a text whose grammar asks for too much.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from typing import TYPE_CHECKING

from llamafu.errors import GrammarError
from llamafu.generation.grammar.gbnf_rules import CALL, CHAR, NOT_TOKEN, TOKEN
from llamafu.generation.grammar.network import EMPTY, END
from llamafu.generation.grammar.utf8 import DONE, Utf8States

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from llamafu.generation.grammar.network import Network

MOST_ALTERNATIVES = 20_000
NOTHING = 0
"""The state in which nothing may come and nothing is complete."""
_BOTTOM = -1
_LAST_BYTE = 255

Link = tuple[int, int]
"""The node to go on with, and the number of the links below it."""


class Budget:
    """Counts the work for one text, in steps of about a microsecond; `refill` gives some of it back."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._spent = 0

    def renew(self, most: int) -> None:
        """Begin a new count."""
        self._most, self._spent = most, 0

    def refill(self, count: int) -> None:
        """Let so many steps more be taken, but never more than `most` together."""
        self._spent = max(0, self._spent - count)

    def spend(self, count: int) -> None:
        """Raise GrammarError when there is nothing left."""
        self._spent += count
        if self._spent > self._most:
            message = (
                f"grammar: more than {self._most:,} steps are needed to find what may follow; "
                "it has too many alternatives alive at once: make it less ambiguous, or its repetitions shorter"
            )
            raise GrammarError(message)


class _State:
    """`groups`: what is read by the same state inside a character; nodes and their links."""

    __slots__ = ("accepts", "groups", "memo", "tokens")

    def __init__(self, items: Iterable[tuple[int, int, int]], tokens: tuple[Link, ...], *, accepts: bool) -> None:
        groups: dict[int, list[Link]] = {}
        for inside, node, links in items:
            groups.setdefault(inside, []).append((node, links))
        self.groups = list(groups.items())
        self.tokens = tokens
        self.accepts = accepts
        self.memo: dict[tuple[int, ...], int] = {}  # what each group goes to -> state


class Automaton:
    """One text's way through a network. One thread at a time."""

    def __init__(self, network: Network, budget: Budget) -> None:
        self._network = network
        self._budget = budget
        self._inside = Utf8States()
        self._starts = [self._inside.start(ranges) for ranges in network.grammar.classes]
        self._links: list[frozenset[Link]] = []
        self._links_known: dict[frozenset[Link], int] = {}
        self._unions: dict[Link, int] = {}
        self._states: list[_State] = []
        self._known: dict[object, int] = {}
        self._states.append(_State((), (), accepts=False))
        bottom = self._link_set(frozenset({(_BOTTOM, 0)}))
        self.start = self._close([(network.entry[network.grammar.root], bottom)])

    def __len__(self) -> int:
        return len(self._states)

    def forget(self, state: int) -> int:
        """Forget every state but this one, and return its new number; NOTHING stays what it is."""
        kept = self._states[state]
        self._states, self._known = self._states[:1], {}
        kept.memo = {}
        self._states.append(kept)
        return 1

    def accepts(self, state: int) -> bool:
        """Whether the text may end here."""
        return self._states[state].accepts

    def is_complete(self, state: int) -> bool:
        """Whether the text may end here, and nothing else."""
        found = self._states[state]
        return found.accepts and not found.groups and not found.tokens

    def tokens(self, state: int) -> tuple[list[int], list[int]]:
        """Return the tokens that may come as such, and those of which any other may."""
        network, nodes = self._network, [node for node, _ in self._states[state].tokens]
        plain = [network.value[node] for node in nodes if network.kind[node] == TOKEN]
        return plain, [network.value[node] for node in nodes if network.kind[node] == NOT_TOKEN]

    def byte(self, state: int, byte: int) -> tuple[int, int, int]:
        """Return the state after a byte, and the first and last byte around it that lead there too."""
        found = self._states[state]
        low, high = 0, _LAST_BYTE
        targets: list[int] = []
        arcs_of = self._inside.arcs
        self._budget.spend(1 + len(found.groups))
        for inside, _ in found.groups:
            arcs = arcs_of[inside]
            at = bisect_right(arcs, (byte, _LAST_BYTE, len(arcs_of))) - 1
            if at >= 0 and arcs[at][1] >= byte:
                low, high = max(low, arcs[at][0]), min(high, arcs[at][1])
                targets.append(arcs[at][2])
            else:
                low = max(low, arcs[at][1] + 1) if at >= 0 else low
                high = min(high, arcs[at + 1][0] - 1) if at + 1 < len(arcs) else high
                targets.append(-2)
        key = tuple(targets)
        if key not in found.memo:
            found.memo[key] = self._step(found, key)
        return found.memo[key], low, high

    def read(self, state: int, token: int, piece: bytes) -> int:
        """Return the state after a token, whose text is `piece`."""
        network, found = self._network, self._states[state]
        kernel = [
            (network.after[node], links)
            for node, links in found.tokens
            if (network.value[node] == token) == (network.kind[node] == TOKEN)
        ]
        for byte in piece or b"\xff":  # no text is no way through the characters
            state, _, _ = self.byte(state, byte)
        if not kernel:
            return state
        other = self._close(kernel)
        if state == NOTHING:
            return other
        both = [self._states[state], self._states[other]]
        items = {(inside, *link) for each in both for inside, links in each.groups for link in links}
        tokens = tuple({link for each in both for link in each.tokens})
        return self._state(items, tokens, accepts=any(each.accepts for each in both))

    def _step(self, state: _State, targets: Sequence[int]) -> int:
        """Return the state after each group went to its target."""
        after = self._network.after
        kernel: list[Link] = []
        items: list[tuple[int, int, int]] = []
        for target, (_, links) in zip(targets, state.groups, strict=True):
            if target == DONE:
                kernel += [(after[node], each) for node, each in links]
            elif target >= 0:
                items += [(target, node, each) for node, each in links]
        self._budget.spend(len(kernel) + len(items))
        if kernel:  # every alternative is at the same byte of a character
            return self._close(kernel)
        return self._state(items, (), accepts=False) if items else NOTHING

    def _close(self, kernel: Sequence[Link]) -> int:
        """Return the state of what stands at these nodes, and whatever can be reached from them without a character."""
        network = self._network
        at: dict[int, int] = {}
        accepts = False
        work = list(kernel)
        while work:
            node, links = work.pop()
            if (old := at.get(node)) is not None:
                new = self._union(old, links)
                if new == old:
                    continue
                at[node] = new
            else:
                at[node] = links
            kind = network.kind[node]
            if kind == EMPTY:
                work += [(way, links) for way in network.ways[node]]
                self._budget.spend(len(network.ways[node]))
            elif kind == END:
                below = self._links[links]
                self._budget.spend(len(below))
                accepts = accepts or (_BOTTOM, 0) in below
                work += [link for link in below if link[0] != _BOTTOM]
            elif kind == CALL and network.passes(node):
                work.append((network.after[node], links))
        self._enter(at)
        items = [(self._starts[network.value[node]], node, links) for node, links in at.items() if network.kind[node] == CHAR]
        tokens = tuple((node, links) for node, links in at.items() if network.kind[node] in {TOKEN, NOT_TOKEN})
        return self._state(items, tokens, accepts=accepts)

    def _enter(self, at: dict[int, int]) -> None:
        """Add what the rules begin with that are called at `at`, in the order in which rules begin with others."""
        network = self._network
        calls: dict[int, set[Link]] = {}
        ranks: list[tuple[int, int]] = []

        def call(node: int, links: int) -> None:
            rule = network.value[node]
            if rule not in calls:
                calls[rule] = set()
                heapq.heappush(ranks, (network.rank[rule], rule))
            after = network.after[node]
            if network.kind[after] == END:  # nothing is left to come back for: the text's place is no deeper than before
                calls[rule] |= self._links[links]
            else:
                calls[rule].add((after, links))

        for node, links in list(at.items()):
            if network.kind[node] == CALL:
                call(node, links)
        while ranks:
            _, rule = heapq.heappop(ranks)
            links = self._link_set(frozenset(calls[rule]))
            self._budget.spend(len(network.firsts[rule]) + len(calls[rule]))
            for node in network.firsts[rule]:
                if network.kind[node] == CALL:
                    call(node, links)
                else:
                    at[node] = links if node not in at else self._union(at[node], links)

    def _state(self, items: Iterable[tuple[int, int, int]], tokens: tuple[Link, ...], *, accepts: bool) -> int:
        items = frozenset(items)
        if len(items) > MOST_ALTERNATIVES:
            message = f"grammar: {len(items):,} alternatives are alive at once, at most {MOST_ALTERNATIVES:,} are followed"
            raise GrammarError(message)
        if not items and not tokens and not accepts:
            return NOTHING
        key = (items, frozenset(tokens), accepts)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = len(self._states)
            self._states.append(_State(items, tokens, accepts=accepts))
            self._budget.spend(len(items) + 5)
        return known

    def _link_set(self, links: frozenset[Link]) -> int:
        if links not in self._links_known:
            self._links_known[links] = len(self._links)
            self._links.append(links)
        return self._links_known[links]

    def _union(self, left: int, right: int) -> int:
        if left == right:
            return left
        key = (min(left, right), max(left, right))
        if key not in self._unions:
            links = self._links[left] | self._links[right]
            self._budget.spend(len(links))
            self._unions[key] = self._link_set(links)
        return self._unions[key]
