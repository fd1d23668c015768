"""`Llamafu`: one model, one context, and the adapters that act in it."""

from __future__ import annotations

import atexit
import os
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

from llamafu._native.context import FLASH_ATTENTION, ContextOptions
from llamafu._native.cpu import usable_cpus
from llamafu._native.graph.unused_targets import Prober
from llamafu._native.instance import Instance
from llamafu._native.library import open_library
from llamafu._util.arguments import check_whole
from llamafu.adapters.file import read_adapter
from llamafu.adapters.gguf.base_model import read_model
from llamafu.errors import MultimodalError
from llamafu.generation import chat_template as chat_module
from llamafu.generation.chat_options import ChatArguments, split_options, takes_chat_options
from llamafu.generation.options import OptionArguments, Options, takes_options
from llamafu.generation.pooling import choose_pooling, demand_one, pool, shaped
from llamafu.libraries.discovery import find
from llamafu.lora.handles import check_scale_range
from llamafu.model import state_file
from llamafu.model.adapters import LoraHost
from llamafu.model.context_lock import Turns
from llamafu.model.decode_loop import Desk, Generation, demand_continuing
from llamafu.model.embedding import SEQUENCES, batches_of, demand_room, embed_batch, longest_text, read_texts, together
from llamafu.model.prefix_cache import PrefixCache
from llamafu.model.stream import Stream
from llamafu.model.teacher_forcing import forced_logits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    import numpy as np

    from llamafu.generation.completion import Completion
    from llamafu.generation.options import LoraScales
    from llamafu.generation.pooling import Pooling
    from llamafu.model.embedding import Texts

_INT32_MAX = 2**31 - 1
_MOST_THREADS = 512
"""ggml's own limit; the OpenMP runtime ends the process when it cannot start as many as it was asked for."""
_PATIENCE = 10.0
"""Seconds that the end of the process waits for a step of a daemon thread."""


