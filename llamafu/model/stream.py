"""A running generation as an iterator of text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from llamafu.errors import LlamafuError

if TYPE_CHECKING:
    from types import TracebackType

    from llamafu.generation.completion import Completion
    from llamafu.model.decode_loop import Generation


class Stream:
    """Yields pieces of text, of whole UTF-8 characters, as they become final.

    `close()` (or leaving a `with` block, or dropping the object) ends the generation with "cancelled"; `cancel()`
    requests that from another thread. `completion` is available after the end.
    """

    def __init__(self, generation: Generation, owner: object) -> None:
        self._generation = generation
        self._owner = owner  # keeps the Llamafu alive while steps run

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        while self._generation.completion is None:
            if piece := self._generation.step():
                return piece
        raise StopIteration

    @property
    def completion(self) -> Completion:
        """The finished completion; `LlamafuError` while the stream still runs."""
        if self._generation.completion is None:
            message = "the stream has not ended; iterate to its end, or call close()"
            raise LlamafuError(message)
        return self._generation.completion

    def cancel(self) -> None:
        """End the generation at its next token; any thread."""
        self._generation.cancel()

    def close(self) -> None:
        """End the generation now. Idempotent."""
        self._generation.abandon()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        generation = getattr(self, "_generation", None)
        if generation is not None:
            generation.abandon()
