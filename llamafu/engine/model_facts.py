"""What clients ask about a model: its sizes and its chat template."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from llamafu.generation.infill import InfillTokens

if TYPE_CHECKING:
    from llamafu._native.context import Context


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What does not change of an engine's model.

    context_length: most tokens of one request, its prompt and its answer together.
    trained_context_length: tokens of context that the model was trained with.
    vocabulary_size: number of its token ids.
    embedding_length: numbers in the vector of a token inside of it.
    parameter_count: number of its weights.
    size: bytes of its weights.
    chat_template: source of its own template (Jinja), None where it has none.
    bos_token, eos_token: how the tokens that begin and end a text are spelled, empty where there is none.
    infill_tokens: the tokens that mark the parts of a prompt for the middle of a text.
    """

    context_length: int
    trained_context_length: int
    vocabulary_size: int
    embedding_length: int
    parameter_count: int
    size: int
    chat_template: str | None
    bos_token: str = ""
    eos_token: str = ""
    infill_tokens: InfillTokens = field(default_factory=InfillTokens)

    @classmethod
    def of(cls, context: Context) -> Self:
        """Read them from a context and its model."""
        model = context.model
        return cls(
            context_length=context.longest,
            trained_context_length=model.n_ctx_train,
            vocabulary_size=model.n_vocab,
            embedding_length=model.n_embd,
            parameter_count=model.parameter_count,
            size=model.size,
            chat_template=model.chat_template(),
            bos_token=model.spelled(model.bos),
            eos_token=model.spelled(model.eos),
            infill_tokens=InfillTokens.of(model),
        )
