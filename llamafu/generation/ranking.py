"""Documents ranked by a query: each pair as the token ids of one text, and its score."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from llamafu.errors import UnsupportedError
from llamafu.generation.pooling import own_pooling, pooling_key

if TYPE_CHECKING:
    import numpy as np

    from llamafu._native.model import Model
    from llamafu.adapters.gguf.base_model import BaseModel
    from llamafu.generation.classifier_head import ClassifierHead

_TEMPLATE = "tokenizer.chat_template.rerank"
"""Metadata key of a text that shows how query and document are put, with `{query}` and `{document}` in it."""
_MODEL, _PRE = "tokenizer.ggml.model", "tokenizer.ggml.pre"
_ADDS_EOS, _ADDS_SEP, _SEP = (
    *("tokenizer.ggml.add_eos_token", "tokenizer.ggml.add_sep_token", "tokenizer.ggml.seperator_token_id"),
)
_WORD_PIECE, _UNIGRAM = "bert", "t5"
_WITH_SEPARATOR = frozenset({"jina-v1-en", "jina-v2-code", "roberta-bpe"})
"""Pre-tokenizers that come with a separator where the file does not say."""
_WORD_PIECE_SEPARATOR = 102


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """A document's place in the list that was given, the model's score of it, and the tokens of query and document.

    Scores of most models are logits of any size; they compare documents of one query.
    """

    index: int
    score: float
    tokens: int


@dataclass(frozen=True, slots=True)
class RankingInput:
    """A query with documents, each pair as token ids, and what makes a score of the vectors of a pair."""

    texts: list[list[int]]
    head: ClassifierHead
    reads_whole: bool
    top_n: int

    @classmethod
    def read(
        cls,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None,
        head: ClassifierHead | None,
        base: BaseModel,
        model: Model,
    ) -> Self:
        """Read what was given to `rerank`. Raises TypeError, ValueError and `UnsupportedError`."""
        if head is None:
            raise _no_reranker(base)
        if isinstance(documents, str | bytes) or not isinstance(documents, Sequence):
            message = f"documents is {type(documents).__name__}; give a list of texts"
            raise TypeError(message)
        if not documents:
            message = "documents is empty; give at least one text"
            raise ValueError(message)
        if top_n is not None and (isinstance(top_n, bool) or not isinstance(top_n, int) or top_n < 1):
            message = f"top_n is {top_n!r:.60}; give a whole number of at least 1, or None for all"
            raise ValueError(message)
        for name, text in (("query", query), *((f"documents[{i}]", each) for i, each in enumerate(documents))):
            if not isinstance(text, str):
                message = f"{name} is {type(text).__name__}; give a text"
                raise TypeError(message)
            if not text.strip():
                message = f"{name} is {'blank' if text else 'empty'}; give some text"
                raise ValueError(message)
        pairs = _Pairs(model, base, query)
        return cls([pairs.tokens(each) for each in documents], head, model.reads_whole, top_n or len(documents))

    def pooled(self, rows: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Make the score of one pair of the vectors of its tokens, shape [1]; `DecodeError`."""
        import numpy as np

        return np.asarray([self.head.score(rows, reads_whole=self.reads_whole)], np.float32)

    def shaped(self, vectors: Sequence[np.ndarray[Any, np.dtype[np.float32]]]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return the scores of all pairs, shape [n]."""
        import numpy as np

        return np.concatenate(vectors)

    def ranked(self, scores: np.ndarray[Any, np.dtype[np.float32]]) -> list[RankedDocument]:
        """Return the best documents, the best one first; those of one score in their order."""
        found = [RankedDocument(i, float(score), len(self.texts[i])) for i, score in enumerate(scores)]
        return best_first(found)[: self.top_n]


def best_first(documents: Sequence[RankedDocument]) -> list[RankedDocument]:
    """Return documents by their scores, those of one score in their order."""
    return sorted(documents, key=lambda document: (-document.score, document.index))


class _Pairs:
    """Puts documents behind one query, as llama-server does: by the model's own template, or with the vocabulary's marks."""

    def __init__(self, model: Model, base: BaseModel, query: str) -> None:
        self._model = model
        self._query = query
        template = base.metadata.get(_TEMPLATE)
        self._template = template if isinstance(template, str) else None
        self._head: list[int] = []
        self._tail: list[int] = []
        if self._template is None:
            metadata = base.metadata
            kind, is_word_piece = metadata.get(_MODEL), metadata.get(_MODEL) == _WORD_PIECE
            separator = metadata.get(_SEP, _WORD_PIECE_SEPARATOR if is_word_piece else -1)
            end = model.eos if model.eos >= 0 else int(separator)
            ends = [end] if metadata.get(_ADDS_EOS, kind == _UNIGRAM) and end >= 0 else []
            separates = metadata.get(_ADDS_SEP, is_word_piece or metadata.get(_PRE) in _WITH_SEPARATOR)
            begin = [model.bos] if model.adds_bos and model.bos >= 0 else []
            self._head = [*begin, *self._plain(query), *ends, *([int(separator)] if separates and int(separator) >= 0 else [])]
            self._tail = ends

    def tokens(self, document: str) -> list[int]:
        """Return the token ids of the query with a document."""
        if self._template is None:
            return [*self._head, *self._plain(document), *self._tail]
        given = {"{query}": self._query, "{document}": document}
        text = re.sub(r"\{query\}|\{document\}", lambda found: given[found[0]], self._template)
        return self._model.tokenize(text, add_special=False, parse_special=True)

    def _plain(self, text: str) -> list[int]:
        return self._model.tokenize(text, add_special=False, parse_special=False)


def _no_reranker(base: BaseModel) -> UnsupportedError:
    key = pooling_key(base.architecture)
    told = f"{key} is {base.metadata.get(key, 'not there')}"
    if own_pooling(base.architecture, base.metadata) == "rank":
        message = f"this model is said to rank ({told}), but its file has no head to do it with (cls.output.weight)"
    else:
        message = (
            f"this model does not rank ({told}): it gives no scores for pairs of texts; use a reranker, whose file says 4 "
            "(rank) and holds a classifier head, such as bge-reranker-v2-m3 or Qwen3-Reranker, or compare vectors of embed"
        )
    return UnsupportedError(message)
