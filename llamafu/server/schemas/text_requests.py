"""Request bodies of the routes for tokens, embeddings and ranking."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from llamafu.server.schemas.adapter_choice import LoraChoice
from llamafu.server.schemas.base import SmallBody
from llamafu.server.schemas.content import AnyTokens, Documents, TextOrMessages, TextsToEmbed
from llamafu.server.schemas.field_types import Flag, Legal, Name
from llamafu.server.schemas.unsupported_fields import OTHER_CHOICES, Unsupported


class EncodeRequest(SmallBody):
    """`POST /v1/token/encode`: a text, or the messages of a chat."""

    without_effect: ClassVar[frozenset[str]] = frozenset({"decode_special_tokens", "model"})

    text: TextOrMessages
    add_bos_token: Flag = True
    encode_special_tokens: Flag = True

    def contradictions(self) -> list[str]:
        """Return that a chat was given together with a say about special tokens."""
        if isinstance(self.text, str) or (self.add_bos_token and self.encode_special_tokens):
            return []
        return ["text is a chat, whose template says which special tokens it has; leave out add_bos_token: false"]


class DecodeRequest(SmallBody):
    """`POST /v1/token/decode`."""

    without_effect: ClassVar[frozenset[str]] = frozenset({"add_bos_token", "encode_special_tokens", "model"})

    tokens: AnyTokens
    decode_special_tokens: Flag = True


class EmbeddingRequest(SmallBody):
    """`POST /v1/embeddings`: OpenAI's, with `lora`."""

    without_effect: ClassVar[frozenset[str]] = frozenset({"user"})
    unsupported: ClassVar[Mapping[str, Unsupported]] = OTHER_CHOICES

    input: TextsToEmbed
    encoding_format: Annotated[Literal["float", "base64"], Legal("'float' or 'base64'")] = "float"
    model: str | None = None
    lora: LoraChoice = None
    dimensions: Annotated[int, Field(ge=1), Legal("a whole number of at least 1")] | None = None


class RerankRequest(SmallBody):
    """`POST /v1/rerank`: Jina's, Cohere's and vLLM's, with `lora`."""

    without_effect: ClassVar[frozenset[str]] = frozenset({"user", "priority"})
    unsupported: ClassVar[Mapping[str, Unsupported]] = {
        **OTHER_CHOICES,
        "max_tokens_per_doc": Unsupported((), "documents are read whole or refused; shorten them before they are sent"),
        "truncate_prompt_tokens": Unsupported((-1,), "documents are read whole or refused; shorten them before they are sent"),
    }

    query: Name
    documents: Documents
    top_n: Annotated[int, Field(ge=1), Legal("a whole number of at least 1")] | None = None
    return_documents: Flag = False
    model: str | None = None
    lora: LoraChoice = None
