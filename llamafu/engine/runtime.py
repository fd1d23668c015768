"""The native side of an engine: libllama, the model, the context, and the bank that replaces operations of its graph."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llamafu._native.instance import Instance
from llamafu._native.library import open_library
from llamafu.adapters.file import read_adapter
from llamafu.engine.bank_setup import BankSetup
from llamafu.errors import LoraError
from llamafu.generation.classifier_head import classifier_head
from llamafu.generation.media.opening import open_encoder
from llamafu.libraries.discovery import find
from llamafu.libraries.placement import place

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from llamafu._native.batched_lora.row_table import RowTable
    from llamafu._native.model import Model
    from llamafu.adapters.gguf.base_model import BaseModel
    from llamafu.engine.engine_options import EngineOptions
    from llamafu.engine.registry import Content


class EngineRuntime:
    """Owns the `Instance` and the bank. The engine's thread only, except for `sharing`.

    bank, placeholder_adapter, plan, used, refused, attention: as `BankSetup` made them.
    """

    def __init__(
        self,
        base: BaseModel,
        options: EngineOptions,
        library: str | os.PathLike[str] | None,
        projector: str | os.PathLike[str] | None = None,
    ) -> None:
        """Find and load libllama, the model, its projector, and the context; `library` names a libllama, as for `Engine`."""
        self.base = base
        self.head = classifier_head(base)
        """The model's classifier head; None where it does not rank."""
        self._model_users = 0
        self._user_left = threading.Condition()
        setup = BankSetup(base, options)
        proven = find(None if library is None else str(library))
        loaded = open_library(proven.path, proven.family, gpu=options.devices.wants_gpu)
        context = options.context_options(base, most_sequences=int(loaded.lib.llama_max_parallel_sequences()))
        self.instance = Instance(
            loaded,
            base.path,
            context,
            reader=lambda path: read_adapter(path).content,
            placement=place(loaded, base, options.devices, context, bank_bytes=setup.bytes_per_value),
            frees_adapters=proven.frees_adapters is not False,
            prepare=setup.prepare,
        )
        self.bank, self.placeholder_adapter, self.plan = setup.bank, setup.placeholder_adapter, setup.plan
        self.used, self.refused, self.attention = setup.used, setup.refused, setup.attention
        try:
            self.encoder = None if projector is None else open_encoder(self.instance, projector)
        except BaseException:
            self._close_native()
            raise

    @contextmanager
    def sharing(self) -> Iterator[Model]:
        """Return the model, and keep it open for the length of the block; any thread. `ClosedError` after `close`."""
        self.instance.refuse_fork()
        with self._user_left:
            model = self.instance.model
            self._model_users += 1
        try:
            yield model
        finally:
            with self._user_left:
                self._model_users -= 1
                self._user_left.notify_all()

    def enter_bank(self, rows: RowTable, outputs: RowTable | None = None) -> None:
        """Let the bank apply `rows` in the next decode; `outputs` are the rows with logits, by default all."""
        bank, placeholder_adapter = self.bank, self.placeholder_adapter
        assert bank is not None and placeholder_adapter is not None  # noqa: S101, PT018 - the caller has checked
        self.instance.context.set_adapters({placeholder_adapter: 1.0})
        bank.store.set_rows(rows, rows if outputs is None else outputs)

    @contextmanager
    def renewing(self, *, is_banked: bool) -> Iterator[None]:
        """Let libllama make a new graph if the block, a decode, raises: the bank may have rewritten the last one in part."""
        try:
            yield
        except BaseException:
            if is_banked:  # libllama makes a new graph when the set changes, and `enter_bank` changes it back
                self.instance.context.set_adapters({})
            raise

    def leave_bank(self) -> None:
        """Let libllama's own operations apply the adapters of the next decodes."""
        if self.bank is not None:
            self.bank.store.rest()

    def pin(self, name: str, content: Content) -> None:
        """Load an adapter into the bank and exclude it from eviction; `LoraError` when the bank cannot take it now."""
        bank = self.bank
        if bank is None or not bank.holds(content):
            message = f"{name!r} cannot be pinned: {self.plan.fallback_reason or 'the bank cannot hold it'}"
            raise LoraError(message)
        bank.refuse_too_large({content.digest: content.info.rank})
        if not bank.acquire([content]):
            message = (
                f"{name!r} takes {content.info.rank} of {bank.allocator.capacity} rank units, "
                "and running requests use too many; try again later"
            )
            raise LoraError(message)
        bank.allocator.pinned.add(content.digest)
        bank.release([content])

    def unpin_all_but(self, known: set[str]) -> None:
        """Unpin all adapters but those with these digests; running sequences keep theirs."""
        if self.bank is not None:
            self.bank.allocator.pinned &= known

    def close(self) -> None:
        """Wait for all blocks of `sharing`, then free everything. Idempotent."""
        with self._user_left:
            self._user_left.wait_for(lambda: not self._model_users)
            if self.encoder is not None and self.instance.is_ours:
                self.encoder.close()
            self._close_native()

    def _close_native(self) -> None:
        self.instance.close()
        if self.bank is not None and self.instance.is_ours:
            self.bank.store.close()
