"""`LlamafuEmbeddings`: LangChain's embeddings over an `Engine` or a `Llamafu` of this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from langchain_core.embeddings import Embeddings

from llamafu.integrations.local_model import check_local_model, scales_of

if TYPE_CHECKING:
    from llamafu.generation.pooling import Pooling
    from llamafu.integrations.local_model import LocalModel
    from llamafu.lora.scales import LoraScales


class LlamafuEmbeddings(Embeddings):
    """Vectors of texts, of length 1.

    - `engine`: an `Engine`, or a `Llamafu` that was opened with `embeddings=True`. TypeError for anything else.
    - `model`: the name of an adapter, which then acts at scale 1; None, or the base's name, is the active set.
    - `lora`: scales by name, in place of `model`. ValueError where both are given.
    - `pooling`: as for `Engine.embed`.

    Any thread. Texts that are too long, and unknown adapters, are the errors of `Engine.embed`.
    """

    def __init__(
        self,
        engine: LocalModel,
        *,
        model: str | None = None,
        lora: LoraScales | None = None,
        pooling: Pooling | None = None,
    ) -> None:
        self._engine = check_local_model(engine)
        self._lora = scales_of(self._engine, model, lora)
        self._pooling = pooling

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return the vector of each text."""
        if not texts:
            return []
        vectors: list[list[float]] = self._engine.embed(texts, lora=self._lora, pooling=self._pooling).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of one text."""
        return self.embed_documents([text])[0]
