"""`AsyncTabbyClient`: calls that are awaited, for asyncio."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self, TypeVar

import httpx

from llamafu.client import calls
from llamafu.client.chunk_reader import ChunkReader
from llamafu.client.credentials import Credentials
from llamafu.client.http_protocol import HttpProtocol, tls
from llamafu.errors import ClosedError
from llamafu.service.errors import APIError
from llamafu.service.interface import AsyncLoraService

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence
    from types import TracebackType
    from typing import Unpack

    from llamafu.client.answers import Answer, Health, Mix, ModelCard
    from llamafu.client.call import Call
    from llamafu.client.options import ChatGenerationArguments, GenerationArguments
    from llamafu.service.cards import LoraList
    from llamafu.service.loading import LoraLoadRequest, LoraLoadResponse

_T = TypeVar("_T")


class AsyncTabbyClient:
    """`TabbyClient` with awaited calls, for the tasks of one event loop; `close` it, or use it in an `async with`.

    The arguments are those of `TabbyClient`. Cancelling a task ends its request, so that the server stops generating.
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
        protocol = HttpProtocol(base_url, Credentials(api_key, admin_key, bearer_token), timeout, retries)
        self._connection = connection = _AsyncConnection(protocol)
        self.lora = AsyncRemoteLoraService(connection)
        self.chat = AsyncChat(connection)
        self.completions = AsyncCompletions(connection)
        self.models = AsyncModels(connection)
        self.mixes = AsyncMixes(connection)
        self.tokens = AsyncTokens(connection)
        self.health = AsyncHealthReports(connection)
        self.auth = AsyncAuth(connection)

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
        protocol = self._connection.protocol
        return f"AsyncTabbyClient({protocol.base_url!r}, {protocol.credentials!r})"


class AsyncChunkStream:
    """Iterates over the chunks of an answer. The first `anext` sends the request.

    Where it is not read to its end, `close` it or use it in an `async with`, so that the server stops generating.
    """

    def __init__(self, connection: _AsyncConnection, call: Call[Answer], timeout: float | None) -> None:
        self._chunks = connection.chunks(call, timeout)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Answer:
        return await anext(self._chunks)

    async def close(self) -> None:
        """End the request, so that the server stops generating. Idempotent."""
        await self._chunks.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class AsyncRemoteLoraService(AsyncLoraService):
    """The adapters of a server; changing them needs an admin key."""

    def __init__(self, connection: _AsyncConnection) -> None:
        self._connection = connection

    async def list(self, *, timeout: float | None = None) -> LoraList:
        """Return every adapter; with a plain api key the active ones only."""
        return await self._connection.send(calls.lora_list(), timeout)

    async def get_active(self, *, timeout: float | None = None) -> LoraList:
        """Return the adapters that a request without `lora` uses."""
        return await self._connection.send(calls.lora_active(), timeout)

    async def load(self, request: LoraLoadRequest, *, timeout: float | None = None) -> LoraLoadResponse:
        """Replace the active set in one step, see `LoraService.load`."""
        return await self._connection.send(calls.lora_load(request), timeout)

    async def unload(self, *, timeout: float | None = None) -> None:
        """Empty the active set."""
        await self._connection.send(calls.lora_unload(), timeout)


class _AsyncResource:
    """One group of the client's calls."""

    def __init__(self, connection: _AsyncConnection) -> None:
        self._connection = connection


class AsyncChat(_AsyncResource):
    """Answers to messages."""

    async def create(
        self, messages: Sequence[Mapping[str, Any]], *, timeout: float | None = None, **options: Unpack[ChatGenerationArguments]
    ) -> Answer:
        """Return the whole answer. Options: `llamafu.client.options`; an unknown one is a `TypeError`."""
        return await self._connection.send(calls.chat(messages, options, stream=False), timeout)

    def stream(
        self, messages: Sequence[Mapping[str, Any]], *, timeout: float | None = None, **options: Unpack[ChatGenerationArguments]
    ) -> AsyncChunkStream:
        """Return the answer in chunks, as they are made."""
        return AsyncChunkStream(self._connection, calls.chat(messages, options, stream=True), timeout)


