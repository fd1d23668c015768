"""The routes for embeddings and ranking, which compute texts in batches and generate nothing."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.responses import Response

from llamafu.errors import LlamafuError, QueueFullError
from llamafu.generation.ranking import best_first
from llamafu.server.schemas.generation_answers import DocumentText, EmbeddingUsage, RerankAnswer, RerankResult
from llamafu.service.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from starlette.types import ASGIApp

    from llamafu.generation.ranking import RankedDocument
    from llamafu.server.http.endpoint import AuthedRequest
    from llamafu.server.protocols import ServedEngine
    from llamafu.server.routes.adapter_resolver import AdapterResolver
    from llamafu.server.schemas.text_requests import EmbeddingRequest, RerankRequest

_T = TypeVar("_T")

_AT_ONCE = 16
"""Texts of one request that are embedded in a row; then other requests get their turn."""


class EmbeddingRoutes:
    """Handlers over one engine. `base` is the base model's id; at most `most_waiting` requests wait or run."""

    def __init__(self, engine: ServedEngine, adapters: AdapterResolver, *, base: str, most_waiting: int) -> None:
        self._engine = engine
        self._adapters = adapters
        self._base = base
        # The engine embeds one batch at a time. A thread of its own keeps waiting requests off the other threads.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="llamafu-embed")
        self._waiting = 0
        self._most_waiting = most_waiting

    async def embeddings(self, request: AuthedRequest[EmbeddingRequest]) -> ASGIApp:
        """`POST /v1/embeddings`."""
        body = request.body
        scales = self._adapters.resolve(body.lora, body.model)
        tokens = 0
        entries: list[str] = []
        for count, some in await self._batches(len(body.input), partial(self._embed_batch, body, scales=scales)):
            tokens += count
            entries += some
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        head = json.dumps({"object": "list", "model": body.model or self._base, "usage": usage})
        # Vectors were written as JSON batch by batch: one call for thousands of them would hold up every stream.
        return Response(f'{head[:-1]}, "data": [{", ".join(entries)}]}}', media_type="application/json")

    async def rerank(self, request: AuthedRequest[RerankRequest]) -> RerankAnswer:
        """`POST /v1/rerank`."""
        body = request.body
        scales = self._adapters.resolve(body.lora, body.model)
        batches = await self._batches(len(body.documents), partial(self._rank_batch, body, scales=scales))
        ranked = best_first([document for batch in batches for document in batch])
        tokens = sum(document.tokens for document in ranked)
        return RerankAnswer(
            id=f"rerank-{secrets.token_hex(12)}",
            object="list",
            model=body.model or self._base,
            results=[self._result(body, document) for document in ranked[: body.top_n]],
            usage=EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens),
        )

    @staticmethod
    def _result(body: RerankRequest, document: RankedDocument) -> RerankResult:
        text = body.documents[document.index]
        told: dict[str, Any] = {"document": DocumentText(text=text)} if body.return_documents else {}
        return RerankResult(index=document.index, relevance_score=document.score, **told)

    def _rank_batch(self, body: RerankRequest, start: int, *, scales: Mapping[str, float] | None) -> list[RankedDocument]:
        """Rank a batch of documents from number `start` on."""
        some = body.documents[start : start + _AT_ONCE]
        try:
            found = self._engine.rerank(body.query, some, lora=scales)
        except (ValueError, TypeError) as error:
            if isinstance(error, LlamafuError):
                raise
            raise InvalidRequestError(str(error)) from error
        return [replace(document, index=document.index + start) for document in found]

    async def _batches(self, count: int, compute: Callable[[int], _T]) -> list[_T]:
        """Return what `compute` makes of each batch of `count` texts, given the number of its first one."""
        if self._waiting >= self._most_waiting:
            message = f"{self._waiting} requests wait to be computed, of at most {self._most_waiting}; try again later"
            raise QueueFullError(message)
        self._waiting += 1
        loop = asyncio.get_running_loop()
        try:
            return [await loop.run_in_executor(self._thread, compute, start) for start in range(0, count, _AT_ONCE)]
        finally:
            self._waiting -= 1

    def _embed_batch(self, body: EmbeddingRequest, start: int, *, scales: Mapping[str, float] | None) -> tuple[int, list[str]]:
        """Embed a batch of texts from number `start` on; return its number of tokens, and the answer's entries as JSON."""
        as_text = body.encoding_format == "base64"
        tokens, vectors = self._vectors(body.input[start : start + _AT_ONCE], scales=scales)
        width = len(vectors[0])
        if body.dimensions not in {None, width}:
            message = f"dimensions is {body.dimensions}, but this model's vectors have {width} numbers each; leave it out"
            raise InvalidRequestError(message)
        return tokens, [
            json.dumps(
                {
                    "object": "embedding",
                    "index": index,
                    "embedding": base64.b64encode(vector.astype("<f4").tobytes()).decode() if as_text else vector.tolist(),
                }
            )
            for index, vector in enumerate(vectors, start)
        ]

    def _vectors(
        self, texts: Sequence[str | list[int]], *, scales: Mapping[str, float] | None
    ) -> tuple[int, Sequence[np.ndarray[Any, np.dtype[np.float32]]]]:
        """Return how many tokens some texts have together, and the vector of each."""
        tokens = [self._engine.tokenize(text) if isinstance(text, str) else text for text in texts]
        blank = self._engine.tokenize("")
        for text, own in zip(texts, tokens, strict=True):
            if isinstance(text, str) and own == blank:
                message = f"input: {text!r:.40} has no tokens in this model's vocabulary; give some other text"
                raise InvalidRequestError(message)
        try:
            return sum(map(len, tokens)), self._engine.embed(tokens, lora=scales)  # type: ignore[return-value] # a matrix's rows
        except (ValueError, TypeError) as error:
            if isinstance(error, LlamafuError):
                raise
            message = f"input: {error}"
            raise InvalidRequestError(message) from error
