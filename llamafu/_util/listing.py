"""Long lists in messages: the first items and a count."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

_SHOWN = 5


def listed(items: Collection[object], separator: str = ", ") -> str:
    """Join items for a message: at most five of them, and how many more there are; "none" where there are none.

    A model has hundreds of tensors, and a list of all of them hides what the message says.
    """
    shown = [str(item) for _, item in zip(range(_SHOWN), items, strict=False)]
    more = len(items) - len(shown)
    return separator.join(shown) + (f" and {more} more" if more else "") if shown else "none"
