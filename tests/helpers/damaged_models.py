"""Model files with one thing put wrong in the header, made from a seed: what a bad download or converter leaves."""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING

from llamafu.adapters.gguf.reader import read_container

if TYPE_CHECKING:
    from collections.abc import Callable

_WIDTHS = {"UINT8": 1, "INT8": 1, "UINT16": 2, "INT16": 2, "UINT32": 4, "INT32": 4, "FLOAT32": 4, "BOOL": 1, "UINT64": 8}
_BORDERS = (
    0,
    1,
    2,
    3,
    7,
    0x7F,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    1 << 40,
    (1 << 63) - 1,
    (1 << 64) - 1,
)
_FLOATS = (0.0, -1.0, float("nan"), float("inf"), 1e-38, 3e38)
_WORDS = ("", "gpt-4o", "llama", "qwen2", "spm", "gpt2", "bert", "t5", "rwkv", "no such thing", "x" * 300, "\0")


class Damage:
    """Damages one sound model file in ways that a seed chooses."""

    def __init__(self, sound: bytes) -> None:
        self._sound = sound
        self._header = read_container(sound, name="the sound model", whole=False)
        self._keys = sorted(self._header.metadata_spans)

    def file(self, seed: int) -> bytes:
        """Return the file number `seed`."""
        rng = random.Random(seed)  # noqa: S311 - no secret
        ways: list[Callable[[random.Random, bytearray], None]] = [
            self._flip_bytes,
            self._change_number,
            self._change_number,
            self._change_text,
            self._change_array,
            self._change_type,
            self._rename_key,
            self._change_tensor,
            self._change_tensor,
            self._repeat_token,
            self._cut,
        ]
        data = bytearray(self._sound)
        for _ in range(rng.choice((1, 1, 1, 2))):
            rng.choice(ways)(rng, data)
        return bytes(data)

    def _value(self, key: str) -> int:
        """Where the value of `key` begins: behind the key and its type."""
        return self._header.metadata_spans[key][0] + 8 + len(key.encode()) + 4

    def _flip_bytes(self, rng: random.Random, data: bytearray) -> None:
        for _ in range(rng.choice((1, 1, 2, 8))):
            data[rng.randrange(4, min(self._header.data_offset, len(data)))] = rng.randrange(256)

    def _change_number(self, rng: random.Random, data: bytearray) -> None:
        keys = [key for key in self._keys if self._header.metadata_types[key][0] in _WIDTHS]
        key = rng.choice(keys)
        kind = self._header.metadata_types[key][0]
        value = rng.choice(_BORDERS).to_bytes(8, "little")[: _WIDTHS[kind]]
        if kind == "FLOAT32":
            value = struct.pack("<f", rng.choice(_FLOATS))
        data[self._value(key) : self._value(key) + len(value)] = value

    def _change_text(self, rng: random.Random, data: bytearray) -> None:
        """Give a text another value: the header grows or shrinks, and the tensors stay where they belong."""
        key = rng.choice([key for key in self._keys if self._header.metadata_types[key][0] == "STRING"])
        word = rng.choice(_WORDS).encode()
        start, end = self._value(key), self._header.metadata_spans[key][1]
        self._splice(data, start, end, struct.pack("<Q", len(word)) + word)

    def _change_array(self, rng: random.Random, data: bytearray) -> None:
        """Claim another number or type of elements, or change one of them."""
        keys = [key for key in self._keys if self._header.metadata_types[key][0] == "ARRAY"]
        start = self._value(rng.choice(keys))
        way = rng.randrange(3)
        if way == 0:
            data[start : start + 4] = struct.pack("<I", rng.randrange(14))
        elif way == 1:
            data[start + 4 : start + 12] = struct.pack("<Q", rng.choice(_BORDERS))
        else:
            place = start + 12 + rng.randrange(64)
            data[place : place + 4] = struct.pack("<I", rng.choice(_BORDERS) & 0xFFFFFFFF)

    def _change_type(self, rng: random.Random, data: bytearray) -> None:
        start = self._value(rng.choice(self._keys)) - 4
        data[start : start + 4] = struct.pack("<I", rng.randrange(14))

    def _rename_key(self, rng: random.Random, data: bytearray) -> None:
        """Lose a key: libllama then does without it, or does not."""
        start = self._header.metadata_spans[rng.choice(self._keys)][0] + 8
        data[start : start + 1] = b"_"

    def _change_tensor(self, rng: random.Random, data: bytearray) -> None:
        """Change a size, the type or the place of a tensor, or its name."""
        name = rng.choice(list(self._header.tensors)).encode()
        at = self._sound.find(struct.pack("<Q", len(name)) + name)
        fields = at + 8 + len(name)
        dims = struct.unpack_from("<I", self._sound, fields)[0]
        way = rng.randrange(5)
        if way == 0:
            data[fields : fields + 4] = struct.pack("<I", rng.choice((0, 1, 2, 3, 4, 5)))
        elif way == 1:
            place = fields + 4 + 8 * rng.randrange(dims)
            data[place : place + 8] = struct.pack("<Q", rng.choice((*_BORDERS, 16, 32, 64, 96)))
        elif way == 2:
            place = fields + 4 + 8 * dims
            data[place : place + 4] = struct.pack("<I", rng.randrange(45))
        elif way == 3:
            place = fields + 8 + 8 * dims
            data[place : place + 8] = struct.pack("<Q", rng.choice(_BORDERS))
        else:
            data[at + 8 : at + 9] = b"_"

    def _repeat_token(self, rng: random.Random, data: bytearray) -> None:
        """Give one token the text of another of the same length."""
        start = self._value("tokenizer.ggml.tokens") + 12
        places: dict[int, list[int]] = {}
        end = self._header.metadata_spans["tokenizer.ggml.tokens"][1]
        while start < end:
            length = struct.unpack_from("<Q", self._sound, start)[0]
            places.setdefault(length, []).append(start + 8)
            start += 8 + length
        length = rng.choice([length for length, found in places.items() if len(found) > 1 and length])
        one, other = rng.sample(places[length], 2)
        data[one : one + length] = self._sound[other : other + length]

    def _cut(self, rng: random.Random, data: bytearray) -> None:
        del data[rng.choice((rng.randrange(len(data)), len(data) * 3 // 4, self._header.data_offset)) :]

    def _splice(self, data: bytearray, start: int, end: int, new: bytes) -> None:
        """Replace bytes of the header, and pad it so that the tensors keep their alignment."""
        # The last tensor's entry ends where padding begins; more of it than needed would move every tensor.
        last = list(self._header.tensors)[-1].encode()
        at = self._sound.find(struct.pack("<Q", len(last)) + last)
        dims = struct.unpack_from("<I", self._sound, at + 8 + len(last))[0]
        infos = at + 8 + len(last) + 4 + 8 * dims + 12
        header = bytes(data[:start]) + new + bytes(data[end:infos])
        data[:] = header + bytes(-len(header) % self._header.alignment) + data[self._header.data_offset :]
