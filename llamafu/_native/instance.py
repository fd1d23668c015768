"""One model with one context and its adapters, and the mirrored adapter functions over it.

`llamafu_lora_adapter_init/apply/remove/clear_all/free` keep the names, the order of arguments and the error
numbers of the Dart plugin's C header (where they were stubs): codes in, codes out, nothing raised.
An out parameter is a list that receives the handle.
"""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llamafu._native.adapter import Adapter
from llamafu._native.context import Context
from llamafu._native.model import Model
from llamafu._native.model_check import check_model
from llamafu._native.placement import Placement
from llamafu.errors import ClosedError, ContextInitError, ErrorCode, LlamafuError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from llamafu._native.context import Hook
    from llamafu._native.context_options import ContextOptions
    from llamafu._native.library import Library


class Instance:
    """Owns a model, its context and its adapters, and frees them in the one order that is safe.

    Not thread-safe: the model layer holds a lock around every use. In a forked child every use is a
    `ClosedError` and `close` leaves the parent's memory alone: the library's threads do not survive a fork.

    A file that was never opened before is opened in a child process first (see `model_check`).
    `reader` returns the checked bytes of an adapter file, or raises a `LlamafuError`: no file reaches libllama unread.
    `frees_adapters` is False for a library whose adapter free does nothing: adapters are then kept by content and
    used again, so that loading and freeing in turn leaks nothing. `placement` says which devices compute the model, by default
    the CPU. `prepare` is called between model and context: it may load adapters, which libllama counts when it makes a
    context, change `context_options`, and return the context's hook.
    """

    def __init__(
        self,
        library: Library,
        path: Path,
        options: ContextOptions,
        *,
        reader: Callable[[str], bytes],
        placement: Placement | None = None,
        frees_adapters: bool = True,
        prepare: Callable[[Instance], Hook | None] | None = None,
    ) -> None:
        self.library = library
        self.reader = reader
        self._pool: dict[str, Any] | None = None if frees_adapters else {}
        self._pid = os.getpid()
        self._adapters: dict[Adapter, str] = {}
        checked = check_model(library, path)
        self.placement = placement or Placement()
        self._model: Model | None = Model(library, path, placement=self.placement, checked=checked)
        self._context: Context | None = None
        try:
            self.context_options = _with_long_batches(replace(options, offload=self.placement.offloads), self._model)
            hook = None if prepare is None else prepare(self)
            self._context = Context(self._model, self.context_options, hook=hook)
        except BaseException:
            self.close()
            raise

    @property
    def model(self) -> Model:
        """The model; `ClosedError` after `close` or in a forked child."""
        self._check_open()
        assert self._model is not None  # noqa: S101 - _check_open has raised otherwise
        return self._model

    @property
    def context(self) -> Context:
        """The context; `ClosedError` after `close` or in a forked child."""
        self._check_open()
        assert self._context is not None  # noqa: S101 - _check_open has raised otherwise
        return self._context

    @property
    def is_ours(self) -> bool:
        """False in a forked child."""
        return os.getpid() == self._pid

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._model is None

    def add(self, content: bytes, *, label: str) -> Adapter:
        """Load an adapter from the bytes of a checked GGUF file."""
        digest = hashlib.sha256(content).hexdigest() if self._pool is not None else ""
        pooled = self._pool.pop(digest, None) if self._pool is not None else None
        adapter = (
            Adapter(self.model, content, label=label) if pooled is None else Adapter.adopt(self.model, pooled, label=label)
        )
        self._adapters[adapter] = digest
        return adapter

    def owns(self, adapter: Adapter) -> bool:
        """Tell whether `adapter` was loaded here and is not freed."""
        return adapter in self._adapters

    def detach(self, adapter: Adapter) -> None:
        """Take `adapter` out of the context's active set; it stays loaded."""
        if self._context is None and self._model is not None:
            return  # there is no context yet
        active = self.context.adapters
        if active.pop(adapter, None) is not None:
            self.context.set_adapters(active)

    def free(self, adapter: Adapter) -> None:
        """Detach `adapter` from the context, then free it, or keep it for its content where freeing does nothing."""
        self.detach(adapter)
        digest = self._adapters.pop(adapter)
        if self._pool is None:
            adapter.close()
        else:
            self._pool[digest] = adapter.surrender()

    def close(self) -> None:
        """Free context, adapters and model, in this order. Idempotent; a no-op in a forked child."""
        context, self._context = self._context, None
        adapters, self._adapters = self._adapters, {}
        model, self._model = self._model, None
        if not self.is_ours:
            return
        if context is not None:
            context.close()
        for adapter in adapters:
            adapter.close()
        if model is not None:
            model.close()

    def refuse_fork(self) -> None:
        """Raise `ClosedError` in a forked child: there even a lock may be held by a thread that does not exist."""
        if not self.is_ours:
            message = f"this object belongs to process {self._pid}; after a fork, open a new Llamafu in the child"
            raise ClosedError(message)

    def _check_open(self) -> None:
        self.refuse_fork()
        if self._model is None:
            message = "this object is closed; open a new Llamafu"
            raise ClosedError(message)


def _with_long_batches(options: ContextOptions, model: Model) -> ContextOptions:
    """Raise `n_batch` to `n_ctx`, at most the trained context, for a model that must read each text in one batch."""
    if not model.reads_whole:
        return options
    if options.n_ubatch is not None:
        message = f"n_ubatch={options.n_ubatch} would divide texts, which this model reads as a whole; leave it out"
        raise ContextInitError(message, code=ErrorCode.INVALID_PARAM)
    return replace(options, n_batch=max(options.n_batch, min(options.n_ctx, model.n_ctx_train)))


def llamafu_lora_adapter_init(instance: Instance, lora_path: str, out_adapter: list[Adapter]) -> ErrorCode:
    """Check and load `lora_path`, and append the handle to `out_adapter`. It is not applied yet."""
    if not lora_path:
        return ErrorCode.INVALID_PARAM
    try:
        out_adapter.append(instance.add(instance.reader(lora_path), label=lora_path))
    except LlamafuError as error:
        return error.code if error.code == ErrorCode.CLOSED else ErrorCode.LORA_LOAD_FAILED
    return ErrorCode.SUCCESS


def llamafu_lora_adapter_apply(instance: Instance, adapter: Adapter, scale: float) -> ErrorCode:
    """Make `adapter` active at `scale`; a second call replaces the scale."""
    if not math.isfinite(scale):
        return ErrorCode.INVALID_PARAM
    if not instance.owns(adapter):
        return ErrorCode.LORA_NOT_FOUND
    return _run(lambda: instance.context.set_adapters({**instance.context.adapters, adapter: scale}))


def llamafu_lora_adapter_remove(instance: Instance, adapter: Adapter) -> ErrorCode:
    """Detach `adapter`; it stays loaded."""
    if not instance.owns(adapter):
        return ErrorCode.LORA_NOT_FOUND
    return _run(lambda: instance.detach(adapter))


def llamafu_lora_adapter_clear_all(instance: Instance) -> ErrorCode:
    """Detach every adapter; all stay loaded."""
    return _run(lambda: instance.context.set_adapters({}))


def llamafu_lora_adapter_free(instance: Instance, adapter: Adapter) -> ErrorCode:
    """Detach and free `adapter`."""
    if not instance.owns(adapter):
        return ErrorCode.LORA_NOT_FOUND
    return _run(lambda: instance.free(adapter))


def _run(action: Callable[[], None]) -> ErrorCode:
    try:
        action()
    except LlamafuError as error:
        return error.code
    return ErrorCode.SUCCESS
