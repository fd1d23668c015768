"""The two sides of the traffic benchmark, asked alike: one coroutine a request, which notes when each piece came."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from _llama_server import LlamaServer
    from _traffic_load import Asked

    from llamafu.engine import Engine


@dataclass
class Heard:
    """What one request's answer was, and when its pieces came (`time.perf_counter`)."""

    asked: float
    pieces: list[float] = field(default_factory=list)
    text: str = ""
    prompt_tokens: int = 0
    tokens: int = 0

    @property
    def first(self) -> float:
        """Seconds to the first piece."""
        return self.pieces[0] - self.asked

    @property
    def gaps(self) -> list[float]:
        """Seconds between one piece and the next."""
        return [later - sooner for sooner, later in zip(self.pieces, self.pieces[1:], strict=False)]


class Side(Protocol):
    """Who answers."""

    async def ask(self, asked: Asked) -> Heard:
        """Send one request and hear its whole answer."""


class EngineSide:
    """The engine, in this process; adapters are registered as "0", "1" and so on."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def ask(self, asked: Asked) -> Heard:
        """Stream one request."""
        heard = Heard(time.perf_counter())
        lora = {} if asked.adapter is None else {str(asked.adapter): 1.0}
        options = {"max_tokens": asked.tokens, "temperature": 0, "ignore_eos": True}
        async for piece in self._engine.astream(asked.prompt, lora=lora, **options):
            heard.pieces.append(time.perf_counter())
            heard.text += piece
        heard.prompt_tokens, heard.tokens = len(self._engine.tokenize(asked.prompt)), asked.tokens
        return heard


class ServerSide:
    """llama-server over one connection a request."""

    def __init__(self, server: LlamaServer, *, cache: bool) -> None:
        self._port = server.port
        self._cache = cache

    async def ask(self, asked: Asked) -> Heard:
        """Stream one request."""
        from _llama_server import request

        body = {**request(asked.prompt, asked.tokens, asked.adapter), "stream": True, "cache_prompt": self._cache}
        content = json.dumps(body).encode()
        heard = Heard(time.perf_counter())
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 22)
        try:
            head = (
                f"POST /completion HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n"
            )
            writer.write(head.encode() + content)
            status = await reader.readline()
            if b" 200 " not in status:
                message = f"llama-server answered {status!r} {(await reader.read(500))!r}"
                raise SystemExit(message)
            async for line in reader:
                if line.startswith(b"data: {"):
                    self._hear(heard, json.loads(line[6:]))
        finally:
            writer.close()
        return heard

    @staticmethod
    def _hear(heard: Heard, event: dict[str, Any]) -> None:
        if event.get("stop"):
            heard.prompt_tokens, heard.tokens = event["timings"]["prompt_n"], event["timings"]["predicted_n"]
        elif event["content"]:
            heard.pieces.append(time.perf_counter())
            heard.text += event["content"]
