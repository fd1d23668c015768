"""API keys: sent in headers, kept out of everything else."""

from __future__ import annotations

from llamafu.service.keys import fits_header


class Credentials:
    """The keys of one client. They appear in the headers of its requests only, never in a repr or a message."""

    def __init__(self, api_key: str | None, admin_key: str | None, bearer_token: str | None) -> None:
        given = {"api_key": api_key, "admin_key": admin_key, "bearer_token": bearer_token}
        self._keys = {name: _checked(name, key) for name, key in given.items() if key is not None}

    def headers(self) -> dict[str, str]:
        """Return the headers that carry the keys.

        An admin key without an api key is sent as `X-Api-Key` too: TabbyAPI reads that header on routes for any key.
        """
        keys, headers = self._keys, {}
        if "admin_key" in keys:
            headers["X-Admin-Key"] = keys["admin_key"]
        if "api_key" in keys or keys.keys() == {"admin_key"}:
            headers["X-Api-Key"] = keys.get("api_key", keys.get("admin_key", ""))
        if "bearer_token" in keys:
            headers["Authorization"] = f"Bearer {keys['bearer_token']}"
        return headers

    def redact(self, text: str) -> str:
        """Return a server's text with each key in it replaced by "[key]"."""
        for key in sorted(self._keys.values(), key=len, reverse=True):
            text = text.replace(key, "[key]")
        return text

    def __repr__(self) -> str:
        return f"<keys: {', '.join(self._keys) or 'none'}>"


def _checked(name: str, key: object) -> str:
    """Return the key if a header can carry it. The check is here since httpx's own error would quote the key."""
    if not isinstance(key, str):
        message = f"{name} is of type {type(key).__name__}; give a string"
        raise TypeError(message)
    if not fits_header(key):
        flaw = "holds a blank, a line end or a character beyond ASCII" if key else "is empty"
        message = f"{name} {flaw}; give the key as it was printed"
        raise ValueError(message)
    return key
