"""What is known of a route: its path, who may call it, its models, its handler. App, OpenAPI and tests read it from here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from llamafu.server.http.endpoint import JSON
from llamafu.server.http.error_body import OPENAI_ERRORS

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import BaseModel

    from llamafu.server.auth.keys import Rights
    from llamafu.server.http.endpoint import Handler
    from llamafu.server.http.error_body import ErrorForm
    from llamafu.server.routes.adapter_info import AdapterInfoRoute
    from llamafu.server.routes.adapters import AdapterRoutes
    from llamafu.server.routes.embeddings import EmbeddingRoutes
    from llamafu.server.routes.generation import GenerationRoutes
    from llamafu.server.routes.llama_server import LlamaServerRoutes
    from llamafu.server.routes.messages import MessageRoutes
    from llamafu.server.routes.mixer_page import MixerPage
    from llamafu.server.routes.mixes import MixRoutes
    from llamafu.server.routes.models_and_tokens import ModelAndTokenRoutes
    from llamafu.server.routes.monitoring import MonitoringRoutes
    from llamafu.server.routes.tokenizing import TokenizingRoutes
    from llamafu.server.routes.upload import UploadRoute
    from llamafu.server.schemas.base import Answer, RequestBody

FORM, TEXT, EVENTS = "multipart/form-data", "text/plain", "text/event-stream"
_Body = TypeVar("_Body", bound="RequestBody | None")


@dataclass(frozen=True, slots=True)
class Handlers:
    """The handlers of one server, by subject."""

    page: MixerPage
    monitoring: MonitoringRoutes
    models: ModelAndTokenRoutes
    generation: GenerationRoutes
    messages: MessageRoutes
    llama_server: LlamaServerRoutes
    tokenizing: TokenizingRoutes
    embeddings: EmbeddingRoutes
    adapters: AdapterRoutes
    mixes: MixRoutes
    upload: UploadRoute
    info: AdapterInfoRoute


@dataclass(frozen=True, slots=True)
class Route(Generic[_Body]):
    """One route of the server.

    Args:
        method: GET, POST or DELETE.
        paths: every spelling of its path, the variable parts in braces.
        needed: which key it takes, None for none.
        handler: returns the bound handler, given the handlers of one server.
        summary: one sentence for the OpenAPI document.
        body: model of the JSON body, which is read before the handler is called; None where there is no body.
        form: model of a multipart form, which the handler reads itself.
        answer: model of the JSON answer; None where it is of another type.
        answer_types: media types of the answer.
        chunk: model of the events, where the answer may be a stream of them instead.
        last_event: the event that ends such a stream.
        errors: in which form errors are told.
        refusals: statuses of errors that do not follow from the key and the body.

    """

    method: str
    paths: tuple[str, ...]
    needed: Rights | None
    handler: Callable[[Handlers], Handler[_Body]]
    summary: str
    body: type[_Body] | None = None
    form: type[BaseModel] | None = None
    answer: type[Answer] | None = None
    answer_types: tuple[str, ...] = (JSON,)
    chunk: type[Answer] | None = None
    last_event: str = "[DONE]"
    errors: ErrorForm = OPENAI_ERRORS
    refusals: tuple[int, ...] = ()
