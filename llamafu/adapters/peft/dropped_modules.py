"""The modules of a folder that `drop` leaves out of the conversion."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamafu.adapters.peft.module_name import PARTS, part_of

if TYPE_CHECKING:
    from collections.abc import Sequence


_PREFIX = "base_model.model."


class DroppedModules:
    """Matches modules by the part of the model that they belong to or by names in theirs, and remembers what matched."""

    def __init__(self, drop: Sequence[str] | str) -> None:
        """Match the entries of `drop`: parts (`PARTS`), or names such as `layers.3`, which match whole from dot to dot.

        Raises ValueError for an entry that is empty or no text.
        """
        self._drop: dict[str, str] = {}
        """The module name or part to match, by the entry that was given: a tensor's name stands for its module."""
        for one in (drop,) if isinstance(drop, str) else drop:
            if not isinstance(one, str) or not (part := module_of(one).strip(".")):
                message = f"drop has {one!r}; it takes {', '.join(map(repr, PARTS))}, and modules' names or whole parts of them"
                raise ValueError(message)
            self._drop[one] = part
        self._used: set[str] = set()
        self._modules: dict[str, None] = {}

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules that were left out, in order."""
        return tuple(self._modules)

    @property
    def unused(self) -> tuple[str, ...]:
        """The entries of `drop` that matched no module."""
        return tuple(one for one in self._drop if one not in self._used)

    def drops(self, module: str) -> bool:
        """Whether this module is to be left out; remembers it if so."""
        if not self._drop:
            return False
        path, part = f".{module}.", part_of(module)
        found = {given for given, one in self._drop.items() if one == part or f".{one}." in path}
        if found:
            self._used |= found
            self._modules[module] = None
        return bool(found)


def module_of(key: str) -> str:
    """Return the module that a tensor of a PEFT folder belongs to, whether it is a factor or not."""
    return key.removeprefix(_PREFIX).partition(".lora_")[0].removesuffix(".weight").removesuffix(".bias")
