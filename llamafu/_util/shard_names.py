"""The names of the files that a split GGUF model consists of."""

from __future__ import annotations

import re

_SHARD = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf")


def shard_names(name: str) -> list[str]:
    """Return the names of all parts of the model that the file `name` belongs to, in order: itself alone if it is no part."""
    match = _SHARD.fullmatch(name)
    if match is None or not int(match[3]):
        return [name]
    stem, _, count = match.groups()
    return [f"{stem}-{number:05d}-of-{count}.gguf" for number in range(1, int(count) + 1)]
