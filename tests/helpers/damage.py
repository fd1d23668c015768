"""Damage to files, as data: hypothesis draws it, shrinks it and prints it."""

from __future__ import annotations

import struct

from hypothesis import strategies as st

_TELLING_BYTES = [0, 1, 4, 8, 9, 127, 128, 255]

damages = st.lists(
    st.tuples(
        st.sampled_from(["set", "cut", "insert", "delete", "word"]),
        st.integers(0, 2000),
        st.one_of(st.sampled_from(_TELLING_BYTES), st.integers(0, 255)),
        st.integers(1, 16),
    ),
    min_size=1,
    max_size=4,
)
"""One to four steps for `mutate`."""


def mutate(data, steps):
    """Damage `data` as each (what, where, byte, how many) of `steps` says."""
    out = bytearray(data)
    for what, where, byte, length in steps:
        position = where % (len(out) + 1)
        match what:
            case "set":
                out[position : position + 1] = bytes([byte])
            case "cut":
                del out[position:]
            case "insert":
                out[position:position] = bytes([byte]) * length
            case "delete":
                del out[position : position + length]
            case "word":
                out[position : position + 8] = struct.pack("<Q", (byte * 0x0101010101010101) >> (length * 4))
    return bytes(out)
