"""Keys: how they are compared, the file that keeps them, and the check of a request."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
import stat
import threading
import time
import tomllib
from typing import TYPE_CHECKING, Literal

from llamafu._util.atomic import whole_file
from llamafu.service.errors import AuthenticationError, PermissionDeniedError
from llamafu.service.keys import check_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

Rights = Literal["admin", "api"]

_LOG = logging.getLogger("llamafu.server")
_CHECK_EVERY = 1.0
"""Seconds between two checks whether the file has changed."""


class KeyRing:
    """Known keys. They are kept as digests: nothing that prints or dumps a ring shows a key. Immutable."""

    def __init__(self, api: Iterable[str] = (), admin: Iterable[str] = ()) -> None:
        # Admin last: where a key is both, the greater right counts.
        known: list[tuple[bytes, Rights]] = [(_digest(check_key(key)), "api") for key in api]
        known += [(_digest(check_key(key)), "admin") for key in admin]
        self._known = tuple(known)

    def rights(self, key: str) -> Rights | None:
        """Return what `key` allows, None for an unknown key, in a time that does not depend on the known keys."""
        digest, found = _digest(key), None
        for known, rights in self._known:
            if hmac.compare_digest(digest, known):
                found = rights
        return found

    def __add__(self, other: KeyRing) -> KeyRing:
        """Return both together."""
        both = KeyRing()
        both._known = tuple(sorted({*self._known, *other._known}, key=lambda known: known[1] == "admin"))
        return both

    def __len__(self) -> int:
        return len(self._known)


class KeyFile:
    """A TOML file with `api_keys` and `admin_keys`, lists of strings, that may change while the server runs. Any thread.

    A change is noticed within a second. If the file cannot be read then, or holds no key, that is logged and the previous
    keys stay valid, so that a mistake in editing it locks nobody out.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the file; `ValueError` or `OSError` when that cannot be done."""
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._stamp = _stamp(path)
        self._checked = clock()
        self._ring = read_keys(path)

    def ring(self) -> KeyRing:
        """Return the current keys, read anew where the file has changed."""
        with self._lock:
            now = self._clock()
            if now - self._checked >= _CHECK_EVERY:
                self._checked = now
                self._read_if_changed()
            return self._ring

    def _read_if_changed(self) -> None:
        try:
            stamp = _stamp(self._path)
            if stamp == self._stamp:
                return
            self._stamp = stamp
            self._ring = read_keys(self._path)
        except (OSError, ValueError) as error:
            _LOG.error("the keys of before stay in use: %s", error)
        else:
            _LOG.info("took %d keys from %s", len(self._ring), self._path)


class Guard:
    """Checks the keys in the headers of requests. Names of headers are in lower case."""

    def __init__(self, ring: Callable[[], KeyRing] | None) -> None:
        """`ring` returns the current keys; None allows everything, which only a server on the loopback may do."""
        self._ring = ring

    def demand(self, needed: Rights | None, headers: Mapping[str, str]) -> Rights | None:
        """Return what a request's keys allow, None where the route needs no key and none is given.

        Raises `AuthenticationError` without a known key, `PermissionDeniedError` when the key does not allow this. Of
        several keys the one that allows most counts, in whichever header it is.
        """
        if self._ring is None:
            return "admin"
        found = self._rights(headers, self._ring())
        if needed is None:
            return found
        if found is None:
            shown = any(True for _ in presented(headers))
            message = "this key is not known" if shown else "no key was given"
            message += "; send it as X-Api-Key, X-Admin-Key or Authorization: Bearer"
            raise AuthenticationError(message)
        if needed == "admin" and found != "admin":
            message = "an api key does not open this; it takes an admin key"
            raise PermissionDeniedError(message)
        return found

    @staticmethod
    def _rights(headers: Mapping[str, str], ring: KeyRing) -> Rights | None:
        found = {ring.rights(key) for key in presented(headers)}
        return "admin" if "admin" in found else "api" if "api" in found else None


def presented(headers: Mapping[str, str]) -> Iterable[str]:
    """Return the keys that a request carries."""
    for name in ("x-api-key", "x-admin-key"):
        if key := headers.get(name, "").strip():
            yield key
    scheme, _, key = headers.get("authorization", "").strip().partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        yield key.strip()


def read_keys(path: Path) -> KeyRing:
    """Read a key file; `ValueError` when it is not one, holds no key, or others may read it; `OSError` when it is not there."""
    mode = path.stat().st_mode
    if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
        message = f"{path} may be read by others (mode {stat.S_IMODE(mode):03o}); run: chmod 600 {path}"
        raise ValueError(message)
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except ValueError as error:  # its message gives the place, not the line's text
        message = f"{path} is not TOML: {error}"
        raise ValueError(message) from None
    lists = {}
    for name in ("api_keys", "admin_keys"):
        lists[name] = data.pop(name, [])
        if not isinstance(lists[name], list) or not all(isinstance(key, str) for key in lists[name]):
            message = f"{path}: {name} is not a list of strings"
            raise ValueError(message)
    if data:
        message = f"{path}: {', '.join(map(repr, data))} is not known; it may hold api_keys and admin_keys"
        raise ValueError(message)
    try:
        ring = KeyRing(lists["api_keys"], lists["admin_keys"])
    except ValueError as error:
        message = f"{path}: {error}"
        raise ValueError(message) from None
    if not ring:
        message = f"{path} holds no key; give at least one in api_keys or admin_keys"
        raise ValueError(message)
    return ring


def write_new_keys(path: Path) -> tuple[str, str]:
    """Generate an api key and an admin key, write them to a file that only its owner may read, and return both."""
    api, admin = f"llamafu-api-{secrets.token_urlsafe(24)}", f"llamafu-admin-{secrets.token_urlsafe(24)}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as unfinished:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(f"# Keys of llamafu serve. Changes are taken over while it runs.\napi_keys = [{api!r}]\n")
            file.write(f"admin_keys = [{admin!r}]\n")
    return api, admin


def _digest(key: str) -> bytes:
    """Hash a key to 32 bytes, so that the time of a comparison does not reveal even its length."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _stamp(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return (found.st_mtime_ns, found.st_size, found.st_ino)
