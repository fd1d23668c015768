"""A grammar as an automaton over bytes and tokens: which may come next, and whether the text is complete.

A state is the set of nodes at which the ways of reading the text so far stand. Ways that stand at the same node are merged:
their return addresses (the nodes after the calls of their rules) become one set of links, a graph-structured stack. So a
grammar that can be read in exponentially many ways has no more alternatives alive than it has nodes. States and transitions
are computed on demand and counted: `Budget` ends a text whose grammar needs too many.
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
"""A node, and the number of the set of links to return to at the end of its rule."""


class Budget:
    """Counts the work for one text, in steps of about a microsecond; `refill` returns some of it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._spent = 0

    def renew(self, most: int) -> None:
        """Start counting from 0 again, with another limit."""
        self._most, self._spent = most, 0

    def refill(self, count: int) -> None:
        """Reduce the count by `count` steps, to 0 at the least."""
        self._spent = max(0, self._spent - count)

    def spend(self, count: int) -> None:
        """Count more steps; GrammarError when there are more than the limit."""
        self._spent += count
        if self._spent > self._most:
            message = (
                f"grammar: more than {self._most:,} steps are needed to find what may follow; "
                "it has too many alternatives alive at once: make it less ambiguous, or its repetitions shorter"
            )
            raise GrammarError(message)


class _AutomatonState:
    """A state. `groups` has its nodes and links by the state inside a UTF-8 character that they read with."""

    __slots__ = ("accepts", "groups", "memo", "outlook", "tokens")

    def __init__(self, items: Iterable[tuple[int, int, int]], tokens: tuple[Link, ...], *, accepts: bool) -> None:
        groups: dict[int, list[Link]] = {}
        for inside, node, links in items:
            groups.setdefault(inside, []).append((node, links))
        self.groups = list(groups.items())
        self.tokens = tokens
        self.accepts = accepts
        self.memo: dict[tuple[int, ...], int] = {}  # what each group goes to -> state
        self.outlook: object = None


class Automaton:
    """The states that one text reaches in a network. One thread at a time."""

    def __init__(self, network: Network, budget: Budget) -> None:
        self._network = network
        self._budget = budget
        self._inside = Utf8States()
        self._starts = [self._inside.start(ranges) for ranges in network.grammar.classes]
        self._links: list[frozenset[Link]] = []
        self._alike: list[int] = []  # links -> a number that links of alike nodes share
        self._alike_known: dict[frozenset[Link], int] = {}
        self._links_known: dict[frozenset[Link], int] = {}
        self._unions: dict[Link, int] = {}
        self._states: list[_AutomatonState] = []
        self._known: dict[object, int] = {}
        self._states.append(_AutomatonState((), (), accepts=False))
        bottom = self._link_set(frozenset({(_BOTTOM, 0)}))
        self.start = self._close([(network.entry[network.grammar.root], bottom)])

    def __len__(self) -> int:
        return len(self._states)

    def forget(self, state: int) -> int:
        """Forget every state but this one and return its new number; the number of NOTHING does not change."""
        kept = self._states[state]
        self._states, self._known = self._states[:1], {}
        kept.memo = {}
        self._states.append(kept)
        return 1

    def outlook(self, state: int) -> object:
        """Return what states have in common from which the same tokens may follow."""
        found = self._states[state]
        if found.outlook is None:
            items = frozenset((inside, link) for inside, links in found.groups for link in self._alike_links(links))
            found.outlook = items, self._alike_links(found.tokens), found.accepts
        return found.outlook

    def accepts(self, state: int) -> bool:
        """Whether the text may end here."""
        return self._states[state].accepts

    def is_complete(self, state: int) -> bool:
        """Whether the text may end here, and nothing else."""
        found = self._states[state]
        return found.accepts and not found.groups and not found.tokens

    def tokens(self, state: int) -> tuple[list[int], list[int]]:
        """Return the tokens that the grammar names as next (`<[1]>`), and those it excludes (`!<[1]>`)."""
        network, nodes = self._network, [node for node, _ in self._states[state].tokens]
        plain = [network.value[node] for node in nodes if network.kind[node] == TOKEN]
        return plain, [network.value[node] for node in nodes if network.kind[node] == NOT_TOKEN]

    def byte(self, state: int, byte: int) -> tuple[int, int, int]:
        """Return the state after a byte, and the range of bytes around it that lead to the same state."""
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
        for byte in piece or b"\xff":  # a token without text is read by no character class
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

    def _step(self, state: _AutomatonState, targets: Sequence[int]) -> int:
        """Return the state after each group has moved to its target."""
        after = self._network.after
        kernel: list[Link] = []
        items: list[tuple[int, int, int]] = []
        for target, (_, links) in zip(targets, state.groups, strict=True):
            if target == DONE:
                kernel += [(after[node], each) for node, each in links]
            elif target >= 0:
                items += [(target, node, each) for node, each in links]
        self._budget.spend(len(kernel) + len(items))
        if kernel:  # all alternatives end a character at the same byte
            return self._close(kernel)
        return self._state(items, (), accepts=False) if items else NOTHING

    def _close(self, kernel: Sequence[Link]) -> int:
        """Return the state of these nodes and of all that are reached from them without reading a character."""
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
        """Add the first nodes of the rules called at `at`; a rule comes before those that it can begin with."""
        network = self._network
        calls: dict[int, set[Link]] = {}
        ranks: list[tuple[int, int]] = []

        def call(node: int, links: int) -> None:
            rule = network.value[node]
            if rule not in calls:
                calls[rule] = set()
                heapq.heappush(ranks, (network.rank[rule], rule))
            after = network.after[node]
            if network.kind[after] == END:  # a tail call: return to the caller's own links, so the stack does not grow
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
            self._states.append(_AutomatonState(items, tokens, accepts=accepts))
            self._budget.spend(len(items) + 5)
        return known

    def _link_set(self, links: frozenset[Link]) -> int:
        if links not in self._links_known:
            self._links_known[links] = len(self._links)
            self._links.append(links)
            found = self._alike_links(links) if self._alike else links  # the first are the bottom's
            self._alike.append(self._alike_known.setdefault(found, len(self._alike_known)))
        return self._links_known[links]

    def _alike_links(self, links: Iterable[Link]) -> frozenset[Link]:
        alike = self._network.alike
        return frozenset((node if node == _BOTTOM else alike[node], self._alike[below]) for node, below in links)

    def _union(self, left: int, right: int) -> int:
        if left == right:
            return left
        key = (min(left, right), max(left, right))
        if key not in self._unions:
            links = self._links[left] | self._links[right]
            self._budget.spend(len(links))
            self._unions[key] = self._link_set(links)
        return self._unions[key]
