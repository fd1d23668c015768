"""A hook in Python: shown every operation of a decode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamafu._native.library import Library


class Watcher:
    """Calls `on_node(tensor, ask)` for every operation (see `cb_eval` in llama.h). It must not raise."""

    def __init__(self, library: Library, on_node: Callable[[Any, bool], bool]) -> None:
        self._callback = library.ffi.callback(
            "bool(struct ggml_tensor *, bool, void *)", lambda tensor, ask, _: on_node(tensor, ask), error=False
        )

    def install(self, params: Any) -> None:
        """Enter the callback into `llama_context_params`."""
        params.cb_eval = self._callback
