"""The one place where a path that may be on the hub becomes one on this machine."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from llamafu.hub.reference import PREFIX, HubReference

if TYPE_CHECKING:
    import os

    from llamafu.hub.choice import Kind

logger = logging.getLogger("llamafu.hub")


def is_reference(path: str | os.PathLike[str]) -> bool:
    """Whether a path is meant to be on the hub: it begins with `hf:`. A file of such a name goes by its absolute path."""
    return _text(path).startswith(PREFIX)


def local_model(path: str | os.PathLike[str]) -> Path:
    """Return `path`, or for a reference to a model on the hub where its GGUF file is here, fetched if need be; `HubError`."""
    return _local("model", path)


def local_adapter(path: str | os.PathLike[str]) -> Path:
    """Return `path`, or for a reference to the hub where the adapter's file or folder is here, fetched if need be; `HubError`.

    Paths that a client of a server gives must not come here: they would make it fetch.
    """
    return _local("adapter", path)


def local_projector(path: str | os.PathLike[str]) -> Path:
    """Return `path`, or for a reference to the hub where the projector is here, fetched if need be; `HubError`."""
    return _local("projector", path)


def _local(kind: Kind, path: str | os.PathLike[str]) -> Path:
    if not is_reference(path):
        return Path(path)
    # Imported here since most paths are on this machine.
    from llamafu.hub.choice import choose
    from llamafu.hub.download import fetch

    reference = HubReference.parse(_text(path))
    found = fetch(reference, partial(choose, kind, reference))
    logger.info("%s is %s", reference, found)
    return found


def _text(path: str | os.PathLike[str]) -> str:
    """Return a path with slashes, which Windows' paths do not have."""
    return path if isinstance(path, str) else Path(path).as_posix()
