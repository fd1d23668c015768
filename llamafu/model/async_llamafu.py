"""`AsyncLlamafu`: the methods of `Llamafu`, awaited. The event loop is never blocked by the model."""

from __future__ import annotations

import asyncio
import functools
import inspect
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar, Unpack

from llamafu.errors import ClosedError
from llamafu.generation.chat_options import ChatArguments, takes_chat_options
from llamafu.generation.options import OptionArguments, takes_options
from llamafu.hub.reference import HubReference
from llamafu.model.llamafu import Llamafu

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    import numpy as np

    from llamafu.adapters.compatibility import CompatibilityReport
    from llamafu.generation.completion import Completion
    from llamafu.generation.embedding_input import Texts
    from llamafu.generation.pooling import Pooling
    from llamafu.generation.ranking import RankedDocument
    from llamafu.lora.handles import LoraAdapter
    from llamafu.lora.scales import LoraScales
    from llamafu.model.open_arguments import OpenArguments
    from llamafu.model.stream import Stream

_P = ParamSpec("_P")
_R = TypeVar("_R")
_WORKERS = 4
_GENERATING = 64  # threads are started on demand; most only wait for the context


class AsyncStream:
    """An asynchronous iterator of text pieces; cancelling the task that reads it ends the generation at the next token."""

    def __init__(self, owner: AsyncLlamafu, stream: Stream) -> None:
        self._owner = owner
        self._stream = stream

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        piece = await self._owner._cancellable(self._stream, lambda: next(self._stream, None))  # noqa: SLF001 - one module
        if piece is None:
            raise StopAsyncIteration
        return piece

    @property
    def completion(self) -> Completion:
        """The finished completion; `LlamafuError` while the stream still runs."""
        return self._stream.completion

    async def aclose(self) -> None:
        """End the generation now, after its running step. Idempotent."""
        self._stream.cancel()
        await self._owner._end(self._stream)  # noqa: SLF001 - one module


