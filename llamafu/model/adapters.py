"""The adapter half of `Llamafu`: what is loaded, under which names, and which of it acts."""

from __future__ import annotations

import contextlib
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from llamafu.adapters.compatibility import CompatibilityReport, demand_fit
from llamafu.adapters.file import default_name
from llamafu.adapters.reader import AdapterReader
from llamafu.errors import ClosedError
from llamafu.lora.active_set import LoraSet, LoraUse
from llamafu.lora.handles import LoraAdapter
from llamafu.lora.registry import HandleRegistry
from llamafu.lora.scales import check_scale

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

    from llamafu._native.adapter import Adapter
    from llamafu._native.graph.unused_targets import Prober
    from llamafu._native.model import Model
    from llamafu.adapters.file import AdapterFile
    from llamafu.adapters.gguf.base_model import BaseModel
    from llamafu.lora.scales import LoraScales
    from llamafu.model.decode_loop import Desk


class LoraHost:
    """Loads adapters into one model, and keeps the set that acts when a call names none. Any thread."""

    def __init__(self, desk: Desk, base: BaseModel, prober: Prober, scale_range: tuple[float, float]) -> None:
        self._desk = desk
        self._instance = desk.instance
        self._base = base
        self._reader = AdapterReader(base)
        self._prober = prober
        self.scale_range = scale_range
        self._registry = HandleRegistry()
        self._active: dict[LoraAdapter, float] = {}
        self._fitting: set[str] = set()
        self._lock = threading.RLock()

    def load_lora_adapter(
        self, path: str | os.PathLike[str], *, name: str | None = None, drop: Sequence[str] = ()
    ) -> LoraAdapter:
        """Check and load an adapter, a GGUF file or a PEFT folder (converted in memory); it is not applied yet.

        `name` defaults to the file's name without its suffix, or the folder's. The same content loaded again is the same
        object under one more name. `drop` leaves modules of a folder out, such as those of "vision", as `convert_peft` does.

        Raises `InvalidAdapterFileError`, `LoraIncompatibleError` (with every mismatch) or `LoraLoadError`; `LoraError` when
        the name belongs to other content.
        """
        self._check_open()
        file = self._reader.read(path, drop=drop)
        name = default_name(file.path) if name is None else name
        with self._between_steps():
            with self._lock:
                self._registry.claim(name, file.digest)
                known = self._registry.find_content(file.digest)
                if known is not None:
                    self._registry.add(known, name, self._registry.native(known))
                    return known
            if file.digest not in self._fitting:
                demand_fit(file, self._base)
            self._fitting.add(file.digest)
            native = self._native_adapter(file)
            adapter = LoraAdapter(self, name, file.path, file.info)
            with self._lock:
                self._registry.add(adapter, name, native)
            return adapter

    def apply_lora_adapter(self, adapter: LoraAdapter | str, scale: float = 1.0) -> None:
        """Put an adapter into the active set; applied again, its scale is replaced. From the next generation on."""
        with self._held():
            self._active = {**self._active, self._registry.resolve(adapter): check_scale(scale, self.scale_range)}

    def set_lora_adapters(self, scales: Mapping[LoraAdapter | str, float]) -> None:
        """Replace the whole active set; on any error nothing changes."""
        with self._held():
            self._active = {self._registry.resolve(key): check_scale(scale, self.scale_range) for key, scale in scales.items()}

    def remove_lora_adapter(self, adapter: LoraAdapter | str) -> None:
        """Take an adapter out of the active set; it stays loaded. No effect if it is not applied."""
        with self._held():
            resolved = self._registry.resolve(adapter)
            self._active = {other: scale for other, scale in self._active.items() if other is not resolved}

    def clear_all_lora_adapters(self) -> None:
        """Empty the active set; all adapters stay loaded."""
        self.set_lora_adapters({})

    def unload_lora_adapter(self, adapter: LoraAdapter | str) -> None:
        """Take an adapter out of the active set and free it; a generation that runs with it ends with `ClosedError`."""
        with self._between_steps():
            with self._lock:
                resolved = self._registry.resolve(adapter)
                self.remove_lora_adapter(resolved)
                native = self._registry.drop(resolved)
            self._instance.free(native)

    @contextmanager
    def using(self, scales: Mapping[LoraAdapter | str, float]) -> Iterator[Self]:
        """Set the active adapters for a `with` block; the set of before comes back, also after an error."""
        with self._held():
            before = self._active
            self.set_lora_adapters(scales)
        try:
            yield self
        finally:
            with contextlib.suppress(ClosedError), self._held():
                loaded = set(self._registry)
                self._active = {adapter: scale for adapter, scale in before.items() if adapter in loaded}

    @property
    def lora_adapters(self) -> tuple[LoraAdapter, ...]:
        """Every loaded adapter, in order of loading."""
        with self._held():
            return tuple(self._registry)

    @property
    def active_lora_adapters(self) -> dict[str, float]:
        """The active set as {name: scale}, scales of 0 included as given."""
        with self._held():
            return {adapter.name: scale for adapter, scale in self._active.items()}

    def validate_lora_compatibility(self, path: str | os.PathLike[str]) -> CompatibilityReport:
        """Report everything that keeps an adapter, a file or a PEFT folder, from working with this model; nothing is loaded."""
        self._check_open()
        return self._reader.report(path)

    def _lora_set(self, scales: LoraScales | None) -> LoraSet:
        with self._held():
            chosen = self._active if scales is None else {self._registry.resolve(key): scale for key, scale in scales.items()}
            uses = tuple(LoraUse(adapter, self._registry.native(adapter), scale) for adapter, scale in chosen.items())
        return LoraSet(uses, self.scale_range)

    def _native_adapter(self, file: AdapterFile) -> Adapter:
        native = self._instance.add(file.content, label=str(file.path))
        try:
            self._prober.demand_all_used(native, file.pairs)
        except BaseException:
            self._instance.free(native)
            raise
        return native

    def scale_of(self, adapter: LoraAdapter) -> float | None:
        """Scale of `adapter` in the active set, None when it is not in it."""
        with self._held():
            return self._active.get(adapter)

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Hold the lock of names and scales, for moments only: event loops call what needs it.

        In a forked child it may be held by nobody alive, so that is looked at first.
        """
        self._check_open()
        with self._lock:
            self._check_open()
            yield

    @contextmanager
    def _sharing(self) -> Iterator[Model]:
        """Keep the model open for the length of a block, beside whatever generates."""
        self._check_open()
        with self._desk.turns.share():
            yield self._instance.model

    @contextmanager
    def _between_steps(self, *, disturbs: bool = False) -> Iterator[None]:
        """Hold the context between two steps of whatever generates."""
        self._check_open()
        with self._desk.turns.visit(disturbs=disturbs):
            self._check_open()
            yield

    def _check_open(self) -> None:
        self._instance.refuse_fork()
        if self._instance.closed:
            message = f"this Llamafu ({self._base.path.name}) is closed; open a new one"
            raise ClosedError(message)
