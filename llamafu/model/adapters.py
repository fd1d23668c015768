"""The adapters of one `Llamafu`: which are loaded, under which names, and which are in the active set."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from llamafu.adapters.compatibility import CompatibilityReport, demand_fit
from llamafu.adapters.file import default_name
from llamafu.adapters.reader import AdapterReader
from llamafu.errors import ClosedError, LoraError
from llamafu.lora.active_set import LoraSet, LoraUse
from llamafu.lora.handles import LoraAdapter
from llamafu.lora.mixes import NamedMixes
from llamafu.lora.registry import HandleRegistry, LoadedAdapter
from llamafu.lora.scales import check_scale

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from llamafu._native.adapter import Adapter
    from llamafu.adapters.file import AdapterFile
    from llamafu.lora.scales import LoraScales, Scale
    from llamafu.model.session import Session

_T = TypeVar("_T")


class ModelAdapters:
    """Loads adapters into one model, and keeps the active set: what a call with `lora=None` runs with. Any thread.

    Every method raises `ClosedError` after the session's end, and `LoraNotFoundError` for an adapter that is not loaded.
    """

    def __init__(self, session: Session, scale_range: tuple[float, float]) -> None:
        self._session = session
        self._reader = AdapterReader(session.base)
        self._scale_range = scale_range
        self._registry = HandleRegistry()
        self._mixes = NamedMixes(scale_range)
        self._active: dict[LoraAdapter, float] = {}
        self._fitting: set[str] = set()  # digests of contents that were compared with the model
        self._lock = threading.RLock()

    def load(self, path: str | os.PathLike[str], *, name: str | None, drop: Sequence[str]) -> LoraAdapter:
        """Check and load an adapter, or give one that is loaded one more name."""
        self._session.check_open()
        file = self._reader.read(path, drop=drop)
        name = default_name(file.path) if name is None else name
        with self._session.between_steps():
            with self._lock:
                self._registry.check_name(name, file.digest)
                self._mixes.refuse_taken(name)
                known = self._registry.find_content(file.digest)
                if known is not None:
                    self._registry.register(known, name, self._registry.native(known))
                    return known
            if file.digest not in self._fitting:
                demand_fit(file, self._session.base)
            self._fitting.add(file.digest)
            native = self._load_native(file)
            adapter = LoraAdapter(self, name, file.path, file.info)
            with self._lock:
                self._registry.register(adapter, name, native)
            return adapter

    def apply(self, adapter: LoraAdapter | str, scale: float) -> None:
        """Put an adapter into the active set, or replace its scale there."""
        with self._locked():
            self._active = {**self._active, self._registry.resolve(adapter): check_scale(scale, self._scale_range)}

    def set_active(self, scales: Mapping[LoraAdapter | str, float]) -> None:
        """Replace the whole active set; on any error nothing changes."""
        with self._locked():
            self._active = {key: check_scale(scale, self._scale_range) for key, scale in self._resolved(scales).items()}

    def remove(self, adapter: LoraAdapter | str) -> None:
        """Take an adapter out of the active set; it stays loaded."""
        with self._locked():
            resolved = self._registry.resolve(adapter)
            self._active = {other: scale for other, scale in self._active.items() if other is not resolved}

    def unload(self, adapter: LoraAdapter | str) -> None:
        """Take an adapter out of the active set and free it."""
        with self._session.between_steps():
            with self._lock:
                resolved = self._registry.resolve(adapter)
                for name in self._registry.names(resolved):
                    self._mixes.refuse_used(name)
                self.remove(resolved)
                native = self._registry.unregister(resolved)
            self._session.instance.free(native)

    def add_mix(self, name: str, scales: Mapping[LoraAdapter | str, float], *, overwrite: bool) -> None:
        """Check that a mix can act, and give it its name."""
        with self._locked():
            checked = self._mixes.checked(name, self._by_name(scales))
            self._registry.refuse_taken(name)
            self._resolved(checked)
            self._mixes.add(name, checked, overwrite=overwrite)

    def remove_mix(self, name: str) -> None:
        """Forget a mix."""
        with self._locked():
            self._mixes.remove(name)

    @property
    def mixes(self) -> dict[str, dict[str, float]]:
        """Every mix by name: scale by adapter."""
        with self._locked():
            return self._mixes.all()

    @contextmanager
    def using(self, scales: Mapping[LoraAdapter | str, float]) -> Iterator[None]:
        """Replace the active set for a `with` block; adapters that were unloaded in it do not come back."""
        with self._locked():
            before = self._active
            self.set_active(scales)
        try:
            yield
        finally:
            with contextlib.suppress(ClosedError), self._locked():
                loaded = set(self._registry)
                self._active = {adapter: scale for adapter, scale in before.items() if adapter in loaded}

    @property
    def loaded(self) -> tuple[LoraAdapter, ...]:
        """Every loaded adapter, in order of loading."""
        with self._locked():
            return tuple(self._registry)

    @property
    def active(self) -> dict[str, float]:
        """The active set as {name: scale}, scales of 0 included as given."""
        with self._locked():
            return {adapter.name: scale for adapter, scale in self._active.items()}

    def scale_of(self, adapter: LoraAdapter) -> float | None:
        """Return the adapter's scale in the active set, None when it is not in it."""
        with self._locked():
            return self._active.get(adapter)

    def native(self, adapter: LoraAdapter | str) -> Adapter:
        """Return the native adapter of a loaded one."""
        with self._locked():
            return self._registry.native(self._registry.resolve(adapter))

    def report(self, path: str | os.PathLike[str]) -> CompatibilityReport:
        """Report everything that keeps an adapter from working with this model."""
        self._session.check_open()
        return self._reader.report(path)

    def lora_set(self, scales: LoraScales | None) -> LoraSet[LoadedAdapter]:
        """Return the set of one call: `scales`, or the active set for None. Functions are called for step 0."""
        with self._locked():
            chosen = self._active if scales is None else self._resolved(scales)
            loaded = [(LoadedAdapter(adapter, self._registry.native(adapter)), scale) for adapter, scale in chosen.items()]
        uses = [
            LoraUse(adapter.handle.name, adapter, scale if callable(scale) else check_scale(scale, self._scale_range))
            for adapter, scale in loaded
        ]
        return LoraSet(uses, self._scale_range)

    def _by_name(self, scales: Mapping[Any, _T]) -> dict[str, _T]:
        """Return the same scales by names alone; TypeError for no mapping, `LoraError` for an adapter that is given twice."""
        if not isinstance(scales, Mapping):
            message = (
                f"{scales!r} is no mapping of adapters to scales; give {{adapter or name: scale}}, or {{}} for the base model"
            )
            raise TypeError(message)
        found: dict[str, _T] = {}
        for key, scale in scales.items():
            name = key if isinstance(key, str) else self._registry.resolve(key).name
            if name in found:
                message = f"the adapter {name!r} was given twice, by its name and as an object; give it once"
                raise LoraError(message)
            found[name] = scale
        return found

    def _resolved(self, scales: Mapping[Any, Scale]) -> dict[LoraAdapter, Scale]:
        """Return scales by adapter, those of mixes written out; `LoraError` for an adapter that is given by two names."""
        found: dict[LoraAdapter, Scale] = {}
        for name, scale in self._mixes.expand(self._by_name(scales)).items():
            adapter = self._registry.resolve(name)
            if adapter in found:
                message = f"{name!r} is one more name of an adapter that is given already ({adapter.name!r}); give it once"
                raise LoraError(message)
            found[adapter] = scale
        return found

    def _load_native(self, file: AdapterFile) -> Adapter:
        instance = self._session.instance
        native = instance.add(file.content, label=str(file.path))
        try:
            self._session.prober.demand_all_used(native, file.pairs)
        except BaseException:
            instance.free(native)
            raise
        return native

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of names and scales, for moments only: event loops call the methods that take it.

        In a forked child a thread that does not exist there may hold it, so `check_open` comes first.
        """
        self._session.check_open()
        with self._lock:
            self._session.check_open()
            yield
