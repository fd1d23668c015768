"""Public names that are imported when they are first used, so that importing a package alone is fast."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def lazy_names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` for a package, whose names live in the modules `homes`.

    A module is named from the package on (".file") or whole; "module:name" where the name there is another.
    """

    def find(name: str) -> object:
        home = homes.get(name)
        if home is None:
            message = f"module {package!r} has no attribute {name!r}"
            raise AttributeError(message)
        module, _, original = home.partition(":")
        value = getattr(importlib.import_module(module, package), original or name)
        setattr(sys.modules[package], name, value)
        return value

    return find, lambda: sorted(sys.modules[package].__all__)
