"""A server for tests: uvicorn in a thread, over an engine that is a few lines of Python."""

import asyncio
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from unittest import mock

import numpy as np
import uvicorn

from llamafu.engine import ModelFacts, Request
from llamafu.engine.bank_contents import AdapterUse, BankContents
from llamafu.errors import ContextOverflowError, InvalidAdapterFileError, LoraNotFoundError, QueueFullError
from llamafu.generation.chat_options import split_options
from llamafu.generation.completion import AppliedLora, Completion, Timings, TokenLogprob, Usage
from llamafu.generation.ranking import RankedDocument, best_first
from llamafu.lora.mixes import NamedMixes
from llamafu.server import app as application
from llamafu.server.auth.keys import Guard, KeyRing
from llamafu.server.run import config_of
from llamafu.server.settings import Settings
from llamafu.server.storage import last_use

API, ADMIN = "my-api-key", "my-admin-key"


class FakePieces:
    """Says the words of `text`, one a step; `pace` seconds apart."""

    def __init__(self, engine, text, options):
        self.engine = engine
        self.words = text.split(" ") * (100_000 if engine.endless else 1)
        self.options = options
        self.said = []
        self.closed = False
        scales = engine._mixes.expand(options.get("lora", engine.active_lora_adapters))
        self.lora = tuple(AppliedLora(name, f"digest of {name}", scale, scale) for name, scale in scales.items() if scale)
        engine.running.add(self)

    def __aiter__(self):
        return self

    async def __anext__(self):
        limit = self.options.get("max_tokens", 128)
        if self.closed or len(self.said) >= (len(self.words) if limit < 0 else min(limit, len(self.words))):
            self.engine.running.discard(self)
            raise StopAsyncIteration
        await asyncio.sleep(self.engine.pace)
        word = self.words[len(self.said)]
        if word == "FAIL":
            message = "the engine failed"
            raise RuntimeError(message)
        self.said.append(word)
        return word if len(self.said) == 1 else f" {word}"

    @property
    def completion(self):
        found = None
        if self.options.get("logprobs") is not None:
            found = tuple(TokenLogprob(1, word, -0.5, ((1, word, -0.5),)) for word in self.said)
        reason = "cancelled" if self.closed else "stop" if len(self.said) == len(self.words) else "length"
        return Completion(
            " ".join(self.said), (1,) * len(self.said), reason, Usage(3, len(self.said), 2),
            Timings(0.1, 0.2), self.lora, found,
        )  # fmt: skip

    def cancel(self):
        self.closed = True

    async def aclose(self):
        self.closed = True
        self.engine.running.discard(self)


class FakeAdapter(type(Path())):
    """The path of an adapter, with what is told of it."""

    rank, digest = 8, ""


class FakeEngine:
    """Echoes prompts; with pirate applied it says Arrr first."""

    scale_range = (0.0, 1.0)
    model_facts = ModelFacts(1000, 2000, 300, 2, 600, 1200, "{{ messages }} {{ message.mood }}")

    def __init__(self):
        self.adapters = {}
        self._mixes = NamedMixes(self.scale_range)
        self.reset()

    def reset(self):
        """Forget everything but the adapters."""
        self.active_lora_adapters = {}
        self.running = set()
        self.asked = []
        self.pace = 0.0
        self.full = False
        self.endless = False

    def add_adapter(self, path, *, name=None):
        if Path(path).is_file() and Path(path).read_bytes().startswith(b"bad"):
            message = f"{path} is damaged"
            raise InvalidAdapterFileError(message)
        self._mixes.refuse_taken(name)
        self.adapters[name] = FakeAdapter(path)

    def remove_adapter(self, name):
        self._mixes.refuse_used(name)
        del self.adapters[name]
        self.active_lora_adapters = {each: s for each, s in self.active_lora_adapters.items() if each != name}

    def adapter_path(self, name):
        return self.adapters[name]

    def set_lora_adapters(self, scales, *, include_queued=False):
        scales = self._mixes.expand(scales)
        self._demand(scales)
        self.active_lora_adapters = scales

    def _demand(self, names):
        for name in names:
            if name not in self.adapters:
                message = f"no adapter {name!r}"
                raise LoraNotFoundError(message)

    @property
    def mixes(self):
        return self._mixes.all()

    def add_mix(self, name, scales, *, overwrite=False):
        checked = self._mixes.checked(name, scales)
        self._demand(checked)
        self._mixes.add(name, checked, overwrite=overwrite)

    def remove_mix(self, name):
        self._mixes.remove(name)

    def open_stream(self, request, loop=None):
        defaults = {field.name: field.default for field in fields(Request)}
        given = {name: getattr(request, name) for name in defaults}
        options = {
            name: value for name, value in given.items() if value != defaults[name] and name not in {"prompt", "timeout"}
        }
        self.asked.append((request.prompt, options))
        if not isinstance(request.prompt, str):
            return FakePieces(self, bytes(request.prompt).decode(), options)
        if self.full:
            message = "the queue is full"
            raise QueueFullError(message)
        if len(request.prompt) > 1000:
            message = "1001 tokens are more than the context of 1000"
            raise ContextOverflowError(message)
        pirate = self._mixes.expand(options.get("lora", self.active_lora_adapters)).get("pirate")
        return FakePieces(self, f"Arrr {request.prompt}" if pirate else request.prompt, options)

    def request_of_chat(self, messages, options):
        return Request(prompt=messages[-1]["content"], **split_options(options)[1])

    def prompt_of_chat(self, messages, options):
        return messages[-1]["content"]

    def token_bytes(self, tokens):
        return [bytes([token]) for token in tokens]

    def tokenize(self, text, *, add_special=True, parse_special=True):
        return ([1] if add_special else []) + list(text.encode())

    def detokenize(self, tokens, *, special=False):
        return bytes(tokens).decode("utf-8", "replace")

    def embed(self, text, *, lora=None):
        scales = self.active_lora_adapters if lora is None else lora
        return np.asarray([[len(tokens) - 1, 0.5 + sum(scales.values())] for tokens in text], dtype=np.float32)

    def rerank(self, query, documents, *, lora=None):
        scores = [float(len(set(query) & set(text))) for text in documents]
        return best_first([RankedDocument(i, score, 3) for i, score in enumerate(scores)])

    def stats(self):
        return FakeStats(len(self.running), {2: 5}, FakePercentiles(0.5))

    def bank_contents(self):
        return BankContents()

    def adapter_use(self):
        return AdapterUse()


@dataclass
class FakePercentiles:
    p50: float


@dataclass
class FakeStats:
    running: int
    batch_sizes: dict
    ttft: FakePercentiles
    queued: int = 0


@contextmanager
def serving(engine, **options):
    """Serve `engine` on the loopback and give the address."""
    settings = Settings(**{"model": "smol.gguf", "port": 0, "ping": 5.0, **options})
    guard = Guard(None if settings.no_auth else lambda: KeyRing([API], [ADMIN]))
    app = application.make_app(engine, settings, guard)
    server = uvicorn.Server(config_of(app, settings))
    thread = threading.Thread(target=server.run, daemon=True)
    with (
        tempfile.TemporaryDirectory() as data,
        mock.patch.object(last_use, "data_dir", return_value=Path(data)),
        mock.patch.object(application, "_LOOK", 0.03),  # the watcher reads it at every look
    ):
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive(), "the server did not start"
                time.sleep(0.005)
            yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)
