"""Which adapter tensors a model's graph really uses.

Some graphs compute a projection without looking for adapters: such an adapter loads, and does nothing there.
A probing decode in a context of its own records the weights that the graph reads.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from llamafu._native.context import Context, ContextOptions
from llamafu._native.graph.eval_callback import Watcher
from llamafu.errors import DecodeError, LoraIncompatibleError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llamafu._native.adapter import Adapter
    from llamafu._native.model import Model

_SOURCES = 2  # every operation that reads a weight has it as one of its first two sources


class Prober:
    """Owns the probing context; the caller holds the lock and closes it before the model."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._seen: set[str] = set()
        self._used: set[str] = set()
        self._context: Context | None = None

    def close(self) -> None:
        """Free the probing context. Idempotent."""
        context, self._context = self._context, None
        if context is not None:
            context.close()

    def demand_all_used(self, adapter: Adapter, targets: Iterable[str]) -> None:
        """Raise `LoraIncompatibleError` naming every target tensor that the graph never multiplies by the adapter."""
        unknown = set(targets) - self._used
        if not unknown:
            return
        seen = self._sources_with(adapter)
        unused = sorted(target for target in unknown if f"{target}.lora_a" not in seen)
        if unused:
            problems = tuple(
                f"{target}: this model's graph computes it without adapters, so it would do nothing" for target in unused
            )
            message = (
                f"the adapter {adapter.label} would be used in part only: {'; '.join(problems)}. "
                "Train it without these targets, or use a libllama whose graph supports them"
            )
            raise LoraIncompatibleError(message, problems=problems)
        self._used |= unknown

    def _sources_with(self, adapter: Adapter) -> set[str]:
        if self._context is None:
            options = ContextOptions(n_ctx=64, n_batch=1, n_threads=1)
            self._context = Context(self._model, options, hook=Watcher(self._model.library, self._note))
            self._context.abort_at_once()
        self._seen = set()
        self._context.set_adapters({adapter: 1.0})
        try:
            # Every node is announced before the first one is computed, and the abort stops it there.
            with self._model.library.logs.quiet(), contextlib.suppress(DecodeError):
                self._context.decode([max(self._model.bos, 0)], 0)
        finally:
            self._context.set_adapters({})
            self._context.clear()
        return self._seen

    def _note(self, tensor: Any, ask: bool) -> bool:  # noqa: FBT001 - the C signature
        if ask:
            ffi = self._model.library.ffi
            for source in tensor.src[0:_SOURCES]:
                if source != ffi.NULL:
                    self._seen.add(ffi.string(source.name).decode("utf-8", "replace"))
        return False
