"""Models of everything that the server answers. OpenAPI's schemas are theirs.

Answers that are written often, those of `responses.py`, are plain dicts; their models only describe them, and the tests
validate what is written against them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, RootModel

from llamafu.server.schemas.base import Answer, sometimes
from llamafu.server.schemas.field_types import Count, UnixTime
from llamafu.service.errors import KINDS

OPENAI_TYPES = {
    "invalid_request": "invalid_request_error",
    "context_length_exceeded": "invalid_request_error",
    "not_found": "not_found_error",
}
"""What OpenAI's servers call a code, where that is another word."""
_ERROR_TYPES = sorted({OPENAI_TYPES.get(code, code) for code in KINDS})
_LastUse = Annotated[float | None, Field(description="Unix time in seconds; null when no use is known")]


class ErrorObject(Answer):
    """OpenAI's error object."""

    message: str
    type: Annotated[str, Field(json_schema_extra={"enum": list(_ERROR_TYPES)})]
    param: Annotated[str | None, Field(description="path of the request's field that is at fault, where it is one")]
    code: Annotated[str, Field(json_schema_extra={"enum": sorted(KINDS)})]


class ErrorAnswer(Answer):
    """Every error: OpenAI's object, TabbyAPI's `detail`, go-tabbyapi's `message`."""

    error: ErrorObject
    detail: str
    message: str


class HealthAnswer(Answer):
    """Whether the server is up."""

    status: Literal["healthy"]
    issues: list[Any]


class PermissionAnswer(Answer):
    """What the key of the request allows."""

    permission: Literal["admin", "api"]


class ModelMeta(Answer):
    """llama-server's facts of a model."""

    n_vocab: Annotated[Count, Field(description="token ids")]
    n_ctx_train: Annotated[Count, Field(description="tokens of context that it was trained with")]
    n_embd: Annotated[Count, Field(description="numbers in the vector of a token")]
    n_params: Annotated[Count, Field(description="weights")]
    size: Annotated[Count, Field(description="bytes of the weights")]


_MixedAdapters = Annotated[dict[str, float], Field(description="scale by adapter")]


class ModelAnswer(Answer):
    """The base model, or an adapter or a mix, whose `parent` is the base model. `meta` is the base model's, `lora` a mix's."""

    object: Literal["model"]
    owned_by: str
    id: str
    created: UnixTime
    max_model_len: Annotated[Count, Field(description="most tokens of one request, prompt and answer together")]
    parent: str = sometimes()
    lora: _MixedAdapters = sometimes()
    meta: ModelMeta = sometimes()


class ModelsAnswer(Answer):
    """The base model, every adapter and every mix."""

    object: Literal["list"]
    data: list[ModelAnswer]


class LoraCardAnswer(Answer):
    """One adapter; an active one has a `scaling`. The last three are for an admin key."""

    id: str
    object: Literal["lora"]
    created: UnixTime
    owned_by: str
    scaling: float = sometimes()
    size: Annotated[Count, Field(description="bytes on the disk")] = sometimes()
    last_used: _LastUse = sometimes()
    digest: Annotated[str, Field(description="SHA-256 of the content")] = sometimes()


class LoraListAnswer(Answer):
    """Several adapters."""

    object: Literal["list"]
    data: list[LoraCardAnswer]


class MixAnswer(Answer):
    """A mix of adapters that goes by a name."""

    id: str
    object: Literal["mix"]
    created: UnixTime
    owned_by: str
    lora: _MixedAdapters


class MixesAnswer(Answer):
    """Every mix."""

    object: Literal["list"]
    data: list[MixAnswer]


class LoraLoadAnswer(Answer):
    """Names of adapters that are active now, and of those that were not found."""

    success: list[str]
    failure: list[str]


class NormAnswer(Answer):
    """Norms of one module's change at scale 1."""

    frobenius: float
    spectral: float


_NormTable = Annotated[list[list[float | None]], Field(description="[layer][module]")]


class NormsAnswer(Answer):
    """Norms of an adapter's change, module by module."""

    layers: list[Count]
    modules: list[str]
    frobenius: _NormTable
    spectral: _NormTable
    others: Annotated[dict[str, NormAnswer], Field(description="modules outside the layers")]


class LoraInfoAnswer(Answer):
    """What an adapter is, and where it changes the model. `last_used` is for an admin key."""

    id: str
    object: Literal["lora.info"]
    scaling: Annotated[float | None, Field(description="in the active set; null when it is not there")]
    digest: str
    architecture: str
    base_model: str | None
    rank: Count
    uniform: bool
    alpha: float
    targets: list[str]
    layers: list[Count]
    parameters: Count
    bytes: Count
    dtype: str
    invocation_tokens: list[Count]
    norms: NormsAnswer
    last_used: _LastUse = sometimes()


class DocumentAnswer(RootModel[dict[str, Any]], Answer):
    """An OpenAPI document."""


class NothingAnswer(Answer):
    """An empty object."""


class DeletedAnswer(Answer):
    """The adapter or the mix that was deleted."""

    id: str
    object: Literal["lora", "mix"]
    deleted: Literal[True]


class NumberedAdapter(Answer):
    """An adapter in llama-server's list; its `path` is its name here."""

    id: Count
    path: str
    scale: float


class NumberedAnswer(RootModel[list[NumberedAdapter]], Answer):
    """llama-server's list of adapters."""


class SuccessAnswer(Answer):
    """llama-server's answer to new scales."""

    success: Literal[True]


class TokensAnswer(Answer):
    """Token ids."""

    tokens: list[int]
    length: Count


class TextAnswer(Answer):
    """A text."""

    text: str
