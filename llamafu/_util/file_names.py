"""Names that files of a folder, and what is in them, go by."""

from __future__ import annotations

from llamafu._util.system.files import is_device_name

_LONGEST = 200
"""Bytes of a name: with the suffix it fits every file system."""
NAME_RULE = f"letters, digits, blanks and - _ . of at most {_LONGEST} bytes"


def is_name(name: str) -> bool:
    """Whether `name` can be that of an adapter or a mix: one part of a path, visible, printable, and not too long."""
    return (
        name.isprintable()  # which lone surrogates are not
        and 0 < len(name.encode()) <= _LONGEST
        and not name.startswith(".")
        and name == name.strip()
        and not set(name) & set('/\\:*?"<>|')
        and not is_device_name(name)
    )