class AsyncCompletions(_AsyncResource):
    """Continuations of a prompt."""

    async def create(self, prompt: str, *, timeout: float | None = None, **options: Unpack[GenerationArguments]) -> Answer:
        """Return the whole continuation. Options: `llamafu.client.options`; an unknown one is a `TypeError`."""
        return await self._connection.send(calls.completion(prompt, options, stream=False), timeout)

    def stream(self, prompt: str, *, timeout: float | None = None, **options: Unpack[GenerationArguments]) -> AsyncChunkStream:
        """Return the continuation in chunks, as they are made."""
        return AsyncChunkStream(self._connection, calls.completion(prompt, options, stream=True), timeout)


class AsyncModels(_AsyncResource):
    """Names that the option `model` takes."""

    async def list(self, *, timeout: float | None = None) -> tuple[ModelCard, ...]:
        """Return the base model, and on Llamafu's server every adapter."""
        return await self._connection.send(calls.models(), timeout)


class AsyncMixes(_AsyncResource):
    """Named mixes of adapters, on Llamafu's server: the options `model` and `lora` take their names."""

    async def list(self, *, timeout: float | None = None) -> tuple[Mix, ...]:
        """Return every mix."""
        return await self._connection.send(calls.mixes(), timeout)

    async def add(self, name: str, lora: Mapping[str, float], *, overwrite: bool = False, timeout: float | None = None) -> Mix:
        """Keep a mix, {adapter name: scale}; needs an admin key. Another one of this name is replaced with `overwrite` only."""
        return await self._connection.send(calls.add_mix(name, lora, overwrite=overwrite), timeout)

    async def remove(self, name: str, *, timeout: float | None = None) -> None:
        """Delete a mix, its adapters stay; needs an admin key."""
        await self._connection.send(calls.remove_mix(name), timeout)


class AsyncTokens(_AsyncResource):
    """The model's tokenizer."""

    async def encode(
        self, text: str, *, add_bos_token: bool = True, encode_special_tokens: bool = True, timeout: float | None = None
    ) -> tuple[int, ...]:
        """Return the tokens of `text`."""
        call = calls.encode(text, add_bos_token=add_bos_token, encode_special_tokens=encode_special_tokens)
        return await self._connection.send(call, timeout)

    async def decode(self, tokens: Sequence[int], *, decode_special_tokens: bool = True, timeout: float | None = None) -> str:
        """Return the text of `tokens`."""
        return await self._connection.send(calls.decode(tokens, decode_special_tokens=decode_special_tokens), timeout)


class AsyncHealthReports(_AsyncResource):
    """The server's health."""

    async def check(self, *, timeout: float | None = None) -> Health:
        """Return the server's health, also where it is bad. Needs no key."""
        return await self._connection.send(calls.health(), timeout)


class AsyncAuth(_AsyncResource):
    """Rights of the key."""

    async def get_permission(self, *, timeout: float | None = None) -> str:
        """Return "admin" or "api"."""
        return await self._connection.send(calls.permission(), timeout)


class _AsyncConnection:
    """Sends the requests of an `HttpProtocol` with httpx, and waits between tries."""

    def __init__(self, protocol: HttpProtocol) -> None:
        self.protocol = protocol
        self.http = httpx.AsyncClient(headers=protocol.headers(), follow_redirects=False, verify=tls())

    async def send(self, call: Call[_T], timeout: float | None) -> _T:
        request = self.protocol.request(call, timeout)
        tries = 0
        while True:
            self._check_open()
            tries += 1
            try:
                with self.protocol.translated(call):
                    response = await self.http.request(**request)
                return self.protocol.read(call, response)
            except APIError as error:
                pause = self.protocol.pause(call, tries, error)
                if pause is None:
                    raise
            await asyncio.sleep(pause)

    async def chunks(self, call: Call[Answer], timeout: float | None) -> AsyncGenerator[Answer]:
        request = self.protocol.request(call, timeout, stream=True)
        self._check_open()
        with self.protocol.translated(call):
            async with self.http.stream(**request) as response:
                if not response.is_success:
                    await response.aread()
                    raise self.protocol.refusal(call, response)
                self.protocol.demand_events(call, response)
                reader = ChunkReader(call, self.protocol.credentials.redact)
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
