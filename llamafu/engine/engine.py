"""`Engine`: many requests at once, each with adapters of its own."""

from __future__ import annotations

import weakref
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from llamafu._native.context import FLASH_ATTENTION, MOST_THREADS, ContextOptions
from llamafu._native.cpu import usable_cpus
from llamafu._native.library import open_library
from llamafu._util.arguments import check_whole
from llamafu.adapters.gguf.base_model import read_model
from llamafu.adapters.peft.config import CONFIG
from llamafu.engine.embedding import embed, longest_text
from llamafu.engine.registry import Registry
from llamafu.engine.runtime import DTYPES, Room
from llamafu.engine.scheduler import Core
from llamafu.engine.stats import EngineStats, Percentiles
from llamafu.engine.submission import Asking
from llamafu.engine.worker import Worker
from llamafu.errors import LoraError, LoraIncompatibleError
from llamafu.generation.pooling import choose_pooling, demand_one, pool, shaped
from llamafu.libraries.discovery import find
from llamafu.lora.handles import check_scale, check_scale_range
from llamafu.model.embedding import demand_room, read_texts

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    import numpy as np

    from llamafu.adapters.file import AdapterFile
    from llamafu.adapters.info import AdapterInfo
    from llamafu.engine.registry import Content
    from llamafu.generation.options import LoraScales
    from llamafu.generation.pooling import Pooling
    from llamafu.model.embedding import Texts

_MOST = 2**31 - 1


