"""What the server needs of an engine, and no more."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from llamafu.service.local import AdapterEngine

if TYPE_CHECKING:
    import asyncio
    import os

    import numpy as np

    from llamafu.engine.bank_contents import AdapterUse, BankContents
    from llamafu.engine.model_facts import ModelFacts
    from llamafu.engine.request import Request
    from llamafu.generation.completion import Completion
    from llamafu.generation.ranking import RankedDocument


class AnswerStream(AsyncIterator[str], Protocol):
    """The text of one answer as it comes, chunk by chunk; `completion` after the last one."""

    @property
    def completion(self) -> Completion:
        """The whole answer, once the stream has ended."""

    def cancel(self) -> None:
        """End the request before its next step: the stream ends, and `completion` has what there was until then."""

    async def aclose(self) -> None:
        """End the request at its next step, and wait for nothing. Idempotent, and without effect after the end."""


class ServedEngine(AdapterEngine, Protocol):
    """An engine as the server uses it, from one event loop; all of it may be called from any thread."""

    @property
    def model_facts(self) -> ModelFacts:
        """What does not change of the model."""

    def request_of_chat(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> Request:
        """Make a request of messages and the options of `chat`, by the model's chat template.

        What that refuses is a `LlamafuError`, ValueError or TypeError.
        """

    def prompt_of_chat(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
        """Return the text that the chat template makes of messages; refuses what `request_of_chat` does."""

    def open_stream(self, request: Request, loop: asyncio.AbstractEventLoop | None = None) -> AnswerStream:
        """Check and queue a request.

        Raises what is wrong with it here (`ContextOverflowError`, `GrammarError`, `LoraNotFoundError`, `QueueFullError`,
        ValueError, TypeError).
        """

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Return the token ids of `text`."""

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """Return the text of token ids."""

    def token_bytes(self, tokens: Sequence[int]) -> list[bytes]:
        """Return the bytes of each of these tokens, of control tokens what they are called; `TokenizeError`."""

    def embed(
        self, text: Sequence[Sequence[int]], *, lora: Mapping[str, float] | None = None
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return the vectors of texts that are given as token ids, a row each, under `lora`; None is the active set."""

    def rerank(self, query: str, documents: Sequence[str], *, lora: Mapping[str, float] | None = None) -> list[RankedDocument]:
        """Return all documents by how well they answer a query, the best first, under `lora`; None is the active set."""

    def add_adapter(self, path: str | os.PathLike[str], *, name: str | None = None) -> Any:
        """Register an adapter; added again, a file that has changed is read anew."""

    def remove_adapter(self, name: str) -> None:
        """Forget an adapter that is not active; requests that run with it keep it."""

    def add_mix(self, name: str, scales: Mapping[str, float], *, overwrite: bool = False) -> None:
        """Give a set of registered adapters a name; `LlamafuError`, ValueError or TypeError for what is none."""

    def remove_mix(self, name: str) -> None:
        """Forget a mix."""

    def stats(self) -> Any:
        """Return a dataclass of what the engine counts."""

    def bank_contents(self) -> BankContents:
        """Return what the bank holds now."""

    def adapter_use(self) -> AdapterUse:
        """Return which adapters the requests of now use."""
