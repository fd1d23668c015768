"""`Engine`: many requests at once, each with adapters of its own."""

from __future__ import annotations

import asyncio
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any, Self, Unpack, cast

from llamafu._native.device_options import DeviceArguments, DeviceOptions, takes_device_options
from llamafu.adapters.gguf.base_model import read_model
from llamafu.engine.adapter_host import EngineAdapterHost
from llamafu.engine.adapter_manager import AdapterManager, demand_usable
from llamafu.engine.bank_contents import AdapterUse
from llamafu.engine.embedder import Embedder
from llamafu.engine.engine_options import EngineOptions
from llamafu.engine.model_facts import ModelFacts
from llamafu.engine.registry import AdapterRegistry
from llamafu.engine.runtime import EngineRuntime
from llamafu.engine.scheduler import Scheduler
from llamafu.engine.stats import EngineStats
from llamafu.engine.submission import Submission, request_of
from llamafu.engine.worker import Worker
from llamafu.generation.chat_options import takes_chat_options
from llamafu.generation.options import takes_options
from llamafu.lora.scales import check_scale_range

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence

    import numpy as np

    from llamafu.engine.async_stream import AsyncRequestStream
    from llamafu.engine.engine_options import BankDtype, Kernel
    from llamafu.engine.request import Request
    from llamafu.engine.request_handle import Event, RequestHandle
    from llamafu.generation.chat_options import ChatArguments
    from llamafu.generation.completion import Completion
    from llamafu.generation.embedding_input import Texts
    from llamafu.generation.options import OptionArguments
    from llamafu.generation.pooling import Pooling
    from llamafu.generation.ranking import RankedDocument
    from llamafu.lora.scales import LoraScales