class Engine(Asking):
    """One base model that answers many requests at once, each with its own adapters and scales, in one batch.

    `adapters_dir`: every GGUF adapter and PEFT folder in it is registered. `max_sequences`: requests that run at the same
    time; `max_queue` more may wait. `bank_rank`: rank units that can be in use at once, of all adapters together.
    `n_ctx`: tokens of memory, shared by all sequences; `n_batch`: the most of one step. `bank_dtype`: "f16" or "f32",
    what weights are kept as. `kernel`: "compiled" needs the extra `fast`, "python" does without, "none" computes requests
    with different adapters one after another, "auto" takes the best there is. Others as for `Llamafu`.

    Any thread may call any method. Raises `ModelLoadError`, `LibraryNotFoundError`, `AbiMismatchError`,
    `ContextInitError`, ValueError.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        adapters_dir: str | os.PathLike[str] | None = None,
        max_sequences: int = 16,
        max_queue: int = 256,
        bank_rank: int = 128,
        bank_dtype: Literal["f16", "f32"] = "f16",
        kernel: Literal["auto", "compiled", "python", "none"] = "auto",
        n_ctx: int = 8192,
        n_batch: int = 512,
        n_threads: int | None = None,
        n_gpu_layers: int = 0,
        flash_attn: str = "auto",
        type_k: str = "f16",
        type_v: str = "f16",
        scale_range: tuple[float, float] = (0.0, 1.0),
        library: str | os.PathLike[str] | None = None,
    ) -> None:
        n_threads = min(usable_cpus(), MOST_THREADS) if n_threads is None else n_threads
        for name, value, low, high in (
            ("max_sequences", max_sequences, 1, _MOST),
            ("max_queue", max_queue, 1, _MOST),
            ("bank_rank", bank_rank, 0, _MOST),
            ("n_ctx", n_ctx, 2, _MOST),
            ("n_batch", n_batch, 64, _MOST),
            ("n_threads", n_threads, 1, MOST_THREADS),
            ("n_gpu_layers", n_gpu_layers, -1, _MOST),
        ):
            check_whole(name, value, low=low, high=high)
        if max_sequences > n_batch:
            message = f"max_sequences={max_sequences} is more than n_batch={n_batch}: raise that"
            raise ValueError(message)
        for name, choice, legal in (
            ("flash_attn", flash_attn, tuple(FLASH_ATTENTION)),
            ("bank_dtype", bank_dtype, tuple(DTYPES)),
            ("kernel", kernel, ("auto", "compiled", "python", "none")),
        ):
            if choice not in legal:
                message = f"{name}={choice!r} is none of {', '.join(map(repr, legal))}"
                raise ValueError(message)
        self.scale_range = check_scale_range(scale_range)
        self.path = Path(model_path)
        base = read_model(self.path)
        proven = find(None if library is None else str(library))
        loaded = open_library(proven.path, proven.family, gpu=n_gpu_layers != 0)
        options = ContextOptions(
            n_ctx=n_ctx,
            n_batch=min(n_batch, n_ctx),
            n_threads=n_threads,
            # Ended sequences keep a number too, while what they computed may be of use to others.
            n_seq_max=max(max_sequences, min(2 * max_sequences + 4, int(loaded.lib.llama_max_parallel_sequences()))),
            flash_attn=flash_attn,
            type_k=type_k,
            type_v=type_v,
            offload=n_gpu_layers != 0,
            unified=True,
            positions=base.positions,
        )
        room = Room(
            loaded,
            base,
            options,
            n_gpu_layers=n_gpu_layers,
            frees_adapters=proven.frees_adapters is not False,
            bank_rank=bank_rank,
            bank_dtype=bank_dtype,
            kernel=kernel,
        )
        self._room = room
        self._core = Core(room, max_sequences=max_sequences)
        self._registry = Registry(base, partial(_demand_usable, room))  # not a method: it would keep this object alive
        self._active: dict[str, float] = {}
        self._worker = Worker(self._core, max_sequences=max_sequences, max_queue=max_queue)
        self._finalizer = weakref.finalize(self, _stop, self._worker, self._registry)
        try:
            if adapters_dir is not None:
                self._add_folder(Path(adapters_dir))
        except BaseException:
            self.close()
            raise

    # -- adapters ------------------------------------------------------------------------------------------------

    def add_adapter(self, path: str | os.PathLike[str], *, name: str | None = None) -> AdapterInfo:
        """Check and register an adapter, a GGUF file or a PEFT folder; running requests go on meanwhile.

        `name` defaults to the file's name without its suffix, or the folder's. Its weights are read when a request needs
        them, so the file has to stay; when it changes, requests from then on run with the new content, those that were
        submitted before keep the old one. Raises
        `InvalidAdapterFileError`, `LoraIncompatibleError`, `LoraLoadError`; `LoraError` when the name is another's.
        """
        self._demand_open()
        return self._registry.add(Path(path), name)

    def remove_adapter(self, name: str) -> None:
        """Forget an adapter; running requests keep it to their end. `LoraNotFoundError`; `LoraError` while it is active."""
        self._demand_open()
        if name in self._active:
            message = f"{name!r} is in the active set ({self._active}); set another with set_lora_adapters first"
            raise LoraError(message)
        self._registry.remove(name)
        self._worker.call(lambda core: core.room.unpin_all_but(self._digests()))

    def pin_adapter(self, name: str) -> None:
        """Read an adapter into the bank now, and keep it there until it is removed.

        Raises `LoraNotFoundError`; `LoraError` when the bank cannot hold it, or not now.
        """
        content = self._registry.resolve(name)
        self._read_ahead([content])

        def pin(core: Core) -> None:
            core.room.unpin_all_but(self._digests())  # a file that was changed had another content when it was pinned
            core.room.pin(name, content)

        self._worker.call(pin)

    @property
    def adapters(self) -> dict[str, AdapterInfo]:
        """Every registered adapter, by name."""
        self._demand_open()
        return self._registry.infos()

    def adapter_path(self, name: str) -> Path:
        """Return the file or folder that an adapter was added from; `LoraNotFoundError`."""
        return self._registry.source(name)

    @property
    def lora_targets(self) -> frozenset[str]:
        """Names of the model's tensors that adapters can change: those that its graph multiplies by them."""
        return self._room.used

    @property
    def active_lora_adapters(self) -> dict[str, float]:
        """What a request with `lora=None` runs with: scale by name."""
        return dict(self._active)

    def set_lora_adapters(self, scales: Mapping[str, float], *, include_queued: bool = False) -> None:
        """Replace the active set, for requests submitted from now on; on any error nothing changes.

        `include_queued`: requests with `lora=None` that have not started before the next step take the new set too.
        """
        self._demand_open()
        checked = {name: check_scale(scale, self.scale_range, repr(name)) for name, scale in scales.items()}
        mix = self._mix(checked)
        self._active = checked
        if include_queued:
            self._worker.post(lambda core: core.retarget(mix))  # waiting for it would be waiting for a step

    # -- texts ---------------------------------------------------------------------------------------------------

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Return the token ids of `text`; `add_special` adds BOS where the model wants one."""
        self._demand_open()
        with self._room.sharing() as model:
            return model.tokenize(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """Return the text of token ids; control tokens are spelled out when `special`."""
        self._demand_open()
        with self._room.sharing() as model:
            return model.detokenize(tokens, special=special)

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
        self._demand_open()
        room = self._room
        chosen = choose_pooling(pooling, room.base.architecture, room.base.metadata)
        with room.sharing() as model:
            texts, is_one = read_texts(text, self.tokenize, model.n_vocab)
        demand_one(chosen, is_one=is_one)
        demand_room(texts, *longest_text(room))
        mix = self._mix(lora)
        self._read_ahead(mix.contents)
        vectors: list[np.ndarray[Any, np.dtype[np.float32]]] = []
        while len(vectors) < len(texts):
            waiting = texts[len(vectors) :]
            rows = self._worker.call(lambda core: embed(core, waiting, mix))  # noqa: B023 - it is called at once
            vectors += [pool(of_text, chosen, normalize=normalize) for of_text in rows]
        return shaped(vectors, is_one=is_one)

    # -- state and end -------------------------------------------------------------------------------------------

    def stats(self) -> EngineStats:
        """Return what happened so far, in numbers."""
        core = self._core
        recorder, bank = core.recorder, self._room.bank
        return EngineStats(
            tokens_per_second=recorder.rate(),
            queued=self._worker.queued,
            running=len(core.running),
            finished=recorder.finished,
            cancelled=recorder.cancelled,
            failed=recorder.failed,
            prompt_tokens=recorder.prompt_tokens,
            completion_tokens=recorder.completion_tokens,
            cached_tokens=recorder.cached_tokens,
            batch_sizes=dict(recorder.batch_sizes),
            ttft=Percentiles.of(recorder.ttft),
            itl=Percentiles.of(recorder.itl),
            bank_units=bank.pager.capacity if bank else 0,
            bank_units_used=bank.pager.used if bank else 0,
            page_ins=bank.page_ins if bank else 0,
            page_in_seconds=bank.page_in_seconds if bank else 0.0,
            prefix_hits=core.kv.hits,
            preemptions=recorder.preemptions,
            mixed_steps=recorder.mixed_steps,
            plain_steps=recorder.plain_steps,
            fallback_steps=recorder.fallback_steps,
            fallback_reasons=dict(recorder.fallback_reasons),
            failed_steps=recorder.failed_steps,
            kernel=self._room.plan.kernel,
            attention=self._room.attention,
        )

    def forget_times(self) -> None:
        """Take the percentiles of `stats` from what happens from now on only; the counts go on."""

        def forget(core: Core) -> None:
            core.recorder.ttft.clear()
            core.recorder.itl.clear()

        self._worker.call(forget)

    def close(self) -> None:
        """End every request with `ClosedError` and free everything. Idempotent."""
        if self._room.instance.is_ours:
            self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Engine {self.path.name}{' (closed)' if self._worker.closed else ''}>"

    # -- helpers -------------------------------------------------------------------------------------------------

    def _read_ahead(self, contents: Sequence[Content]) -> None:
        """Let adapters be read into the bank, if they can be, a piece a step."""
        while self._worker.call(lambda core: core.read_ahead(contents)):
            pass

    def _digests(self) -> set[str]:
        return {info.digest for info in self._registry.infos().values()}

    def _add_folder(self, folder: Path) -> None:
        if not folder.is_dir():
            message = f"adapters_dir={str(folder)!r} is no folder; make it, or leave it out"
            raise NotADirectoryError(message)
        for path in sorted(folder.iterdir()):
            if path.suffix == ".gguf" or (path / CONFIG).exists():
                self.add_adapter(path)


def _demand_usable(room: Room, file: AdapterFile) -> None:
    """Refuse an adapter that would do nothing somewhere."""
    unused = sorted(set(file.pairs) - room.used)
    problems = tuple(f"{name}: this model's graph computes it without adapters" for name in unused)
    if problems:
        message = f"{file.path} would be used in part only: {'; '.join(problems)}; train it without these targets"
        raise LoraIncompatibleError(message, problems=problems)


def _stop(worker: Worker, registry: Registry) -> None:
    worker.stop()
    registry.close()
