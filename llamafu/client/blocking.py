"""`TabbyClient`: calls that return when the answer is there."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Self, TypeVar

import httpx

from llamafu.client import calls
from llamafu.client.chunk_reader import ChunkReader
from llamafu.client.credentials import Credentials
from llamafu.client.http_protocol import HttpProtocol, tls
from llamafu.errors import ClosedError
from llamafu.service.errors import APIError
from llamafu.service.interface import LoraService

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence
    from types import TracebackType
    from typing import Unpack

    from llamafu.client.answers import Answer, Health, Mix, ModelCard
    from llamafu.client.call import Call
    from llamafu.client.options import ChatGenerationArguments, GenerationArguments
    from llamafu.service.cards import LoraList
    from llamafu.service.loading import LoraLoadRequest, LoraLoadResponse

_T = TypeVar("_T")


class TabbyClient:
    """Client of Llamafu's server and of TabbyAPI. Thread-safe; `close` it, or use it in a `with`.

    Every failure is an `APIError`; ValueError and TypeError are for arguments that are not legal.

    base_url: the server's address, with or without `/v1`.
    api_key: key for generating, sent as `X-Api-Key`; None sends none.
    admin_key: key for changing adapters, sent as `X-Admin-Key`, and as `X-Api-Key` where it is the only key.
    bearer_token: key sent as `Authorization: Bearer`.
    timeout: seconds for connecting and for each read, above 0; infinity for no limit. Each call can take its own.
    retries: further tries, 0 for none, of calls that may be repeated (all but `create` and `stream`), when the server
        cannot be reached, is busy (429) or is not ready (502 to 504).
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
        self._connection = connection = _Connection(protocol)
        self.lora = RemoteLoraService(connection)
        self.chat = Chat(connection)
        self.completions = Completions(connection)
        self.models = Models(connection)
        self.mixes = Mixes(connection)
        self.tokens = Tokens(connection)
        self.health = HealthReports(connection)
        self.auth = Auth(connection)

    def close(self) -> None:
        """Close all connections. Idempotent."""
        self._connection.http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        protocol = self._connection.protocol
        return f"TabbyClient({protocol.base_url!r}, {protocol.credentials!r})"


class ChunkStream:
    """Iterates over the chunks of an answer. The first `next` sends the request.

    Where it is not read to its end, `close` it or use it in a `with`, so that the server stops generating.
    """

    def __init__(self, connection: _Connection, call: Call[Answer], timeout: float | None) -> None:
        self._chunks = connection.chunks(call, timeout)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Answer:
        return next(self._chunks)

    def close(self) -> None:
        """End the request, so that the server stops generating. Idempotent."""
        self._chunks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class RemoteLoraService(LoraService):
    """The adapters of a server; changing them needs an admin key."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    def list(self, *, timeout: float | None = None) -> LoraList:
        """Return every adapter; with a plain api key the active ones only."""
        return self._connection.send(calls.lora_list(), timeout)

    def get_active(self, *, timeout: float | None = None) -> LoraList:
        """Return the adapters that a request without `lora` uses."""
        return self._connection.send(calls.lora_active(), timeout)

    def load(self, request: LoraLoadRequest, *, timeout: float | None = None) -> LoraLoadResponse:
        """Replace the active set in one step, see `LoraService.load`."""
        return self._connection.send(calls.lora_load(request), timeout)

    def unload(self, *, timeout: float | None = None) -> None:
        """Empty the active set."""
        self._connection.send(calls.lora_unload(), timeout)


class _Resource:
    """One group of the client's calls."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection


class Chat(_Resource):
    """Answers to messages."""

    def create(
        self, messages: Sequence[Mapping[str, Any]], *, timeout: float | None = None, **options: Unpack[ChatGenerationArguments]
    ) -> Answer:
        """Return the whole answer. Options: `llamafu.client.options`; an unknown one is a `TypeError`."""
        return self._connection.send(calls.chat(messages, options, stream=False), timeout)

    def stream(
        self, messages: Sequence[Mapping[str, Any]], *, timeout: float | None = None, **options: Unpack[ChatGenerationArguments]
    ) -> ChunkStream:
        """Return the answer in chunks, as they are made."""
        return ChunkStream(self._connection, calls.chat(messages, options, stream=True), timeout)