class Engine(EngineAdapterHost):
    """One base model that answers many requests at once, each with its own adapters and scales, in one batch.

    - `model_path`: the base model's GGUF file, or `hf:owner/repo:Q4_K_M`. `FileNotFoundError`, `ModelLoadError`, `HubError`.
    - `adapters_dir`: a folder whose GGUF adapters, PEFT folders and mixes (`NAME.mix.json`) are registered. Default none.
      `NotADirectoryError`, `LoraError`.
    - `max_sequences`: requests that run at the same time, from 1 to `n_batch`. Default 16.
    - `max_queue`: requests that may wait beside them, at least 1; one more is a `QueueFullError`. Default 256.
    - `bank_rank`: rank units of the bank: the most that the ranks of all adapters in use at once may add up to. Default 128; 0
      is no bank. `ContextInitError` when it takes more than half of this machine's memory.
    - `bank_dtype`: type of the weights in the bank, "f16" (default) or "f32".
    - `kernel`: what multiplies by the bank. "compiled": numba, of the extra `fast` (`ContextInitError` without it); "python":
      operations of ggml; "device": plain products on whatever computes a layer, the only one for GPUs; "none": a decode call
      for each distinct set of adapters; "auto" (default): the fastest there is.
    - `n_ctx`: tokens of KV memory, shared by all sequences, at least 2. Default 8192. `ContextInitError` when they do not fit.
    - `n_batch`: the most tokens of one decode call, at least 64. Default 512.
    - `target_itl_ms`: milliseconds between two tokens of an answer that others' prompts may fill, above 0. Default 250.
    - `prompt_lookup_num_tokens`: the default of the option, from 0 (default) to 64. It pays where answers copy their prompts.
    - `n_threads`: CPU threads, from 1 to 512. Default: one for each CPU that this process may use.
    - `flash_attn`: "auto" (default), "on" or "off".
    - `type_k`, `type_v`: types of keys and values in the KV memory, by ggml's name. Default "f16". `ContextInitError`.
    - `scale_range`: least and largest legal scale. Default (0.0, 1.0); a scale outside of it is an `InvalidScaleError`.
    - `library`: a libllama, file or folder. Default: `llamafu lib list`'s first. `LibraryNotFoundError`, `AbiMismatchError`.
    - `mmproj_path`: the model's projector, as for `Llamafu`. Default none.
    - `devices`: which devices compute, and where memory lies: the options of `DeviceOptions`, such as `n_gpu_layers`.

    What is not legal is a ValueError where no other error is named. Any thread may call any method. While an engine has work,
    Python's switch interval is shorter (see `llamafu.engine.switch_interval`).
    """

    @takes_device_options
    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        adapters_dir: str | os.PathLike[str] | None = None,
        max_sequences: int = 16,
        max_queue: int = 256,
        bank_rank: int = 128,
        bank_dtype: BankDtype = "f16",
        kernel: Kernel = "auto",
        n_ctx: int = 8192,
        n_batch: int = 512,
        target_itl_ms: float = 250.0,
        prompt_lookup_num_tokens: int = 0,
        n_threads: int | None = None,
        flash_attn: str = "auto",
        type_k: str = "f16",
        type_v: str = "f16",
        scale_range: tuple[float, float] = (0.0, 1.0),
        library: str | os.PathLike[str] | None = None,
        mmproj_path: str | os.PathLike[str] | None = None,
        **devices: Unpack[DeviceArguments],
    ) -> None:
        options = EngineOptions(
            max_sequences=max_sequences,
            max_queue=max_queue,
            bank_rank=bank_rank,
            bank_dtype=bank_dtype,
            kernel=kernel,
            n_ctx=n_ctx,
            n_batch=n_batch,
            target_itl_ms=target_itl_ms,
            prompt_lookup_num_tokens=prompt_lookup_num_tokens,
            n_threads=n_threads,
            flash_attn=flash_attn,
            type_k=type_k,
            type_v=type_v,
            devices=DeviceOptions.of(devices, Engine.__init__),
        )
        self.scale_range = check_scale_range(scale_range)
        # None of the parts refers to the engine: it is freed as soon as nobody else does.
        self._runtime = EngineRuntime(read_model(model_path), options, library, mmproj_path)
        self.path = self._runtime.base.path
        self.model_facts = ModelFacts.of(self._runtime.instance.context)
        self._scheduler = Scheduler(self._runtime, options)
        self._registry = AdapterRegistry(self._runtime.base, partial(demand_usable, self._runtime))
        self._worker = Worker(self._scheduler, max_sequences=options.max_sequences, max_queue=options.max_queue)
        self._adapters = AdapterManager(self._registry, self._runtime, self._worker, self.scale_range)
        self._submission = Submission(self._runtime, self._worker, self._adapters, options)
        self._embedder = Embedder(self._runtime, self._worker, self._adapters)
        self._finalizer = weakref.finalize(self, _stop, self._worker, self._registry)
        try:
            self._adapters.add_folder(adapters_dir)
        except BaseException:
            self.close()
            raise

    @takes_options
    def complete(self, prompt: str, **options: Unpack[OptionArguments]) -> Completion:
        """Continue `prompt` and return the finished completion. `llamafu.generation.options.Options` describes the options.

        Blocks. Raises `QueueFullError`, `ContextOverflowError`, `LoraNotFoundError`, `InvalidScaleError`, `GrammarError`,
        `DecodeError`, `ClosedError`; `LoraError` when the bank can never hold the adapters together; ValueError and
        TypeError for bad options.
        """
        return self.submit(request_of(prompt, options)).result()

    @takes_chat_options
    def chat(self, messages: Sequence[Mapping[str, Any]], **options: Unpack[ChatArguments]) -> Completion:
        """Answer `messages`, OpenAI's, formatted by the model's own chat template; an assistant's at the end is continued.

        The options are those of `ChatOptions` and of `Options`. Blocks. Raises what `complete` raises, and `LlamafuError`
        where the template does not take the messages or has no place for tools.
        """
        return self.submit(self._submission.chat_request(messages, options)).result()

    def complete_many(self, requests: Iterable[Request]) -> list[Completion]:
        """Answer several requests at once, each with its own adapters and options; raises the first error. Blocks."""
        return self._submission.complete_many(requests)

    @takes_options
    def stream(self, prompt: str, **options: Unpack[OptionArguments]) -> Iterator[str]:
        """Like `complete`, as pieces of text; leaving the iterator early cancels the request."""
        return self._pieces(self.submit(request_of(prompt, options)))

    @takes_chat_options
    def stream_chat(self, messages: Sequence[Mapping[str, Any]], **options: Unpack[ChatArguments]) -> Iterator[str]:
        """Like `chat`, as pieces of text."""
        return self._pieces(self.submit(self._submission.chat_request(messages, options)))

    @takes_options
    async def acomplete(self, prompt: str, **options: Unpack[OptionArguments]) -> Completion:
        """Like `complete`, awaited; cancelling the task cancels the request."""
        return await self._submission.complete(lambda: request_of(prompt, options))

    @takes_chat_options
    async def achat(self, messages: Sequence[Mapping[str, Any]], **options: Unpack[ChatArguments]) -> Completion:
        """Like `chat`, awaited."""
        return await self._submission.complete(lambda: self._submission.chat_request(messages, options))

    @takes_options
    async def astream(self, prompt: str, **options: Unpack[OptionArguments]) -> AsyncIterator[str]:
        """Like `stream`, in an event loop."""
        async for event in self._submission.events(lambda: request_of(prompt, options)):
            if isinstance(event, str):
                yield event

    @takes_chat_options
    async def astream_chat(self, messages: Sequence[Mapping[str, Any]], **options: Unpack[ChatArguments]) -> AsyncIterator[str]:
        """Like `stream_chat`, in an event loop."""
        async for event in self._submission.events(lambda: self._submission.chat_request(messages, options)):
            if isinstance(event, str):
                yield event

    def submit(self, request: Request, listener: Callable[[Event], None] | None = None) -> RequestHandle:
        """Queue a request, and return the handle that its pieces and its completion are got from.

        `listener`, if given, is called with each of them instead, on the engine's thread: it must return at once.
        """
        return self._submission.submit(request, listener)

    def open_stream(self, request: Request, loop: asyncio.AbstractEventLoop | None = None) -> AsyncRequestStream:
        """Queue a request, and return its pieces for `loop`, or for the running one; raises what `complete` raises."""
        return self._submission.open_stream(request, asyncio.get_running_loop() if loop is None else loop)

    async def events(self, request: Request) -> AsyncIterator[str | Completion]:
        """Yield pieces of text as they come, then the completion; leaving early cancels the request."""
        async for event in self._submission.events(lambda: request):
            yield event

    def request_of_chat(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> Request:
        """Make a request of chat messages and the options of `chat` by name."""
        return self._submission.chat_request(messages, cast("ChatArguments", dict(options)))

    def prompt_of_chat(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
        """Return the text that the chat template makes of messages, given the options of `chat` by name."""
        return self._submission.chat_prompt(messages, cast("ChatArguments", dict(options)))

    def _pieces(self, handle: RequestHandle) -> Iterator[str]:  # a method: the iterator keeps its engine alive
        yield from self._submission.pieces(handle)

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Return the token ids of `text`; `add_special` adds BOS where the model wants one."""
        self._worker.demand_open()
        with self._runtime.sharing() as model:
            return model.tokenize(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """Return the text of token ids; control tokens are spelled out when `special`."""
        self._worker.demand_open()
        with self._runtime.sharing() as model:
            return model.detokenize(tokens, special=special)

    def token_bytes(self, tokens: Sequence[int]) -> list[bytes]:
        """Return the bytes of each token, of control tokens what they are called; `TokenizeError`."""
        self._worker.demand_open()
        with self._runtime.sharing() as model:
            return [model.token_bytes(model.checked(token), special=True) for token in tokens]

    def embed(
        self,
        text: Texts,
        *,
        pooling: Pooling | None = None,
        normalize: bool = True,
        lora: LoraScales | Mapping[str, float] | None = None,
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return the vector of a text or of its token ids, shape [n_embd]; of a list of either, shape [n, n_embd].

        `pooling` and `normalize` as for `Llamafu.embed`; `lora` None is the active set. Texts are computed together, as
        many as one batch takes, between two steps of what runs. Blocks. Raises `ContextOverflowError` for a text that one
        batch does not take, `QueueFullError` while running requests leave no memory, and what `Llamafu.embed` raises.
        """
        return self._embedder.embed(text, pooling=pooling, normalize=normalize, lora=lora)

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        lora: LoraScales | Mapping[str, float] | None = None,
    ) -> list[RankedDocument]:
        """Return documents by how well they answer a query, see `Llamafu.rerank`; computed and refused as by `embed`."""
        return self._embedder.rerank(query, documents, top_n=top_n, lora=lora)

    def stats(self) -> EngineStats:
        """Return what happened so far, in numbers."""
        return EngineStats.of(self._scheduler, queued=self._worker.queued)

    def adapter_use(self) -> AdapterUse:
        """Return which adapters the requests of now use."""
        return AdapterUse.of(self._scheduler.pool)

    def forget_times(self) -> None:
        """Take the percentiles of `stats` from what happens from now on only; the counts go on."""
        self._worker.call(lambda scheduler: scheduler.recorder.forget_times())

    def close(self) -> None:
        """End every request with `ClosedError` and free everything. Idempotent."""
        if self._runtime.instance.is_ours:
            self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Engine {self.path.name}{' (closed)' if self._worker.closed else ''}>"


def _stop(worker: Worker, registry: AdapterRegistry) -> None:
    worker.stop()
    registry.close()
