"""`LoraAdapter`: the handle of an adapter that a `Llamafu` has loaded."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Protocol

from llamafu.errors import ClosedError, LoraError

if TYPE_CHECKING:
    from pathlib import Path

    from llamafu.adapters.info import AdapterInfo


class AdapterOwner(Protocol):
    """What a handle needs of the object that loaded it."""

    def apply(self, adapter: LoraAdapter, scale: float) -> None:
        """Put the adapter into the active set, or replace its scale there."""

    def remove(self, adapter: LoraAdapter) -> None:
        """Take the adapter out of the active set; it stays loaded."""

    def unload(self, adapter: LoraAdapter) -> None:
        """Take the adapter out of the active set and free it."""

    def scale_of(self, adapter: LoraAdapter) -> float | None:
        """Return the adapter's scale in the active set, None when it is not in it."""


class LoraAdapter:
    """A loaded adapter of one `Llamafu`. Any thread may call its methods.

    It holds a weak reference to its owner: when that is closed or gone, the methods raise `ClosedError`. The same content
    loaded twice is the same object under one more name; `name` is the first one.
    """

    def __init__(self, owner: AdapterOwner, name: str, path: Path, info: AdapterInfo) -> None:
        # Weak: a reference cycle would keep a dropped Llamafu's memory until the cyclic garbage collector runs.
        self._owner = weakref.ref(owner)
        self.name = name
        self.path = path
        self.info = info

    @property
    def digest(self) -> str:
        """SHA-256 of the file's content, in hex."""
        return self.info.digest

    @property
    def scale(self) -> float:
        """Scale in the owner's active set; 0.0 when it is not in the set."""
        return self._open_owner.scale_of(self) or 0.0

    @property
    def is_active(self) -> bool:
        """True when it is in the owner's active set, at whatever scale."""
        return self._open_owner.scale_of(self) is not None

    def apply(self, scale: float = 1.0) -> None:
        """Put it into the active set at `scale`, or replace its scale there."""
        self._open_owner.apply(self, scale)

    def set_scale(self, scale: float) -> None:
        """Replace the scale of an adapter that is in the active set; `LoraError` when it is not."""
        if not self.is_active:
            message = f"the adapter {self.name!r} is not applied, so it has no scale to change; call apply({scale})"
            raise LoraError(message)
        self._open_owner.apply(self, scale)

    def remove(self) -> None:
        """Take it out of the active set; it stays loaded."""
        self._open_owner.remove(self)

    def unload(self) -> None:
        """Take it out of the active set and free it."""
        self._open_owner.unload(self)

    @property
    def _open_owner(self) -> AdapterOwner:
        owner = self._owner()
        if owner is None:
            message = f"the Llamafu that loaded the adapter {self.name!r} is gone; keep it for as long as its adapters are used"
            raise ClosedError(message)
        return owner

    def __repr__(self) -> str:
        return f"<LoraAdapter {self.name!r} rank={self.info.rank} digest={self.digest[:12]}>"
