"""Services that list, load and unload LoRA adapters: of an engine in this process, or over HTTP (`llamafu.client`)."""

from llamafu.service.cards import LoraCard, LoraList
from llamafu.service.errors import (
    APIError,
    AuthenticationError,
    ContextLengthExceededError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    ServerConnectionError,
    ServerError,
    ServerTimeoutError,
)
from llamafu.service.interface import AsyncLoraService, LoraService
from llamafu.service.loading import LoraLoadInfo, LoraLoadRequest, LoraLoadResponse
from llamafu.service.local import AdapterEngine, LocalLoraService

__all__ = [
    "APIError",
    "AdapterEngine",
    "AsyncLoraService",
    "AuthenticationError",
    "ContextLengthExceededError",
    "InvalidRequestError",
    "LocalLoraService",
    "LoraCard",
    "LoraList",
    "LoraLoadInfo",
    "LoraLoadRequest",
    "LoraLoadResponse",
    "LoraService",
    "NotFoundError",
    "PermissionDeniedError",
    "RateLimitError",
    "ServerConnectionError",
    "ServerError",
    "ServerTimeoutError",
]
