"""A client for Llamafu's server and for TabbyAPI. It needs the extra `client`."""

import importlib.util

if importlib.util.find_spec("httpx") is None:
    _message = "llamafu.client needs httpx; install it: pip install 'llamafu[client]'"
    raise ModuleNotFoundError(_message, name="httpx")

from llamafu.client.answers import Answer, Choice, Health, Message, Mix, ModelCard
from llamafu.client.asynchronous import AsyncChunkStream, AsyncTabbyClient
from llamafu.client.blocking import ChunkStream, TabbyClient
from llamafu.service import (
    APIError,
    AuthenticationError,
    ContextLengthExceededError,
    InvalidRequestError,
    LoraCard,
    LoraList,
    LoraLoadInfo,
    LoraLoadRequest,
    LoraLoadResponse,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    ServerConnectionError,
    ServerError,
    ServerTimeoutError,
)

__all__ = [
    "APIError",
    "Answer",
    "AsyncChunkStream",
    "AsyncTabbyClient",
    "AuthenticationError",
    "Choice",
    "ChunkStream",
    "ContextLengthExceededError",
    "Health",
    "InvalidRequestError",
    "LoraCard",
    "LoraList",
    "LoraLoadInfo",
    "LoraLoadRequest",
    "LoraLoadResponse",
    "Message",
    "Mix",
    "ModelCard",
    "NotFoundError",
    "PermissionDeniedError",
    "RateLimitError",
    "ServerConnectionError",
    "ServerError",
    "ServerTimeoutError",
    "TabbyClient",
]
