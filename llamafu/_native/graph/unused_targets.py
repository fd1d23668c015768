"""Refusing adapters of which a model's graph would use a part only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamafu._native.graph.adapter_ops import GraphProbe
from llamafu._util.listing import listed
from llamafu.errors import LoraIncompatibleError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llamafu._native.adapter import Adapter
    from llamafu._native.context_options import ContextOptions
    from llamafu._native.model import Model


class Prober:
    """Remembers which targets a model's graph uses, and probes for others; the caller holds the lock.

    `options` are those of the context that the adapters are for.
    """

    def __init__(self, model: Model, options: ContextOptions) -> None:
        self._probe = GraphProbe(model, options)
        self._used: set[str] = set()

    def close(self) -> None:
        """Free the probing context; to be done before the model is closed. Idempotent."""
        self._probe.close()

    def demand_all_used(self, adapter: Adapter, targets: Iterable[str]) -> None:
        """Raise `LoraIncompatibleError` with every target tensor that the graph never multiplies by the adapter.

        Raises `DecodeError` where the graph cannot be computed with the adapter.
        """
        unknown = set(targets) - self._used
        if not unknown:
            return
        unused = sorted(unknown - self._probe.find(adapter).used_targets)
        if unused:
            problems = tuple(
                f"{target}: this model's graph computes it without adapters, so it would do nothing" for target in unused
            )
            message = (
                f"the adapter {adapter.label} would be used in part only: {listed(problems, '; ')}. "
                "Train it without these targets, or use a libllama whose graph supports them"
            )
            raise LoraIncompatibleError(message, problems=problems)
        self._used |= unknown
