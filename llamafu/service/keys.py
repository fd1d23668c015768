"""What a key may be made of, checked where a client sends it and where a server takes it."""

from __future__ import annotations


def fits_header(key: str) -> bool:
    """Whether a key can be a header's value: visible ASCII characters, at least one, and no blank among them."""
    return bool(key) and all("!" <= character <= "~" for character in key)
