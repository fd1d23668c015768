"""`EngineAdapterHost`: the part of an engine's public surface that is about adapters and mixes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamafu.hub.local import local_adapter

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping
    from pathlib import Path

    from llamafu.adapters.info import AdapterInfo
    from llamafu.engine.adapter_manager import AdapterManager
    from llamafu.engine.bank_contents import BankContents


class EngineAdapterHost:
    """Adapters of an engine, over its `AdapterManager`. Any thread may call any method."""

    _adapters: AdapterManager

    def add_adapter(self, path: str | os.PathLike[str], *, name: str | None = None) -> AdapterInfo:
        """Check and register an adapter: a GGUF file, a PEFT folder, or `hf:owner/repo`; running requests go on meanwhile.

        `name` defaults to the file's name without its suffix, or the folder's. Its weights are read when a request needs
        them, so the file has to stay; when it changes, requests from then on run with the new content, those that were
        submitted before keep the old one. Raises `InvalidAdapterFileError`, `LoraIncompatibleError`, `LoraLoadError`,
        `HubError`; `LoraError` when the name is another's.
        """
        return self._adapters.add(local_adapter(path), name)

    def remove_adapter(self, name: str) -> None:
        """Forget an adapter; running requests keep it to their end.

        Raises `LoraNotFoundError`; `LoraError` while it is active or part of a mix.
        """
        self._adapters.remove(name)

    def pin_adapter(self, name: str) -> None:
        """Read an adapter into the bank now, and keep it there until it is removed.

        Raises `LoraNotFoundError`; `LoraError` when the bank cannot hold it, or not now.
        """
        self._adapters.pin(name)

    @property
    def adapters(self) -> dict[str, AdapterInfo]:
        """Every registered adapter, by name."""
        return self._adapters.infos()

    def adapter_path(self, name: str) -> Path:
        """Return the file or folder that an adapter was added from; `LoraNotFoundError`."""
        return self._adapters.source(name)

    def bank_contents(self) -> BankContents:
        """Return what the bank holds now; a running step may be changing it."""
        return self._adapters.bank_contents()

    @property
    def lora_targets(self) -> frozenset[str]:
        """Names of the model's tensors that adapters can change: those that its graph multiplies by them."""
        return self._adapters.targets

    @property
    def active_lora_adapters(self) -> dict[str, float]:
        """What a request with `lora=None` runs with: scale by name."""
        return dict(self._adapters.active)

    def set_lora_adapters(self, scales: Mapping[str, float], *, include_queued: bool = False) -> None:
        """Replace the active set, for requests submitted from now on; on any error nothing changes.

        A mix's name stands for its adapters of now. `include_queued`: requests with `lora=None` that have not started before
        the next step take the new set too.
        """
        self._adapters.set_active(scales, include_queued=include_queued)

    def add_mix(self, name: str, scales: Mapping[str, float], *, overwrite: bool = False) -> None:
        """Give a set of registered adapters with scales a name, which `lora=` and `set_lora_adapters` take like an adapter's.

        There, the mix's scale multiplies those of its adapters, and what an adapter gets from several names adds up. Requests
        that were submitted before keep the mix as it was. Raises `LoraNotFoundError`, `InvalidScaleError`; `LoraError` when
        the name is an adapter's, or another mix's and not to be overwritten; ValueError and TypeError for no name or no set.
        """
        self._adapters.add_mix(name, scales, overwrite=overwrite)

    def remove_mix(self, name: str) -> None:
        """Forget a mix; its adapters stay, also in the active set. `LoraNotFoundError`."""
        self._adapters.mixes.remove(name)

    @property
    def mixes(self) -> dict[str, dict[str, float]]:
        """Every mix by name: scale by adapter."""
        return self._adapters.mixes.all()
