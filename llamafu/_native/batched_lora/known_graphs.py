"""Rewriting a graph as one before it, operation by operation, where it lies at the same addresses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from llamafu._native.batched_lora.node_memory import NodeMemory

_MOST = 32
"""Graphs that are kept, the last ones that were used: half a megabyte each where 200 matrices have adapters."""


class _Rewriting(NamedTuple):
    """One operation: its address, and what its tensor had before and after it was rewritten."""

    node: int
    before: bytes
    after: bytes


class KnownGraphs:
    """How the operations of graphs were rewritten, by a key that graphs of one form share. One thread at a time.

    libllama makes a graph's tensors one after another in the same memory. So those of a graph with as many rows as one before
    lie where they lay, and read what they read; they become what those became, by one copy each, without being looked into.
    That is checked byte by byte. The memory of their results may be elsewhere, since that depends on how many cells they see:
    those that get other memory get it again, and those that keep theirs keep what they have in each graph.
    """

    def __init__(self, nodes: NodeMemory) -> None:
        self._nodes = nodes
        self._kept: dict[Any, tuple[list[_Rewriting], Any]] = {}
        self._recorded: list[_Rewriting] | None = None
        self._played: list[_Rewriting] = []
        self._position = 0
        self.expected = 0
        """Address of the operation that `play` comes to next; 0 for none."""

    def clear(self) -> None:
        """Forget all, because operations would be rewritten otherwise now."""
        self._kept.clear()

    def forget(self, key: Any) -> None:
        """Forget one graph."""
        self._kept.pop(key, None)

    def stop(self) -> None:
        """End what is played, and do not keep what is recorded."""
        self._recorded, self.expected = None, 0

    def start(self, key: Any, node: int, *, record: bool) -> Any:
        """Return what was kept with a graph that begins at `node` as this one, to be played; None where there is none.

        Where it is None, the rewriting of this graph is recorded if `record` says so, which takes half as long as it does.
        """
        rewritings, kept = self._kept.get(key, ([], None))
        if rewritings and rewritings[0].node == node and rewritings[0].before == self._nodes.until_data(node):
            self._kept[key] = self._kept.pop(key)
            self._played, self._position, self.expected = rewritings, 0, node
            return kept
        self._recorded = [] if record else None
        return None

    def record(self, node: int, before: bytes, *, is_moved: bool) -> None:
        """Note that a node was rewritten, which had `before` until its data; `is_moved`: its results are elsewhere now."""
        if self._recorded is not None:
            after = self._nodes.with_data(node) if is_moved else self._nodes.until_data(node)
            self._recorded.append(_Rewriting(node, before, after))

    def keep(self, key: Any, kept: Any) -> None:
        """Keep what was recorded, with a value for `start`; the oldest goes where there are too many."""
        if self._recorded is None:
            return
        self._kept.pop(key, None)
        if len(self._kept) >= _MOST:
            del self._kept[next(iter(self._kept))]
        self._kept[key], self._recorded = (self._recorded, kept), None

    def play(self, node: int) -> bool:
        """Rewrite the expected node; return True when it was the last one. ValueError where it is not what it was."""
        rewriting = self._played[self._position]
        if self._nodes.until_data(node) != rewriting.before:
            message = "it is not what it was in a graph of as many rows"
            raise ValueError(message)
        self._nodes.overwrite(node, rewriting.after)
        self._position += 1
        is_last = self._position == len(self._played)
        self.expected = 0 if is_last else self._played[self._position].node
        return is_last
