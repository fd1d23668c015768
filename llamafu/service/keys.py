"""What a key may be made of, checked where a client sends it and where a server takes it."""

from __future__ import annotations


def fits_header(key: str) -> bool:
    """Whether a key can be a header's value: visible ASCII characters, at least one, and no blank among them."""
    return bool(key) and all("!" <= character <= "~" for character in key)


def check_key(key: str) -> str:
    """Return a key that can travel in a header; `ValueError`, without the key in it, for any other."""
    if not fits_header(key):
        message = f"a key {'holds a blank or a character beyond ASCII' if key else 'is empty'}; use letters, digits and - _ ."
        raise ValueError(message)
    return key
