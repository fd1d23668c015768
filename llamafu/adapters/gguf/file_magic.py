"""The kind of a file that is no GGUF file, by its first bytes, so that a message can name it and say what to do."""

from __future__ import annotations

_MAGICS = (
    (b"PK\x03\x04", "a zip archive, perhaps a PyTorch checkpoint (.bin, .pt)"),
    (b"\x80\x02", "a Python pickle, perhaps a PyTorch checkpoint (.bin, .pt)"),
    (b"\x80\x04", "a Python pickle"),
    (b"\x80\x05", "a Python pickle"),
    (b"algg", "an adapter in the GGLA format of 2023, which libllama no longer reads"),
    (b"lmgg", "a model in the GGML format of 2023, which libllama no longer reads"),
    (b"fmgg", "a model in the GGMF format of 2023, which libllama no longer reads"),
    (b"tjgg", "a model in the GGJT format of 2023, which libllama no longer reads"),
    (b"version https://git-lfs", "a Git LFS pointer: the file itself was not downloaded"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x7fELF", "a program or library (ELF)"),
    (b"<", "a web page or XML"),
    (b"{", "JSON text"),
)
_SAFETENSORS_HEADER_LIMIT = 100_000_000  # bytes; the format's own limit

HEAD_BYTES = 64
"""The number of leading bytes that `describe_magic` needs."""


def describe_magic(head: bytes) -> str:
    """Return the kind of a file that begins with the bytes `head`, as the end of a sentence."""
    if not head:
        return "an empty file"
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _SAFETENSORS_HEADER_LIMIT:  # noqa: PLR2004
        return "a safetensors file; give the folder of the PEFT adapter that it is in, or convert that (`llamafu convert`)"
    if (kind := known_kind(head)) is not None:
        return kind
    if not any(head):
        return "nothing but zeros: an unfinished download?"
    return f"no format known here: it begins with {head[:4]!r} where b'GGUF' belongs"


def known_kind(head: bytes) -> str | None:
    """Return the kind of a file that begins with `head`, if that has a magic number."""
    return next((kind for magic, kind in _MAGICS if head.startswith(magic)), None)