class Completions(_Resource):
    """Continuations of a prompt."""

    def create(self, prompt: str, *, timeout: float | None = None, **options: Unpack[GenerationArguments]) -> Answer:
        """Return the whole continuation. Options: `llamafu.client.options`; an unknown one is a `TypeError`."""
        return self._connection.send(calls.completion(prompt, options, stream=False), timeout)

    def stream(self, prompt: str, *, timeout: float | None = None, **options: Unpack[GenerationArguments]) -> ChunkStream:
        """Return the continuation in chunks, as they are made."""
        return ChunkStream(self._connection, calls.completion(prompt, options, stream=True), timeout)


class Models(_Resource):
    """Names that the option `model` takes."""

    def list(self, *, timeout: float | None = None) -> tuple[ModelCard, ...]:
        """Return the base model, and on Llamafu's server every adapter."""
        return self._connection.send(calls.models(), timeout)


class Mixes(_Resource):
    """Named mixes of adapters, on Llamafu's server: the options `model` and `lora` take their names."""

    def list(self, *, timeout: float | None = None) -> tuple[Mix, ...]:
        """Return every mix."""
        return self._connection.send(calls.mixes(), timeout)

    def add(self, name: str, lora: Mapping[str, float], *, overwrite: bool = False, timeout: float | None = None) -> Mix:
        """Keep a mix, {adapter name: scale}; needs an admin key. Another one of this name is replaced with `overwrite` only."""
        return self._connection.send(calls.add_mix(name, lora, overwrite=overwrite), timeout)

    def remove(self, name: str, *, timeout: float | None = None) -> None:
        """Delete a mix, its adapters stay; needs an admin key."""
        self._connection.send(calls.remove_mix(name), timeout)


class Tokens(_Resource):
    """The model's tokenizer."""

    def encode(
        self, text: str, *, add_bos_token: bool = True, encode_special_tokens: bool = True, timeout: float | None = None
    ) -> tuple[int, ...]:
        """Return the tokens of `text`."""
        call = calls.encode(text, add_bos_token=add_bos_token, encode_special_tokens=encode_special_tokens)
        return self._connection.send(call, timeout)

    def decode(self, tokens: Sequence[int], *, decode_special_tokens: bool = True, timeout: float | None = None) -> str:
        """Return the text of `tokens`."""
        return self._connection.send(calls.decode(tokens, decode_special_tokens=decode_special_tokens), timeout)


class HealthReports(_Resource):
    """The server's health."""

    def check(self, *, timeout: float | None = None) -> Health:
        """Return the server's health, also where it is bad. Needs no key."""
        return self._connection.send(calls.health(), timeout)


class Auth(_Resource):
    """Rights of the key."""

    def get_permission(self, *, timeout: float | None = None) -> str:
        """Return "admin" or "api"."""
        return self._connection.send(calls.permission(), timeout)


class _Connection:
    """Sends the requests of an `HttpProtocol` with httpx, and waits between tries."""

    def __init__(self, protocol: HttpProtocol) -> None:
        self.protocol = protocol
        self.http = httpx.Client(headers=protocol.headers(), follow_redirects=False, verify=tls())

    def send(self, call: Call[_T], timeout: float | None) -> _T:
        request = self.protocol.request(call, timeout)
        tries = 0
        while True:
            self._check_open()
            tries += 1
            try:
                with self.protocol.translated(call):
                    response = self.http.request(**request)
                return self.protocol.read(call, response)
            except APIError as error:
                pause = self.protocol.pause(call, tries, error)
                if pause is None:
                    raise
            time.sleep(pause)

    def chunks(self, call: Call[Answer], timeout: float | None) -> Generator[Answer]:
        request = self.protocol.request(call, timeout, stream=True)
        self._check_open()
        with self.protocol.translated(call), self.http.stream(**request) as response:
            if not response.is_success:
                response.read()
                raise self.protocol.refusal(call, response)
            self.protocol.demand_events(call, response)
            reader = ChunkReader(call, self.protocol.credentials.redact)
            for piece in response.iter_bytes():
                yield from reader.feed(piece)
                if reader.ended:
                    return
            yield from reader.finish()

    def _check_open(self) -> None:
        if self.http.is_closed:
            message = "this TabbyClient is closed; make a new one"
            raise ClosedError(message)