class AsyncLlamafu:
    """An asynchronous `Llamafu`: same arguments, same methods, each awaited; use it with `async with`.

    The model is loaded by the first awaited call, in a worker thread. Cancelling a task that generates stops the
    generation at its next token. For one event loop at a time.
    """

    def __init__(self, model_path: str | os.PathLike[str], **arguments: Unpack[OpenArguments]) -> None:
        inspect.signature(Llamafu).bind(model_path, **arguments)  # TypeError for an unknown argument, before the first call
        self._open = functools.partial(Llamafu, model_path, **arguments)
        # Two pools: loading and closing must not queue behind generations.
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="llamafu")
        self._generating = ThreadPoolExecutor(_GENERATING, thread_name_prefix="llamafu-generating")
        self._opening: asyncio.Future[Llamafu] | None = None
        self._closed = False

    @classmethod
    def from_pretrained(cls, reference: str, **arguments: Unpack[OpenArguments]) -> Self:
        """Return one for a model of the Hugging Face hub, see `Llamafu.from_pretrained`; the first awaited call fetches it."""
        return cls(str(HubReference.with_or_without_prefix(reference)), **arguments)

    async def _model(self) -> Llamafu:
        self._check_open()
        if self._opening is None:
            self._opening = asyncio.get_running_loop().run_in_executor(self._pool, self._open)
            self._opening.add_done_callback(_look_at)
        return await asyncio.shield(self._opening)

    def _check_open(self) -> None:
        if self._closed:
            message = "this AsyncLlamafu is closed; open a new one"
            raise ClosedError(message)

    async def _call(self, function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        self._check_open()  # again, after awaiting the model: a closed pool accepts no work
        return await asyncio.get_running_loop().run_in_executor(self._pool, functools.partial(function, *args, **kwargs))

    async def _cancellable(self, stream: Stream, function: Callable[[], _R]) -> _R:
        """Run `function`, which steps `stream`; when the task is cancelled, end the stream after its running step."""
        self._check_open()
        future = asyncio.get_running_loop().run_in_executor(self._generating, function)
        future.add_done_callback(_look_at)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            stream.cancel()
            future.add_done_callback(lambda _: stream.close())
            raise

    async def _end(self, stream: Stream) -> None:
        """Close `stream` without blocking the event loop."""
        if self._closed:
            stream.close()
        else:
            await self._call(stream.close)

    async def load_lora_adapter(
        self, path: str | os.PathLike[str], *, name: str | None = None, drop: Sequence[str] = ()
    ) -> LoraAdapter:
        """Check and load an adapter file, see `Llamafu.load_lora_adapter`."""
        llm = await self._model()
        return await self._call(llm.load_lora_adapter, path, name=name, drop=drop)

    async def apply_lora_adapter(self, adapter: LoraAdapter | str, scale: float = 1.0) -> None:
        """Put an adapter into the active set."""
        (await self._model()).apply_lora_adapter(adapter, scale)

    async def set_lora_adapters(self, scales: Mapping[LoraAdapter | str, float]) -> None:
        """Replace the whole active set."""
        (await self._model()).set_lora_adapters(scales)

    async def remove_lora_adapter(self, adapter: LoraAdapter | str) -> None:
        """Take an adapter out of the active set."""
        (await self._model()).remove_lora_adapter(adapter)

    async def clear_all_lora_adapters(self) -> None:
        """Empty the active set."""
        (await self._model()).clear_all_lora_adapters()

    async def unload_lora_adapter(self, adapter: LoraAdapter | str) -> None:
        """Take an adapter out of the active set and free it."""
        llm = await self._model()
        await self._call(llm.unload_lora_adapter, adapter)

    @asynccontextmanager
    async def using(self, scales: Mapping[LoraAdapter | str, float]) -> AsyncIterator[Self]:
        """Set the active adapters for an `async with` block."""
        with (await self._model()).using(scales):
            yield self

    @property
    def lora_adapters(self) -> tuple[LoraAdapter, ...]:
        """Every loaded adapter; none before the model is loaded."""
        return self._loaded.lora_adapters if self._loaded else ()

    async def add_mix(self, name: str, scales: Mapping[LoraAdapter | str, float], *, overwrite: bool = False) -> None:
        """Give a set of loaded adapters with scales a name, see `Llamafu.add_mix`."""
        (await self._model()).add_mix(name, scales, overwrite=overwrite)

    async def remove_mix(self, name: str) -> None:
        """Forget a mix."""
        (await self._model()).remove_mix(name)

    @property
    def mixes(self) -> dict[str, dict[str, float]]:
        """Every mix by name: scale by adapter."""
        return self._loaded.mixes if self._loaded else {}

    @property
    def active_lora_adapters(self) -> dict[str, float]:
        """The active set as {name: scale}."""
        return self._loaded.active_lora_adapters if self._loaded else {}

    async def validate_lora_compatibility(self, path: str | os.PathLike[str]) -> CompatibilityReport:
        """Report everything that keeps an adapter file from working with this model."""
        llm = await self._model()
        return await self._call(llm.validate_lora_compatibility, path)

    @takes_options
    async def complete(self, prompt: str, **options: Unpack[OptionArguments]) -> Completion:
        """Continue `prompt`, see `Llamafu.complete`."""
        return await self._finish(await self._call((await self._model()).stream, prompt, **options))

    @takes_options
    async def stream(self, prompt: str, **options: Unpack[OptionArguments]) -> AsyncStream:
        """Like `complete`: awaited, it returns an asynchronous iterator of text pieces."""
        return AsyncStream(self, await self._call((await self._model()).stream, prompt, **options))

    @takes_chat_options
    async def chat(self, messages: Sequence[Mapping[str, Any]], **options: Unpack[ChatArguments]) -> Completion:
        """Answer `messages`, see `Llamafu.chat`."""
        return await self._finish(await self._call((await self._model()).stream_chat, messages, **options))

    @takes_chat_options
    async def stream_chat(self, messages: Sequence[Mapping[str, Any]], **options: Unpack[ChatArguments]) -> AsyncStream:
        """Like `chat`: awaited, it returns an asynchronous iterator of text pieces."""
        return AsyncStream(self, await self._call((await self._model()).stream_chat, messages, **options))

    async def embed(
        self, text: Texts, *, pooling: Pooling | None = None, normalize: bool = True, lora: LoraScales | None = None
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return the vector of a text, or of each in a list, see `Llamafu.embed`."""
        llm = await self._model()
        return await self._call(llm.embed, text, pooling=pooling, normalize=normalize, lora=lora)

    async def rerank(
        self, query: str, documents: Sequence[str], *, top_n: int | None = None, lora: LoraScales | None = None
    ) -> list[RankedDocument]:
        """Return documents by how well they answer a query, see `Llamafu.rerank`."""
        return await self._call((await self._model()).rerank, query, documents, top_n=top_n, lora=lora)

    async def next_logits(
        self,
        prompt: Sequence[int] | str,
        said: Sequence[int] = (),
        *,
        lora: LoraScales | None = None,
        media: Sequence[object] = (),
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return the logits after `prompt` and after each token of `said`, see `Llamafu.next_logits`."""
        return await self._call((await self._model()).next_logits, prompt, said, lora=lora, media=media)

    async def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Return the token ids of `text`."""
        return await self._call((await self._model()).tokenize, text, add_special=add_special, parse_special=parse_special)

    @takes_chat_options
    async def tokenize_chat(self, messages: Sequence[Mapping[str, Any]], **options: Unpack[ChatArguments]) -> list[int]:
        """Return the token ids of `messages` as `chat` with the same options formats them."""
        llm = await self._model()
        return await self._call(llm.tokenize_chat, messages, **options)

    async def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """Return the text of token ids."""
        return await self._call((await self._model()).detokenize, tokens, special=special)

    async def save_state(self, path: str | os.PathLike[str]) -> None:
        """Write the KV memory of the computed prompt to a file."""
        llm = await self._model()
        await self._call(llm.save_state, path)

    async def load_state(self, path: str | os.PathLike[str]) -> int:
        """Restore a saved state and return its number of tokens."""
        llm = await self._model()
        return await self._call(llm.load_state, path)

    async def close(self) -> None:
        """Free everything, after the running step; what still generates ends with `ClosedError`. Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._opening is not None and not self._opening.done():
                await asyncio.wait([self._opening])
            if (llm := self._loaded) is not None:
                await asyncio.get_running_loop().run_in_executor(self._pool, llm.close)
        finally:
            self._generating.shutdown(wait=False)
            self._pool.shutdown(wait=False)

    async def __aenter__(self) -> Self:
        await self._model()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    @property
    def _loaded(self) -> Llamafu | None:
        done = self._opening is not None and self._opening.done() and self._opening.exception() is None
        return self._opening.result() if done and self._opening is not None else None

    async def _finish(self, stream: Stream) -> Completion:
        def run() -> Completion:
            for _piece in stream:
                pass
            return stream.completion

        return await self._cancellable(stream, run)


def _look_at(done: asyncio.Future[Any]) -> None:
    """Retrieve the error of a future whose awaiter may be gone; asyncio would log it as never retrieved."""
    if not done.cancelled():
        done.exception()
