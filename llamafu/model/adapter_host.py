"""`ModelAdapterHost`: the part of a `Llamafu`'s public surface that is about adapters and mixes of them."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

    from llamafu.adapters.compatibility import CompatibilityReport
    from llamafu.lora.handles import LoraAdapter
    from llamafu.model.adapters import ModelAdapters


class ModelAdapterHost:
    """Adapters of a model, over its `ModelAdapters`. Any thread may call any method."""

    _adapters: ModelAdapters

    def load_lora_adapter(
        self, path: str | os.PathLike[str], *, name: str | None = None, drop: Sequence[str] = ()
    ) -> LoraAdapter:
        """Check and load an adapter: a GGUF file, a PEFT folder (converted in memory), or `hf:owner/repo`; not applied yet.

        `name` defaults to the file's name without its suffix, or the folder's. The same content loaded again is the same
        object under one more name. `drop` leaves modules of a folder out, such as those of "vision", as `convert_peft` does.

        Raises `InvalidAdapterFileError`, `LoraIncompatibleError` (with every mismatch) or `LoraLoadError`; `LoraError` when
        the name belongs to other content, or to a mix.
        """
        return self._adapters.load(path, name=name, drop=drop)

    def apply_lora_adapter(self, adapter: LoraAdapter | str, scale: float = 1.0) -> None:
        """Put an adapter into the active set; applied again, its scale is replaced. From the next generation on."""
        self._adapters.apply(adapter, scale)

    def set_lora_adapters(self, scales: Mapping[LoraAdapter | str, float]) -> None:
        """Replace the whole active set; on any error nothing changes.

        `scales` is {adapter or its name: scale}, {} for the base model. A mix's name stands for its adapters of now. Raises
        `LoraNotFoundError`, `InvalidScaleError`; TypeError for what is no mapping.
        """
        self._adapters.set_active(scales)

    def remove_lora_adapter(self, adapter: LoraAdapter | str) -> None:
        """Take an adapter out of the active set; it stays loaded. No effect if it is not applied."""
        self._adapters.remove(adapter)

    def clear_all_lora_adapters(self) -> None:
        """Empty the active set; all adapters stay loaded."""
        self._adapters.set_active({})

    def unload_lora_adapter(self, adapter: LoraAdapter | str) -> None:
        """Take an adapter out of the active set and free it; a generation that runs with it ends with `ClosedError`.

        Raises `LoraError` while it is part of a mix.
        """
        self._adapters.unload(adapter)

    @contextmanager
    def using(self, scales: Mapping[LoraAdapter | str, float]) -> Iterator[Self]:
        """Set the active adapters for a `with` block; the previous set comes back, also after an error."""
        with self._adapters.using(scales):
            yield self

    @property
    def lora_adapters(self) -> tuple[LoraAdapter, ...]:
        """Every loaded adapter, in order of loading."""
        return self._adapters.loaded

    @property
    def active_lora_adapters(self) -> dict[str, float]:
        """The active set as {name: scale}, scales of 0 included as given."""
        return self._adapters.active

    def add_mix(self, name: str, scales: Mapping[LoraAdapter | str, float], *, overwrite: bool = False) -> None:
        """Give a set of loaded adapters with scales a name, which `lora=`, `using` and `set_lora_adapters` take.

        There, the mix's scale multiplies those of its adapters, and what an adapter gets from several names adds up. Raises
        `LoraNotFoundError`, `InvalidScaleError`; `LoraError` when the name is an adapter's, or another mix's and not to be
        overwritten; ValueError and TypeError for no name or no set.
        """
        self._adapters.add_mix(name, scales, overwrite=overwrite)

    def remove_mix(self, name: str) -> None:
        """Forget a mix; its adapters stay, also in the active set. `LoraNotFoundError`."""
        self._adapters.remove_mix(name)

    @property
    def mixes(self) -> dict[str, dict[str, float]]:
        """Every mix by name: scale by adapter."""
        return self._adapters.mixes

    def validate_lora_compatibility(self, path: str | os.PathLike[str]) -> CompatibilityReport:
        """Report everything that keeps an adapter, a file or a PEFT folder, from working with this model; nothing is loaded."""
        return self._adapters.report(path)
