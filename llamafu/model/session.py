"""`Session`: an open model with its context, and what everything that computes on it shares."""

from __future__ import annotations

import atexit
import os
import weakref
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from llamafu._native.graph.unused_targets import Prober
from llamafu._native.instance import Instance
from llamafu._native.library import open_library
from llamafu.adapters.file import read_adapter
from llamafu.adapters.gguf.base_model import read_model
from llamafu.errors import ClosedError
from llamafu.generation.classifier_head import classifier_head
from llamafu.generation.media.opening import open_encoder
from llamafu.libraries.discovery import find
from llamafu.libraries.placement import place
from llamafu.model.context_lock import ContextLock
from llamafu.model.prefix_cache import PrefixCache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llamafu._native.context import Context
    from llamafu._native.context_options import ContextOptions
    from llamafu._native.device_options import DeviceOptions
    from llamafu._native.model import Model
    from llamafu.adapters.gguf.base_model import BaseModel
    from llamafu.generation.classifier_head import ClassifierHead
    from llamafu.generation.media.encoder import MediaEncoder
    from llamafu.lora.active_set import LoraSet
    from llamafu.lora.registry import LoadedAdapter
    from llamafu.lora.scales import State

_EXIT_TIMEOUT = 10.0
"""Seconds that the end of the process waits for the running step of a daemon thread."""


class Session:
    """An open model and its context: the prefix cache over it, and the lock around it. Any thread.

    `base` is the header of the model's file, `head` its classifier head, if it ranks, `encoder` encodes
    media, if a projector was given. `prober` computes which tensors the
    model's graph applies adapters to.
    """

    def __init__(
        self, instance: Instance, base: BaseModel, head: ClassifierHead | None, encoder: MediaEncoder | None = None
    ) -> None:
        self.instance = instance
        self.encoder = encoder
        self.base = base
        self.head = head
        self.cache = PrefixCache(instance.context)
        self.lock = ContextLock()
        self.prober = Prober(instance.model, instance.context_options)
        _open_sessions.add(self)

    @contextmanager
    def model_in_use(self) -> Iterator[Model]:
        """Keep the model open for the length of a block, without waiting for generations."""
        self.check_open()
        with self.lock.model_in_use():
            yield self.instance.model

    @contextmanager
    def between_steps(self, *, disturbs: bool = False) -> Iterator[None]:
        """Hold the context between two steps of the running generation; `disturbs`: its KV memory may change."""
        self.check_open()
        with self.lock.exclusive(disturbs=disturbs):
            self.check_open()
            yield

    def check_open(self) -> None:
        """Raise `ClosedError` after the end, or in a forked child; at the end of the process block other threads."""
        self.instance.refuse_fork()
        if self.instance.closed:
            self.lock.stay_out()
            message = f"this Llamafu ({self.base.path.name}) is closed; open a new one"
            raise ClosedError(message)

    def close(self) -> None:
        """Wait for the running step, then free everything; unfinished generations end with `ClosedError`. Idempotent."""
        if self._can_be_freed and not self.lock.is_shut_down:
            with self.lock.closing():
                self.free()

    def close_at_exit(self) -> None:
        """Free everything because the process ends, unless a daemon thread stays inside a step for too long."""
        if self._can_be_freed and self.lock.shutdown(_EXIT_TIMEOUT):
            self.free()

    def free(self) -> None:
        """Free probing context, projector, context, adapters and model, in this order. Idempotent; nothing may be running."""
        if self.instance.is_ours:
            self.prober.close()
            if self.encoder is not None:
                self.encoder.close()
        self.instance.close()

    @property
    def _can_be_freed(self) -> bool:
        return self.instance.is_ours and not self.instance.closed


def open_session(
    path: str | os.PathLike[str],
    options: ContextOptions,
    devices: DeviceOptions,
    *,
    library: str | os.PathLike[str] | None,
    projector: str | os.PathLike[str] | None = None,
) -> Session:
    """Open the model at `path` with a context of these options, on the libllama that `library` names, or the best found.

    Raises `ModelLoadError`, `LibraryNotFoundError`, `AbiMismatchError`, `ContextInitError`, ValueError for a device that is not
    there, and for a `projector` what `open_encoder` raises.
    """
    base = read_model(path)
    head = classifier_head(base)
    verified = find(None if library is None else os.fspath(library))
    loaded = open_library(verified.path, verified.family, gpu=devices.wants_gpu)
    instance = Instance(
        loaded,
        base.path,
        replace(options, positions=base.positions),
        reader=lambda adapter: read_adapter(adapter).content,
        placement=place(loaded, base, devices, options),
        frees_adapters=verified.frees_adapters is not False,
    )
    try:
        encoder = None if projector is None else open_encoder(instance, projector)
    except BaseException:
        instance.close()
        raise
    return Session(instance, base, head, encoder)


def state_switch(context: Context, lora: LoraSet[LoadedAdapter]) -> Callable[[State], None]:
    """Return a function that makes an adapter state the context's.

    It raises `ClosedError` when one of the state's adapters was unloaded after `lora` was made.
    """
    native = {content.digest: content.native for content in lora.contents}
    return lambda state: context.set_adapters({native[digest]: scale for digest, scale in state})


_open_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for session in list(_open_sessions):
        session.close_at_exit()
