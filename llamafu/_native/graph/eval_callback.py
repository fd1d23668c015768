"""An evaluation callback in Python: libllama shows it every operation of a decode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamafu._native.library import Library


class EvalCallback:
    """Calls `on_node(tensor, ask)` for every operation (`cb_eval` in llama.h). `on_node` must not raise.

    With `ask` True, the operation has not run yet: return True to be called again, with `ask` False, once it has. In that
    second call, False ends the decode.
    """

    def __init__(self, library: Library, on_node: Callable[[Any, bool], bool]) -> None:
        self._callback = library.ffi.callback(
            "bool(struct ggml_tensor *, bool, void *)", lambda tensor, ask, _: on_node(tensor, ask), error=False
        )

    def install(self, params: Any) -> None:
        """Enter the callback into `llama_context_params`."""
        params.cb_eval = self._callback