class Llamafu(LoraHost):
    """A GGUF model with one context, and LoRA adapters to load, apply, blend, scale and remove.

    Sizes are in tokens: `n_ctx` is the context, `n_batch` the largest batch of one computation. `n_threads` None
    takes every CPU of this process. `flash_attn` is "auto", "on" or "off"; `type_k` and `type_v` are the KV types
    by ggml name. Scales outside `scale_range` are an `InvalidScaleError`. `library` names a libllama to use
    (a file or a folder); one library serves a whole process. `embeddings` makes `embed` available; a model that reads texts as
    a whole (an encoder) takes batches of `n_ctx` tokens, or of what it was made for, whatever a smaller `n_batch` says.

    Every method may be called from any thread; generations take turns. Raises `ModelLoadError`,
    `LibraryNotFoundError`, `AbiMismatchError` or `ContextInitError`.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        n_ctx: int = 2048,
        n_batch: int = 512,
        n_threads: int | None = None,
        n_gpu_layers: int = 0,
        mmproj_path: str | os.PathLike[str] | None = None,
        flash_attn: str = "auto",
        type_k: str = "f16",
        type_v: str = "f16",
        scale_range: tuple[float, float] = (0.0, 1.0),
        library: str | os.PathLike[str] | None = None,
        embeddings: bool = False,
    ) -> None:
        check_whole("n_ctx", n_ctx, low=2, high=_INT32_MAX)
        check_whole("n_batch", n_batch, low=1, high=_INT32_MAX)
        n_threads = min(usable_cpus(), _MOST_THREADS) if n_threads is None else n_threads
        check_whole("n_threads", n_threads, low=1, high=_MOST_THREADS)
        check_whole("n_gpu_layers", n_gpu_layers, low=-1, high=_INT32_MAX)
        if flash_attn not in FLASH_ATTENTION:
            message = f"flash_attn={flash_attn!r} is none of {', '.join(map(repr, FLASH_ATTENTION))}"
            raise ValueError(message)
        if mmproj_path is not None:
            message = f"mmproj_path={os.fspath(mmproj_path)!r}: this version reads no projectors; leave it out for text"
            raise MultimodalError(message)
        scale_range = check_scale_range(scale_range)
        self.path = Path(model_path)
        base = read_model(self.path)
        proven = find(None if library is None else os.fspath(library))
        loaded = open_library(proven.path, proven.family, gpu=n_gpu_layers != 0)
        self._embeds = embeddings
        options = ContextOptions(
            n_ctx=n_ctx,
            n_batch=n_batch,
            n_threads=n_threads,
            n_seq_max=SEQUENCES if embeddings else 1,
            positions=base.positions,
            flash_attn=flash_attn,
            type_k=type_k,
            type_v=type_v,
            offload=n_gpu_layers != 0,
            unified=embeddings,
        )
        instance = Instance(
            loaded,
            self.path,
            options,
            reader=lambda path: read_adapter(path).content,
            n_gpu_layers=n_gpu_layers,
            frees_adapters=proven.frees_adapters is not False,
        )
        desk = Desk(instance, PrefixCache(instance.context), Turns())
        super().__init__(desk, base, Prober(instance.model), scale_range)
        # Holds the native parts and not self: it runs when self is collected, in the one safe order. Nobody can be
        # inside a method then; at exit a daemon thread can, so that end is `_close_all`'s.
        self._finalizer = weakref.finalize(self, _free, self._prober, instance)
        self._finalizer.atexit = False
        _open.add(self)

    # -- generating ----------------------------------------------------------------------------------------------

    @takes_options
    def complete(self, prompt: str, **options: Unpack[OptionArguments]) -> Completion:
        """Continue `prompt` and return the finished completion. The options are described at `Options`.

        Raises `ContextOverflowError` when the prompt does not fit, `DecodeError`, `InvalidScaleError`,
        `LoraNotFoundError`, `GrammarError`, ValueError and TypeError for bad options.
        """
        return self._run(self._start(prompt, Options.of(options)))

    @takes_options
    def stream(self, prompt: str, **options: Unpack[OptionArguments]) -> Stream:
        """Like `complete`, as an iterator of text pieces."""
        return Stream(self._start(prompt, Options.of(options)), self)

    @takes_chat_options
    def chat(self, messages: Sequence[Mapping[str, Any]], **options: Unpack[ChatArguments]) -> Completion:
        """Answer `messages`, OpenAI's ({"role", "content"} each), formatted by the model's own chat template.

        An assistant's message at the end is continued. The options are those of `ChatOptions` and of `Options`. Raises what
        `complete` raises, and `LlamafuError` where the template does not take the messages or has no place for tools.
        """
        return self._run(self._start_chat(messages, options))

    @takes_chat_options
    def stream_chat(self, messages: Sequence[Mapping[str, Any]], **options: Unpack[ChatArguments]) -> Stream:
        """Like `chat`, as an iterator of text pieces."""
        return Stream(self._start_chat(messages, options), self)

    def embed(
        self, text: Texts, *, pooling: Pooling | None = None, normalize: bool = True, lora: LoraScales | None = None
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return the vector of a text, or of its token ids, shape [n_embd]; of a list of either, shape [n, n_embd].

        `pooling` makes one vector of those of the tokens: None as the model says (the mean where it does not), "mean",
        "cls" (the first token's), "last"; with "none" one text's tokens keep their own, shape [n_tokens, n_embd].
        `normalize` makes vectors 1 long. `lora` as for `complete`. The model must have been opened with
        `embeddings=True`. Holds the context for a batch of texts at a time. Raises `ContextOverflowError` for a text that
        is too long, `UnsupportedError` for a model that ranks, `DecodeError`, `LoraNotFoundError`, `InvalidScaleError`,
        ValueError and TypeError for what is no text, or empty.
        """
        if not self._embeds:
            message = "embeddings are off; open the model with Llamafu(..., embeddings=True)"
            raise ValueError(message)
        chosen = choose_pooling(pooling, self._base.architecture, self._base.metadata)
        with self._sharing() as model:
            texts, is_one = read_texts(text, self.tokenize, model.n_vocab)
        demand_one(chosen, is_one=is_one)
        context = self._instance.context
        demand_room(texts, *longest_text(context))
        acting = self._lora_set(lora)
        sequences = context.n_seq_max if together(acting) else 1
        vectors = []
        for batch in batches_of(texts, tokens=context.n_batch, sequences=sequences):
            with self._between_steps(disturbs=True):
                vectors += [pool(rows, chosen, normalize=normalize) for rows in embed_batch(self._desk, batch, acting)]
        return shaped(vectors, is_one=is_one)

    def next_logits(
        self, prompt: Sequence[int], said: Sequence[int] = (), *, lora: LoraScales | None = None
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return the logits after the tokens `prompt`, and after each token of `said`, shape [1 + len(said), n_vocab].

        The adapters (`lora`, or the active set) act as in a generation that has this prompt and chooses these tokens, so
        a scale that is a function is asked for the steps 0 to len(said). Holds the context until it is done. Raises what
        `complete` raises.
        """
        with self._sharing() as model:
            largest = model.n_vocab - 1
        for token in (*prompt, *said):
            check_whole("a token", token, low=0, high=largest)
        chosen = self._lora_set(lora)
        with self._between_steps(disturbs=True):
            return forced_logits(self._desk, prompt, said, chosen)

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Return the token ids of `text`; `add_special` adds BOS where the model wants one."""
        with self._sharing() as model:
            return model.tokenize(text, add_special=add_special, parse_special=parse_special)

    @takes_chat_options
    def tokenize_chat(self, messages: Sequence[Mapping[str, Any]], **options: Unpack[ChatArguments]) -> list[int]:
        """Return the token ids of `messages` as `chat` with the same options formats them, up to where the answer begins."""
        chat, _ = split_options(options)
        with self._sharing() as model:
            return chat_module.tokenize(model, messages, chat)

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """Return the text of token ids; control tokens are spelled out when `special`."""
        with self._sharing() as model:
            return model.detokenize(tokens, special=special)

    # -- state and end -------------------------------------------------------------------------------------------

    def save_state(self, path: str | os.PathLike[str]) -> None:
        """Write the computed prompt state to a file, with the digests of the model and adapters that made it."""
        with self._between_steps():
            state_file.save(Path(path), self._desk, self.path)

    def load_state(self, path: str | os.PathLike[str]) -> int:
        """Take a saved state back and return its number of tokens; `StateFileError` if it is not this model's."""
        with self._between_steps(disturbs=True):
            return state_file.load(Path(path), self._desk, self.path)

    def close(self) -> None:
        """Free everything: waits for a running step, ends unfinished streams with `ClosedError`. Idempotent."""
        if self._instance.is_ours and not self._instance.closed and not self._desk.turns.halted:
            with self._desk.turns.end():
                self._finalizer()

    def _close_for_good(self) -> None:
        if self._instance.is_ours and not self._instance.closed and self._desk.turns.halt(_PATIENCE):
            self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Llamafu {self.path.name}{' (closed)' if self._instance.closed else ''}>"

    # -- helpers -------------------------------------------------------------------------------------------------

    def _start_chat(self, messages: Sequence[Mapping[str, Any]], options: ChatArguments) -> Generation:
        demand_continuing(self._instance.context)
        checked = Options.of(split_options(options)[1])
        return self._generation(self.tokenize_chat(messages, **options), checked)

    def _start(self, prompt: str, options: Options) -> Generation:
        if not isinstance(prompt, str):
            message = f"prompt is {type(prompt).__name__}, not str"
            raise TypeError(message)
        return self._generation(self.tokenize(prompt), options)

    def _generation(self, tokens: list[int], options: Options) -> Generation:
        if options.media:
            message = f"media has {len(options.media)} entries, but this model was opened without a projector"
            raise MultimodalError(message)
        lora = self._lora_set(options.lora)  # asks the caller's scale functions, so before anything is held
        with self._sharing():
            return Generation(self._desk, tokens, options, lora)

    @staticmethod
    def _run(generation: Generation) -> Completion:
        try:
            while generation.completion is None:
                generation.step()
        except BaseException:
            generation.abandon()
            raise
        return generation.completion


def _free(prober: Prober, instance: Instance) -> None:
    """Free the native parts of a `Llamafu`: probing context, context, adapters, model."""
    if instance.is_ours:
        prober.close()
    instance.close()


_open: weakref.WeakSet[Llamafu] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Free what is still open when the process ends, unless a daemon thread is stuck inside a step."""
    for llm in list(_open):
        llm._close_for_good()  # noqa: SLF001 - one module
