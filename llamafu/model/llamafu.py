"""`Llamafu`: one model, one context, and the adapters that act in it."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

from llamafu._native.context_options import FLASH_ATTENTION, MOST_THREADS, ContextOptions
from llamafu._native.cpu import usable_cpus
from llamafu._native.device_options import DeviceArguments, DeviceOptions, takes_device_options
from llamafu._util.arguments import check_whole
from llamafu.generation import chat_template
from llamafu.generation.chat_options import ChatArguments, split_options, takes_chat_options
from llamafu.generation.chat_turn import prepare
from llamafu.generation.embedding_input import EmbeddingInput, check_text_lengths, longest_text
from llamafu.generation.media.prompt import MediaPrompt, prompt_with_media
from llamafu.generation.options import OptionArguments, Options, takes_options
from llamafu.generation.prompt import demand_continuing
from llamafu.generation.ranking import RankingInput
from llamafu.hub.reference import HubReference
from llamafu.lora.scales import check_scale_range
from llamafu.model import state_file
from llamafu.model.adapter_host import ModelAdapterHost
from llamafu.model.adapters import ModelAdapters
from llamafu.model.decode_loop import Generation
from llamafu.model.embedding import SEQUENCES, embed
from llamafu.model.session import open_session
from llamafu.model.stream import Stream
from llamafu.model.teacher_forcing import forced_logits

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    import numpy as np

    from llamafu.generation.completion import Completion
    from llamafu.generation.embedding_input import TextInput, Texts
    from llamafu.generation.pooling import Pooling
    from llamafu.generation.ranking import RankedDocument
    from llamafu.generation.tools.answer_format import AnswerFormat
    from llamafu.lora.scales import LoraScales
    from llamafu.model.open_arguments import OpenArguments

_INT32_MAX = 2**31 - 1


class Llamafu(ModelAdapterHost):
    """A GGUF model with one context, and LoRA adapters to load, apply, blend, scale and remove.

    - `model_path`: the GGUF file; of a split model, its first part; or `hf:owner/repo:Q4_K_M`, a model of the Hugging Face
      hub. `FileNotFoundError`, `ModelLoadError`, `HubError`.
    - `n_ctx`: tokens that the context holds, prompt and answer together, at least 2. Default 2048. `ContextInitError`.
    - `n_batch`: the most tokens of one decode call, at least 1. Default 512. A model that reads texts as a whole (an encoder)
      takes `n_ctx`, or what it was made for, where that is larger.
    - `n_threads`: CPU threads, from 1 to 512. Default: one for each CPU that this process may use.
    - `mmproj_path`: the model's projector (mmproj file), which lets it take images or sounds. Default none. `ModelLoadError`;
      `MultimodalError` where the libllama comes without libmtmd.
    - `flash_attn`: "auto" (default), "on" or "off".
    - `type_k`, `type_v`: types of keys and values in the KV memory, by ggml's name. Default "f16". `ContextInitError`.
    - `scale_range`: least and largest legal scale. Default (0.0, 1.0); a scale outside of it is an `InvalidScaleError`.
    - `library`: a libllama, file or folder; one serves a whole process. Default: `llamafu lib list`'s first.
      `LibraryNotFoundError`, `AbiMismatchError`.
    - `embeddings`: whether `embed` and `rerank` are available. Default False.
    - `devices`: which devices compute, and where memory lies: the options of `DeviceOptions`, such as `n_gpu_layers`.

    What is not legal is a ValueError where no other error is named. Any thread may call any method; generations take turns.
    """

    @takes_device_options
    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        n_ctx: int = 2048,
        n_batch: int = 512,
        n_threads: int | None = None,
        mmproj_path: str | os.PathLike[str] | None = None,
        flash_attn: str = "auto",
        type_k: str = "f16",
        type_v: str = "f16",
        scale_range: tuple[float, float] = (0.0, 1.0),
        library: str | os.PathLike[str] | None = None,
        embeddings: bool = False,
        **devices: Unpack[DeviceArguments],
    ) -> None:
        n_ctx = check_whole("n_ctx", n_ctx, low=2, high=_INT32_MAX)
        n_batch = check_whole("n_batch", n_batch, low=1, high=_INT32_MAX)
        threads = min(usable_cpus(), MOST_THREADS) if n_threads is None else n_threads
        n_threads = check_whole("n_threads", threads, low=1, high=MOST_THREADS)
        placing = DeviceOptions.of(devices, Llamafu.__init__)
        if flash_attn not in FLASH_ATTENTION:
            message = f"flash_attn={flash_attn!r} is none of {', '.join(map(repr, FLASH_ATTENTION))}"
            raise ValueError(message)
        self.scale_range = check_scale_range(scale_range)
        self._embeds = embeddings
        options = ContextOptions(
            n_ctx=n_ctx,
            n_batch=n_batch,
            n_threads=n_threads,
            n_seq_max=SEQUENCES if embeddings else 1,
            flash_attn=flash_attn,
            type_k=type_k,
            type_v=type_v,
            offload_kqv=placing.offload_kqv,
            n_ubatch=placing.n_ubatch,
            unified=embeddings if placing.kv_unified is None else placing.kv_unified,
        )
        self._session = session = open_session(model_path, options, placing, library=library, projector=mmproj_path)
        self.path = session.base.path
        self._adapters = ModelAdapters(session, self.scale_range)
        # Freed when nothing refers to the adapters' owner any more: a running call of this object does, and so does a
        # running call of a handle. The end of the process is the session's own business, since daemon threads may run.
        weakref.finalize(self._adapters, session.free).atexit = False

    @classmethod
    def from_pretrained(cls, reference: str, **options: Unpack[OpenArguments]) -> Self:
        """Open a model of the Hugging Face hub, "owner/repo:Q4_K_M", with or without `hf:` in front; fetched the first time.

        The options are those of the class, which takes `hf:owner/repo:Q4_K_M` as its `model_path`, too. Needs the extra `hub`.
        Raises `HubError`, and what the class raises.
        """
        return cls(str(HubReference.with_or_without_prefix(reference)), **options)

    # -- generating ----------------------------------------------------------------------------------------------

    @takes_options
    def complete(self, prompt: str, **options: Unpack[OptionArguments]) -> Completion:
        """Continue `prompt` and return the finished completion. `llamafu.generation.options.Options` describes the options.

        Raises `ContextOverflowError` when the prompt does not fit, `DecodeError`, `InvalidScaleError`,
        `LoraNotFoundError`, `GrammarError`, ValueError and TypeError for bad options.
        """
        return self._start(prompt, Options.of(options)).run()

    @takes_options
    def stream(self, prompt: str, **options: Unpack[OptionArguments]) -> Stream:
        """Like `complete`, as an iterator of text pieces."""
        return Stream(self._start(prompt, Options.of(options)), self)

    @takes_chat_options
    def chat(self, messages: Sequence[Mapping[str, Any]], **options: Unpack[ChatArguments]) -> Completion:
        """Answer `messages`, OpenAI's ({"role", "content"} each), formatted by the model's own chat template.

        An assistant's message at the end is continued. The options are those of `ChatOptions` and of `Options`. Raises what
        `complete` raises, and `LlamafuError` where the template rejects the messages.
        """
        return self._start_chat(messages, options).run()

    @takes_chat_options
    def stream_chat(self, messages: Sequence[Mapping[str, Any]], **options: Unpack[ChatArguments]) -> Stream:
        """Like `chat`, as an iterator of text pieces; a `Piece` has reasoning and parts of calls beside its text."""
        return Stream(self._start_chat(messages, options), self)

    def embed(
        self, text: Texts, *, pooling: Pooling | None = None, normalize: bool = True, lora: LoraScales | None = None
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return the vector of a text, or of its token ids, shape [n_embd]; of a list of either, shape [n, n_embd].

        - `pooling`: how one vector is made of those of a text's tokens: "mean", "cls" (the first token's) or "last". "none"
          keeps the vectors of one text's tokens, shape [n_tokens, n_embd]. None: as the model's file says, else the mean.
        - `normalize`: whether vectors are scaled to length 1.
        - `lora`: as for `complete`.

        The model must have been opened with `embeddings=True`. Holds the context for a batch of texts at a time. Raises
        `ContextOverflowError` for a text that is too long, `UnsupportedError` for a model that ranks, `DecodeError`,
        `LoraNotFoundError`, `InvalidScaleError`; TypeError and ValueError for what is not a text, or empty.
        """
        with self._session.model_in_use() as model:
            given = EmbeddingInput.read(text, pooling=pooling, normalize=normalize, base=self._session.base, model=model)
        return self._pooled(given, lora)

    def rerank(
        self, query: str, documents: Sequence[str], *, top_n: int | None = None, lora: LoraScales | None = None
    ) -> list[RankedDocument]:
        """Return documents by how well they answer a query, the best first: the places in the list, and the model's scores.

        `top_n`: how many of them, None for all. The model must be one that ranks (`UnsupportedError`), opened with
        `embeddings=True`; a pair counts as one text. `lora` and the other errors as for `embed`.
        """
        session = self._session
        with session.model_in_use() as model:
            given = RankingInput.read(query, documents, top_n=top_n, head=session.head, base=session.base, model=model)
        return given.ranked(self._pooled(given, lora))

    def next_logits(
        self,
        prompt: Sequence[int] | str,
        said: Sequence[int] = (),
        *,
        lora: LoraScales | None = None,
        media: Sequence[object] = (),
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return the logits after `prompt`, tokens or text, and after each token of `said`, shape [1 + len(said), n_vocab].

        `said` are the tokens of an answer that is given (teacher forcing), `media` belong to the markers of a text. The
        adapters (`lora`, or the active set) act as in a generation that chooses these tokens: a scale that is a function is
        called for the steps 0 to len(said). Holds the context until it returns. Raises what `complete` raises.
        """
        with self._session.model_in_use() as model:
            largest = model.n_vocab - 1
        for token in (*(() if isinstance(prompt, str) else prompt), *said):
            check_whole("a token", token, low=0, high=largest)
        given = self._read_prompt(prompt, media) if isinstance(prompt, str) else list(prompt)
        tokens, spans = (given.tokens, given.spans) if isinstance(given, MediaPrompt) else (given, ())
        chosen = self._adapters.lora_set(lora)
        with self._session.between_steps(disturbs=True):
            return forced_logits(self._session, tokens, said, chosen, spans)

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Return the token ids of `text`; `add_special` adds BOS where the model wants one."""
        with self._session.model_in_use() as model:
            return model.tokenize(text, add_special=add_special, parse_special=parse_special)

    @takes_chat_options
    def tokenize_chat(self, messages: Sequence[Mapping[str, Any]], **options: Unpack[ChatArguments]) -> list[int]:
        """Return the token ids of `messages` as `chat` with the same options formats them, up to where the answer begins."""
        chat, others = split_options(options)
        thinks = Options.of(others).reasoning_budget != 0
        with self._session.model_in_use() as model:
            return chat_template.tokenize(model, messages, chat, thinks=thinks)

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """Return the text of token ids; control tokens are spelled out when `special`."""
        with self._session.model_in_use() as model:
            return model.detokenize(tokens, special=special)

    # -- state and end -------------------------------------------------------------------------------------------

    def save_state(self, path: str | os.PathLike[str]) -> None:
        """Write the KV memory of the computed prompt to a file, with the digests of the model and adapters that made it."""
        with self._session.between_steps():
            state_file.save(Path(path), self._session)

    def load_state(self, path: str | os.PathLike[str]) -> int:
        """Restore a saved state and return its number of tokens; `StateFileError` if another model or library wrote it."""
        with self._session.between_steps(disturbs=True):
            return state_file.load(Path(path), self._session)

    def close(self) -> None:
        """Free everything: waits for a running step, ends unfinished streams with `ClosedError`. Idempotent."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Llamafu {self.path.name}{' (closed)' if self._session.instance.closed else ''}>"

    # -- helpers -------------------------------------------------------------------------------------------------

    def _pooled(self, given: TextInput, lora: LoraScales | None) -> np.ndarray[Any, np.dtype[np.float32]]:
        if not self._embeds:
            message = "embeddings are off; open the model with Llamafu(..., embeddings=True)"
            raise ValueError(message)
        check_text_lengths(given.texts, *longest_text(self._session.instance.context))
        return embed(self._session, given, self._adapters.lora_set(lora))

    def _start_chat(self, messages: Sequence[Mapping[str, Any]], options: ChatArguments) -> Generation:
        demand_continuing(self._session.instance.context)
        with self._session.model_in_use() as model:
            turn = prepare(model, messages, options, self._session.encoder)
        return self._generation(turn.prompt, Options.of(turn.options), turn.answer_format)

    def _start(self, prompt: str, options: Options) -> Generation:
        if not isinstance(prompt, str):
            message = f"prompt is {type(prompt).__name__}, not str"
            raise TypeError(message)
        return self._generation(self._read_prompt(prompt, options.media), options)

    def _read_prompt(self, prompt: str, media: Sequence[object]) -> list[int] | MediaPrompt:
        if not media:
            return self.tokenize(prompt)
        with self._session.model_in_use() as model:
            return prompt_with_media(model, prompt, media, self._session.encoder)

    def _generation(
        self, prompt: Sequence[int] | MediaPrompt, options: Options, read_as: AnswerFormat | None = None
    ) -> Generation:
        lora = self._adapters.lora_set(options.lora)  # calls the user's scale functions, so before any lock is held
        with self._session.model_in_use():
            return Generation(self._session, prompt, options, lora, read_as)
