"""`AsyncTabbyClient`: the client for programs on asyncio."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self, TypeVar

import httpx

from llamafu.client import calls
from llamafu.client.core import ChunkReader, Core, tls
from llamafu.client.credentials import Credentials
from llamafu.errors import ClosedError
from llamafu.service.errors import APIError
from llamafu.service.interface import AsyncLoraService

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence
    from types import TracebackType
    from typing import Unpack

    from llamafu.client.answers import Answer, Health, ModelCard
    from llamafu.client.call import Call
    from llamafu.client.options import ChatArguments, GenerationArguments
    from llamafu.service.cards import LoraList
    from llamafu.service.loading import LoraLoadRequest, LoraLoadResponse

_T = TypeVar("_T")


class AsyncTabbyClient:
    """`TabbyClient`, awaited: `close` it, or use it in an `async with`; any number of tasks of one event loop may use one.

    The arguments are those of `TabbyClient`. Cancelling a task ends its request; the server then stops generating.
    """

    def __init__(
        self,
        base_url: str = "http://localhost:8080",
        *,
        api_key: str | None = None,
        admin_key: str | None = None,
        bearer_token: str | None = None,
        timeout: float = 30.0,
        retries: int = 2,
    ) -> None:
        core = Core(base_url, Credentials(api_key, admin_key, bearer_token), timeout, retries)
        self._connection = connection = _Connection(core)
        self.lora = AsyncRemoteLoraService(connection)
        self.chat = Chat(connection)
        self.completions = Completions(connection)
        self.models = Models(connection)
        self.tokens = Tokens(connection)
        self.health = HealthReports(connection)
        self.auth = Auth(connection)

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        await self._connection.http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        core = self._connection.core
        return f"AsyncTabbyClient({core.base_url!r}, {core.credentials!r})"


class AsyncChunkStream:
    """Iterates over the chunks of an answer. The request is sent when the first one is asked for.

    `close` it, or use it in an `async with`, if it is not read to its end: the server then stops generating.
    """

    def __init__(self, connection: _Connection, call: Call[Answer], timeout: float | None) -> None:
        self._chunks = connection.chunks(call, timeout)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Answer:
        return await anext(self._chunks)

    async def close(self) -> None:
        """Give the rest up. Idempotent."""
        await self._chunks.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class AsyncRemoteLoraService(AsyncLoraService):
    """The adapters of a server; changing them takes an admin key."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    async def list(self, *, timeout: float | None = None) -> LoraList:
        """Return every adapter; with a plain api key the active ones alone."""
        return await self._connection.send(calls.lora_list(), timeout)

    async def get_active(self, *, timeout: float | None = None) -> LoraList:
        """Return the adapters that act when a request names none."""
        return await self._connection.send(calls.lora_active(), timeout)

    async def load(self, request: LoraLoadRequest, *, timeout: float | None = None) -> LoraLoadResponse:
        """Replace the active set in one step, see `LoraService.load`."""
        return await self._connection.send(calls.lora_load(request), timeout)

    async def unload(self, *, timeout: float | None = None) -> None:
        """Empty the active set."""
        await self._connection.send(calls.lora_unload(), timeout)


class Chat:
    """Answers to messages."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    async def create(
        self, messages: Sequence[Mapping[str, Any]], *, timeout: float | None = None, **options: Unpack[ChatArguments]
    ) -> Answer:
        """Return the whole answer. Options: `llamafu.client.options`; an unknown one is a `TypeError`."""
        return await self._connection.send(calls.chat(messages, options, stream=False), timeout)

    def stream(
        self, messages: Sequence[Mapping[str, Any]], *, timeout: float | None = None, **options: Unpack[ChatArguments]
    ) -> AsyncChunkStream:
        """Return the answer in chunks, as they are made."""
        return AsyncChunkStream(self._connection, calls.chat(messages, options, stream=True), timeout)


class Completions:
    """Continuations of a prompt."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    async def create(self, prompt: str, *, timeout: float | None = None, **options: Unpack[GenerationArguments]) -> Answer:
        """Return the whole continuation. Options: `llamafu.client.options`; an unknown one is a `TypeError`."""
        return await self._connection.send(calls.completion(prompt, options, stream=False), timeout)

    def stream(self, prompt: str, *, timeout: float | None = None, **options: Unpack[GenerationArguments]) -> AsyncChunkStream:
        """Return the continuation in chunks, as they are made."""
        return AsyncChunkStream(self._connection, calls.completion(prompt, options, stream=True), timeout)


class Models:
    """What may be named as `model`."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    async def list(self, *, timeout: float | None = None) -> tuple[ModelCard, ...]:
        """Return the base model, and on Llamafu's server every adapter."""
        return await self._connection.send(calls.models(), timeout)


class Tokens:
    """The model's tokenizer."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    async def encode(
        self, text: str, *, add_bos_token: bool = True, encode_special_tokens: bool = True, timeout: float | None = None
    ) -> tuple[int, ...]:
        """Return the tokens of `text`."""
        call = calls.encode(text, add_bos_token=add_bos_token, encode_special_tokens=encode_special_tokens)
        return await self._connection.send(call, timeout)

    async def decode(self, tokens: Sequence[int], *, decode_special_tokens: bool = True, timeout: float | None = None) -> str:
        """Return the text of `tokens`."""
        return await self._connection.send(calls.decode(tokens, decode_special_tokens=decode_special_tokens), timeout)


class HealthReports:
    """The server's health."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    async def check(self, *, timeout: float | None = None) -> Health:
        """Return how the server feels, a bad state included; it takes no key."""
        return await self._connection.send(calls.health(), timeout)


class Auth:
    """The key's rights."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    async def get_permission(self, *, timeout: float | None = None) -> str:
        """Return "admin" or "api"."""
        return await self._connection.send(calls.permission(), timeout)


class _Connection:
    """Moves bytes for a `Core`, and waits."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.http = httpx.AsyncClient(headers=core.headers(), follow_redirects=False, verify=tls())

    async def send(self, call: Call[_T], timeout: float | None) -> _T:
        request = self.core.request(call, timeout)
        tries = 0
        while True:
            self._check_open()
            tries += 1
            try:
                with self.core.translated(call):
                    response = await self.http.request(**request)
                return self.core.read(call, response)
            except APIError as error:
                pause = self.core.pause(call, tries, error)
                if pause is None:
                    raise
            await asyncio.sleep(pause)

    async def chunks(self, call: Call[Answer], timeout: float | None) -> AsyncGenerator[Answer]:
        request = self.core.request(call, timeout, stream=True)
        self._check_open()
        with self.core.translated(call):
            async with self.http.stream(**request) as response:
                if not response.is_success:
                    await response.aread()
                    raise self.core.refusal(call, response)
                self.core.demand_events(call, response)
                reader = ChunkReader(self.core, call)
                async for piece in response.aiter_bytes():
                    for chunk in reader.feed(piece):
                        yield chunk
                    if reader.ended:
                        return
                for chunk in reader.finish():
                    yield chunk

    def _check_open(self) -> None:
        if self.http.is_closed:
            message = "this AsyncTabbyClient is closed; make a new one"
            raise ClosedError(message)
