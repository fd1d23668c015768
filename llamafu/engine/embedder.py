"""Vectors of texts, between the steps of what runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llamafu.engine.embedding import embed, longest_text
from llamafu.generation.pooling import choose_pooling, demand_one, pool, shaped
from llamafu.model.embedding import demand_room, read_texts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np

    from llamafu.engine.adapter_manager import AdapterManager
    from llamafu.engine.runtime import EngineRuntime
    from llamafu.engine.worker import Worker
    from llamafu.generation.options import LoraScales
    from llamafu.generation.pooling import Pooling
    from llamafu.model.embedding import Texts


class Embedder:
    """Has batches of texts computed on the engine's thread, and pools the vectors of their tokens on the caller's."""

    def __init__(self, runtime: EngineRuntime, worker: Worker, adapters: AdapterManager) -> None:
        self._runtime = runtime
        self._worker = worker
        self._adapters = adapters

    def embed(
        self,
        text: Texts,
        tokenize: Callable[[str], list[int]],
        *,
        pooling: Pooling | None,
        normalize: bool,
        lora: LoraScales | Mapping[str, float] | None,
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return what `Engine.embed` returns, and raise what it raises."""
        self._worker.demand_open()
        runtime = self._runtime
        chosen = choose_pooling(pooling, runtime.base.architecture, runtime.base.metadata)
        with runtime.sharing() as model:
            texts, is_one = read_texts(text, tokenize, model.n_vocab)
        demand_one(chosen, is_one=is_one)
        demand_room(texts, *longest_text(runtime))
        mix = self._adapters.mix(lora)
        self._adapters.read_ahead(mix.contents)
        vectors: list[np.ndarray[Any, np.dtype[np.float32]]] = []
        while len(vectors) < len(texts):
            waiting = texts[len(vectors) :]
            rows = self._worker.call(lambda scheduler: embed(scheduler.pool, waiting, mix))  # noqa: B023 - it is called at once
            vectors += [pool(of_text, chosen, normalize=normalize) for of_text in rows]
        return shaped(vectors, is_one=is_one)
