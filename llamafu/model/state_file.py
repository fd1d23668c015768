"""State files: the KV memory of a computed prompt, and what it was computed from.

Layout: magic, 8-byte little-endian length of a JSON header, the header, libllama's own dump. The header names the model
(SHA-256), the library build and the segments with their adapter states (digests and scales), so that a state is never
used with another model or adapter; it also has the dump's SHA-256.
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamafu._native.checks import explain
from llamafu._util.atomic import whole_file
from llamafu.errors import StateFileError
from llamafu.model.prefix_cache import Segment

if TYPE_CHECKING:
    from llamafu.model.session import Session

_MAGIC = b"LLAMAFU1"
_LENGTH = 8


def save(path: Path, session: Session) -> None:
    """Write the state atomically; the file is complete or absent."""
    if any(segment.media is not None for segment in session.cache.segments):
        message = "the computed prompt has media, which no state file holds; save the state of a text"
        raise StateFileError(message)
    dump = session.instance.context.dump()
    header = json.dumps(
        {
            **_identity(session),
            "segments": [[list(segment.tokens), [list(pair) for pair in segment.state]] for segment in session.cache.segments],
            "dump": hashlib.sha256(dump).hexdigest(),
        }
    ).encode()
    with whole_file(path) as unfinished:
        unfinished.write_bytes(_MAGIC + len(header).to_bytes(_LENGTH, "little") + header + dump)


def load(path: Path, session: Session) -> int:
    """Restore the state and return its number of tokens; on any error the KV memory is as before or empty."""
    header, dump = _read(path)
    for what, value in _identity(session).items():
        if header.get(what) != value:
            message = f"{path} was saved with another {what} ({header.get(what)!r}, not {value!r}); it cannot be used here"
            raise StateFileError(message)
    segments = [
        Segment(tuple(tokens), tuple((digest, scale) for digest, scale in state)) for tokens, state in header["segments"]
    ]
    session.cache.clear()
    if segments and not session.instance.context.restore(dump):
        session.cache.clear()
        message = f"{path} does not fit this context; open the model with the n_ctx and KV types that it was saved with"
        raise StateFileError(explain(session.instance.library, message))
    session.cache.replace(segments)
    return len(session.cache)


def _identity(session: Session) -> dict[str, Any]:
    model = session.base.path
    library, options = session.instance.library, session.instance.context.options
    return {
        "model": _file_digest(str(model.resolve()), model.stat().st_mtime_ns, model.stat().st_size),
        "library": f"{library.version} {library.family}",
        "KV type": [options.type_k, options.type_v, options.flash_attn],
    }


def _read(path: Path) -> tuple[dict[str, Any], bytes]:
    raw = path.read_bytes()
    start = len(_MAGIC) + _LENGTH
    end = start + int.from_bytes(raw[len(_MAGIC) : start], "little")
    try:
        header = json.loads(raw[start:end]) if raw.startswith(_MAGIC) and end <= len(raw) else None
    except ValueError:
        header = None
    dump = raw[end:]
    if not isinstance(header, dict) or header.get("dump") != hashlib.sha256(dump).hexdigest():
        message = f"{path} is no state file of Llamafu, or is damaged; save it again with save_state"
        raise StateFileError(message)
    return header, dump


@functools.lru_cache(maxsize=8)
def _file_digest(path: str, _mtime: int, _size: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
