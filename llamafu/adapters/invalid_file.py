"""The one error for an adapter file with any number of problems."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamafu.errors import InvalidAdapterFileError

if TYPE_CHECKING:
    from collections.abc import Sequence

_MOST_LISTED = 10
_LONGEST = 1000  # characters of one problem; names in damaged files may be of any length


def invalid_file(name: str, problems: Sequence[str]) -> InvalidAdapterFileError:
    """Return the error for the file `name`: its message lists the first ten `problems`, and `.problems` has all of them."""
    shown = [problem if len(problem) <= _LONGEST else f"{problem[:_LONGEST]}..." for problem in problems]
    if len(problems) == 1:
        return InvalidAdapterFileError(f"{name}: {shown[0]}", problems=tuple(problems))
    listed = "; ".join(f"({number}) {problem}" for number, problem in enumerate(shown[:_MOST_LISTED], 1))
    rest = f"; and {len(problems) - _MOST_LISTED} more in .problems" if len(problems) > _MOST_LISTED else ""
    return InvalidAdapterFileError(f"{name} has {len(problems)} problems: {listed}{rest}", problems=tuple(problems))
