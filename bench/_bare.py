"""The least that any binding must do: a loop of llama_decode over K sequences with one plain adapter, and a greedy pick.

No callback, no mask, no scheduler: what "the same adapter for all" costs on this library, model and context.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np

from llamafu._native.adapter import Adapter
from llamafu._native.context import Context
from llamafu._native.context_options import ContextOptions
from llamafu._native.library import open_library
from llamafu._native.model import Model
from llamafu.adapters.file import read_adapter
from llamafu.libraries.discovery import find

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class BareLoop:
    """A context of its own for up to `sequences` sequences; a context manager."""

    def __init__(
        self, path: Path, library: Path | None, *, sequences: int, n_ctx: int, threads: int, flash_attn: str, n_batch: int = 512
    ) -> None:
        proven = find(None if library is None else str(library))
        self.model = Model(open_library(proven.path, proven.family), path)
        options = ContextOptions(
            n_ctx=n_ctx, n_batch=n_batch, n_threads=threads, n_seq_max=sequences, flash_attn=flash_attn, unified=True
        )
        self._context = Context(self.model, options)
        self._adapters: dict[Path, Adapter] = {}
        lib, ffi = self.model.library.lib, self.model.library.ffi
        self._batch = lib.llama_batch_init(n_batch, 0, 1)
        self._tokens, self._positions, self._logits = (
            np.frombuffer(ffi.buffer(pointer, n_batch * size), kind)
            for pointer, size, kind in (
                (self._batch.token, 4, np.int32),
                (self._batch.pos, 4, np.int32),
                (self._batch.logits, 1, np.int8),
            )
        )
        for i in range(n_batch):
            self._batch.n_seq_id[i] = 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.model.library.lib.llama_batch_free(self._batch)
        self._context.close()
        for adapter in self._adapters.values():
            adapter.close()
        self.model.close()

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a prompt."""
        return self.model.tokenize(text.encode(), add_special=True, parse_special=True)

    def run(self, prompts: Sequence[Sequence[int]], tokens: int, adapter: Path | None) -> list[list[int]]:
        """Answer all prompts at once with `tokens` tokens each, all with the same adapter at 1.0 or with none."""
        if adapter is not None and adapter not in self._adapters:
            self._adapters[adapter] = Adapter(self.model, read_adapter(adapter).content, label=adapter.name)
        self._context.clear()
        self._context.set_adapters({} if adapter is None else {self._adapters[adapter]: 1.0})
        latest = self._prefill(prompts)
        made = [latest]
        count = len(prompts)
        for i in range(count):
            self._batch.seq_id[i][0] = i
        self._positions[:count] = [len(prompt) for prompt in prompts]
        self._logits[:count] = 1
        while len(made) < tokens:
            self._tokens[:count] = latest
            latest = self._decode(count, count)
            made.append(latest)
            self._positions[:count] += 1
        return [[int(step[i]) for step in made] for i in range(count)]

    def _prefill(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        first: list[np.ndarray] = []
        waiting = list(enumerate(prompts))
        while waiting:
            used = ended = 0
            while waiting and used + len(waiting[0][1]) <= len(self._tokens):
                sequence, prompt = waiting.pop(0)
                end = used + len(prompt)
                self._tokens[used:end], self._positions[used:end], self._logits[used:end] = prompt, range(len(prompt)), 0
                self._logits[end - 1] = 1
                for i in range(used, end):
                    self._batch.seq_id[i][0] = sequence
                used, ended = end, ended + 1
            assert ended, "a prompt is longer than a batch"  # noqa: S101 - a benchmark's own prompts
            first.append(self._decode(used, ended))
        return np.concatenate(first)

    def _decode(self, rows: int, outputs: int) -> np.ndarray:
        """Compute the batch's first `rows` rows; the best token of each of its `outputs` rows with logits, in their order."""
        library = self.model.library
        self._batch.n_tokens = rows
        status = library.lib.llama_decode(self._context.pointer, self._batch)
        assert status == 0, f"llama_decode returned {status}"  # noqa: S101 - nothing else to do in a benchmark
        logits = library.lib.llama_get_logits(self._context.pointer)
        size = outputs * self.model.n_vocab * 4
        return np.frombuffer(library.ffi.buffer(logits, size), np.float32).reshape(outputs, -1).argmax(axis=1)
