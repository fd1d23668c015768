"""Vectors of texts, and scores of pairs, between the steps of what runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llamafu.engine.embedding import embed, longest_text
from llamafu.generation.embedding_input import EmbeddingInput, check_text_lengths
from llamafu.generation.ranking import RankingInput

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from llamafu.engine.adapter_manager import AdapterManager
    from llamafu.engine.runtime import EngineRuntime
    from llamafu.engine.worker import Worker
    from llamafu.generation.embedding_input import TextInput, Texts
    from llamafu.generation.pooling import Pooling
    from llamafu.generation.ranking import RankedDocument
    from llamafu.lora.scales import LoraScales


class Embedder:
    """Has batches of texts computed on the engine's thread, and pools the vectors of their tokens on the caller's."""

    def __init__(self, runtime: EngineRuntime, worker: Worker, adapters: AdapterManager) -> None:
        self._runtime = runtime
        self._worker = worker
        self._adapters = adapters

    def embed(
        self,
        text: Texts,
        *,
        pooling: Pooling | None,
        normalize: bool,
        lora: LoraScales | Mapping[str, float] | None,
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return what `Engine.embed` returns, and raise what it raises."""
        self._worker.demand_open()
        runtime = self._runtime
        with runtime.sharing() as model:
            given = EmbeddingInput.read(text, pooling=pooling, normalize=normalize, base=runtime.base, model=model)
        return self._computed(given, lora)

    def rerank(
        self, query: str, documents: Sequence[str], *, top_n: int | None, lora: LoraScales | Mapping[str, float] | None
    ) -> list[RankedDocument]:
        """Return what `Engine.rerank` returns, and raise what it raises."""
        self._worker.demand_open()
        runtime = self._runtime
        with runtime.sharing() as model:
            given = RankingInput.read(query, documents, top_n=top_n, head=runtime.head, base=runtime.base, model=model)
        return given.ranked(self._computed(given, lora))

    def _computed(
        self, given: TextInput, lora: LoraScales | Mapping[str, float] | None
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        check_text_lengths(given.texts, *longest_text(self._runtime))
        acting = self._adapters.lora_set(lora)
        self._adapters.read_ahead(acting.contents)
        vectors: list[np.ndarray[Any, np.dtype[np.float32]]] = []
        while len(vectors) < len(given.texts):
            waiting = given.texts[len(vectors) :]
            rows = self._worker.call(lambda scheduler: embed(scheduler.pool, waiting, acting))  # noqa: B023 - it is called at once
            vectors += map(given.pooled, rows)
        return given.shaped(vectors)
