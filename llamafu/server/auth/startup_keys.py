"""The keys that a server starts with: given, read from a file, or generated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamafu._util.paths import data_dir
from llamafu.server.auth.keys import Guard, KeyFile, KeyRing, write_new_keys

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from llamafu.server.settings import Settings

_NAME = "serve-keys.toml"


def load_startup_keys(settings: Settings, tell: Callable[[str], None]) -> Guard:
    """Return the guard for these settings.

    Keys given one by one are valid together with those of a file that was named. Without either, the file in the user's data
    folder counts; when that is missing it is generated, and `tell` is called with the new keys. `ValueError` or `OSError` when
    a file cannot be used.
    """
    if settings.no_auth:
        return Guard(None)
    given = KeyRing(settings.api_key, settings.admin_key)
    path = startup_key_file(settings, tell)
    if path is None:
        return Guard(lambda: given)
    file = KeyFile(path)
    return Guard(lambda: given + file.ring())


def startup_key_file(settings: Settings, tell: Callable[[str], None]) -> Path | None:
    """Return the file whose keys count, which is made as `load_startup_keys` says; None where only given keys do, or none."""
    if settings.no_auth or (settings.keys is None and (settings.api_key or settings.admin_key)):
        return None
    path = settings.keys or data_dir() / _NAME
    if settings.keys is None and not path.exists():
        api, admin = write_new_keys(path)
        tell(f"new keys, kept in {path} and not shown again:")
        tell(f"  api key    {api}")
        tell(f"  admin key  {admin}")
    return path
