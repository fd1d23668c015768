"""The files of a baked model: their names, what they must not replace, and the disk space that they need."""

from __future__ import annotations

import errno
import re
import shutil
from typing import TYPE_CHECKING

from llamafu.adapters.gguf.container import SUFFIX
from llamafu.adapters.writer import refuse_source
from llamafu.baking.writer import lengths
from llamafu.errors import ModelLoadError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from llamafu.adapters.gguf.base_model import BaseModel
    from llamafu.adapters.gguf.ggml_type import GGMLType
    from llamafu.adapters.gguf.shard import Shard

_SHARD_NAME = re.compile(r"-[0-9]{5}-of-[0-9]{5}$")


def output_paths(output: Path, base: BaseModel, shards: Sequence[Shard]) -> list[Path]:
    """Return the files to write, one for each shard: for two, `big.gguf` becomes `big-00001-of-00002.gguf` and the next.

    Raises ValueError for an `output` named like a shard of another number, ModelLoadError where `base` is one shard of some
    that its name does not lead to.
    """
    count = shards[0].container.metadata.get("split.count", 1)
    if count not in (0, 1, len(shards)):
        message = (
            f"{base.path} is one of {count} shards (split.count), and its name does not lead to the others; give them the "
            "names that they had, which end in -00001-of-00002.gguf or the like"
        )
        raise ModelLoadError(message)
    match = _SHARD_NAME.search(output.stem)
    if len(shards) > 1:
        stem = output.stem[: match.start()] if match else output.stem
        count = len(shards)
        outputs = [output.with_name(f"{stem}-{number:05d}-of-{count:05d}{SUFFIX}") for number in range(1, count + 1)]
        fits = match is None or output in outputs
    else:
        outputs, fits = [output], match is None
    if not fits:
        message = f"{output} is named like a shard, and the result has {len(shards)} files; give a name without -NNNNN-of-NNNNN"
        raise ValueError(message)
    return outputs


def refuse_sources(outputs: Sequence[Path], shards: Sequence[Shard], adapters: Iterable[str | os.PathLike[str]]) -> None:
    """Raise ValueError where a file to write is one of the files that are read, or lies in the folder of an adapter."""
    for place in outputs:
        refuse_source(place, [shard.path for shard in shards], what="files of the model")
        refuse_source(place, adapters)


def demand_space(outputs: Sequence[Path], shards: Sequence[Shard], kinds: Mapping[str, GGMLType]) -> None:
    """Raise OSError (ENOSPC) where the result, with tensors of the types `kinds`, would not fit on its disk."""
    folder = outputs[0].parent
    if not folder.is_dir():
        return  # the writer reports it
    wanted = sum(len(shard.head) + sum(lengths(shard, kinds).values()) for shard in shards)
    free = shutil.disk_usage(folder).free
    if wanted > free:
        message = f"the result takes {wanted} bytes, and {free} are free in {folder}; free some, or choose another place for"
        raise OSError(errno.ENOSPC, message, str(outputs[0]))
