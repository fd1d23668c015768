"""The container reader: every defect has its own message, and no damage gets any other exception out of it."""

from __future__ import annotations

import re
import struct
import time

import gguf
import numpy as np
import pytest
from helpers.cpu_time import best_cpu_seconds
from helpers.damage import damages, mutate
from helpers.gguf_bytes import (
    ARRAY,
    BOOL,
    F32,
    F64,
    GGML_Q8_0,
    I32,
    STRING,
    U8,
    U32,
    U64,
    Tensor,
    adapter_bytes,
    adapter_tensors,
    base_bytes,
    gguf_bytes,
    replaced,
    text,
    typed,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llamafu.adapters.gguf.ggml_type import BLOCKS, GGMLType
from llamafu.adapters.gguf.reader import read_container
from llamafu.errors import InvalidAdapterFileError

TENSORS = adapter_tensors()


def read(data, **options):
    return read_container(data, name="file.gguf", **options)


def problems_of(data, **options):
    with pytest.raises(InvalidAdapterFileError) as caught:
        read(data, **options)
    assert str(caught.value).startswith("file.gguf")
    return caught.value.problems


def with_values(*pairs):
    return gguf_bytes(list(pairs), [])


@pytest.mark.parametrize("view", [bytes, memoryview, bytearray])
def test_every_kind_of_value_is_read_as_written(view):
    data = with_values(
        ("a", typed(U8, 200)),
        ("b", typed(I32, -5)),
        ("c", typed(F32, 0.5)),
        ("d", typed(BOOL, 1)),
        ("e", typed(STRING, "Arrr ☠")),
        ("f", typed(U64, 1 << 63)),
        ("g", typed(F64, 0.1)),
        ("i", typed(ARRAY, (STRING, ["x", ""]))),
        ("j", typed(ARRAY, (BOOL, [1, 0]))),
        ("k", typed(ARRAY, (F32, []))),
        ("l", typed(STRING, "a\0b")),
        ("m", typed(ARRAY, (STRING, ["a\0b"]))),
        ("h", typed(ARRAY, (U32, [1, 2, 3]))),
    )
    container = read(view(data))
    assert container.metadata == {
        "a": 200,
        "b": -5,
        "c": 0.5,
        "d": True,
        "e": "Arrr ☠",
        "f": 1 << 63,
        "g": 0.1,
        "h": (1, 2, 3),
        "i": ("x", ""),
        "j": (True, False),
        "k": (),
        "l": "a\0b",
        "m": ("a\0b",),
    }
    assert container.metadata["d"] is True
    assert container.metadata_types["a"] == ("UINT8", None)
    assert container.metadata_types["h"] == ("ARRAY", "UINT32")
    assert container.metadata_types["i"] == ("ARRAY", "STRING")
    assert container.data_offset == len(data)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [1, 32, 64])
def test_tensors_lie_where_the_file_says(version, alignment):
    data = adapter_bytes({"general.alignment": typed(U32, alignment)}, version=version, alignment=alignment)
    container = read(data)
    assert (container.version, container.alignment) == (version, alignment)
    assert list(container.tensors) == [tensor.name for tensor in TENSORS]
    for tensor in TENSORS:
        entry = container.tensors[tensor.name]
        assert (entry.shape, entry.type, entry.nbytes) == (tensor.shape, gguf.GGMLQuantizationType.F32, len(tensor.data))
        assert data[entry.offset : entry.offset + entry.nbytes] == tensor.data


def test_types_are_those_of_the_gguf_package():
    """Our own table, since importing gguf takes longer than inspecting does; theirs may be older or newer."""
    theirs = {kind.name: (int(kind), gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGMLQuantizationType}
    ours = {kind.name: (int(kind), BLOCKS[kind]) for kind in GGMLType}
    shared = theirs.keys() & ours.keys()
    assert len(shared) > 28
    assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}


def test_agrees_with_another_reader_on_another_writers_file(tmp_path):
    path = tmp_path / "adapter.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("numbers", [3, 1, 2])
    rng = np.random.default_rng(1)
    writer.add_tensor("x", rng.standard_normal((3, 5)).astype(np.float16))
    q8_0 = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("y", gguf.quants.quantize(rng.standard_normal((4, 64)).astype(np.float32), q8_0), raw_dtype=q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    container = read(path.read_bytes())
    assert container.metadata["numbers"] == (3, 1, 2)
    for theirs in gguf.GGUFReader(path).tensors:
        ours = container.tensors[theirs.name]
        assert (ours.shape, ours.type) == (tuple(int(size) for size in theirs.shape), theirs.tensor_type)
        assert (ours.offset, ours.nbytes) == (theirs.data_offset, theirs.n_bytes)


LONG = "x" * 64
HUGE = struct.pack("<Q", 1 << 62)
BAD = {
    "empty file": (b"", "an empty file"),
    "zip": (b"PK\x03\x04rest", "a zip archive"),
    "pickle": (b"\x80\x02}q", "a Python pickle"),
    "safetensors": (struct.pack("<Q", 1000) + b'{"a":', "a safetensors file; give the folder"),
    "2023 adapter": (b"algg\1\0\0\0", "GGLA format of 2023"),
    "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    "web page": (b"<!doctype html>", "a web page"),
    "json": (b'{"r": 8}', "JSON text"),
    "zeros": (bytes(100), "nothing but zeros"),
    "other magic": (adapter_bytes(magic=b"GGUX"), "no format known here: it begins with b'GGUX'"),
    "only magic": (b"GGUF", "the file ends at byte 4, inside the file header"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "a big-endian GGUF file"),
    "version 1": (adapter_bytes(version=1), "GGUF version 1 is not supported; versions 2 and 3 are"),
    "version 4": (adapter_bytes(version=4), "GGUF version 4 is not supported"),
    "tensor count": (
        adapter_bytes(tensor_count=1 << 60),
        "claims 1152921504606846976 tensors and 4 metadata keys, no more than 1048576 of either",
    ),
    "key count": (adapter_bytes(key_count=1000), r"6 tensors and 1000 metadata keys, .* truncated"),
    "too many keys": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, (1 << 20) + 1) + bytes(14 << 20),
        "no more than 1048576 of either are accepted",
    ),
    "one key too many": (gguf_bytes([("a", typed(U8, 1))], [], key_count=2), "the header claims 0 tensors and 2 metadata keys"),
    "key cut off": (
        gguf_bytes([("a", typed(STRING, "x" * 90))], [])[:50],
        r"the value of 'a' claims 90 bytes at byte \d+, but only",
    ),
    "string length": (
        with_values(("a", struct.pack("<I", STRING) + HUGE)),
        "the value of 'a' claims 4611686018427387904 bytes",
    ),
    "key length": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + HUGE + bytes(20),
        "metadata key 0 claims 4611686018427387904 bytes",
    ),
    "array length": (
        with_values(("a", struct.pack("<II", ARRAY, U32) + HUGE)),
        "array 'a' claims 4611686018427387904 elements",
    ),
    "array of strings": (
        with_values(("a", struct.pack("<IIQ", ARRAY, STRING, 2) + text("x") + HUGE)),
        "the array 'a': element 1 claims 4611686018427387904 bytes",
    ),
    "long array": (
        with_values(("a", struct.pack("<IIQ", ARRAY, U8, (1 << 20) + 1) + bytes((1 << 20) + 1))),
        "array 'a' has 1048577 elements; no more than 1048576",
    ),
    "nested array": (with_values(("a", typed(ARRAY, (ARRAY, [(U8, [1])])))), "key 'a' is an array of arrays"),
    "value type": (with_values(("a", struct.pack("<I", 13) + bytes(8))), "key 'a' is of the unknown GGUF type 13"),
    "element type": (with_values(("a", struct.pack("<IIQ", ARRAY, 99, 0))), "key 'a' is of the unknown GGUF type 99"),
    "truth value": (with_values(("a", typed(BOOL, 7))), "key 'a' holds 7 as a truth value"),
    "truth values": (with_values(("a", typed(ARRAY, (BOOL, [0, 2])))), "key 'a' holds 2 as a truth value"),
    "empty key": (with_values(("", typed(U8, 1))), "metadata key 0 is empty"),
    "duplicate key": (with_values(("a", typed(U8, 1)), ("a", typed(U8, 1))), "key 'a' occurs more than once"),
    "duplicate array key": (
        with_values(("a", typed(U8, 1)), ("a", typed(ARRAY, (U8, [1])))),
        "key 'a' occurs more than once",
    ),
    "UTF-8 key": (with_values((b"\xff", typed(U8, 1))), "metadata key 0 is not valid UTF-8"),
    "UTF-8 value": (with_values(("a", typed(STRING, b"\xc3"))), "the value of 'a' is not valid UTF-8"),
    "UTF-8 name": (adapter_bytes(tensors=replaced(TENSORS, 1, name=b"\xff.lora_b")), "name of tensor 1 is not valid UTF-8"),
    "NUL in key": (with_values(("general.type\0", typed(U8, 1))), "metadata key 0 .* contains a NUL"),
    "NUL in name": (adapter_bytes(tensors=replaced(TENSORS, 1, name="a\0b")), "name of tensor 1 .* contains a NUL"),
    "alignment type": (
        with_values(("general.alignment", typed(I32, 32))),
        "general.alignment is of type INT32, it must be UINT32",
    ),
    "alignment 0": (with_values(("general.alignment", typed(U32, 0))), "general.alignment is 0, it must be a power of two"),
    "alignment 48": (with_values(("general.alignment", typed(U32, 48))), "general.alignment is 48, it must be a power"),
    "long name": (adapter_bytes(tensors=replaced(TENSORS, 0, name=LONG)), r"name of tensor 0 .* has 64 bytes; 1 to 63"),
    "long UTF-8 name": (adapter_bytes(tensors=replaced(TENSORS, 0, name="é" * 32)), r"name of tensor 0 .* has 64 bytes"),
    "empty name": (adapter_bytes(tensors=replaced(TENSORS, 0, name="")), r"name of tensor 0 .* has 0 bytes"),
    "duplicate tensor": (
        adapter_bytes(tensors=replaced(TENSORS, 2, name=TENSORS[0].name)),
        r"tensor 'blk.0.attn_q.weight.lora_a' occurs more than once",
    ),
    "no dimension": (adapter_bytes(tensors=replaced(TENSORS, 0, shape=())), r"has the shape \[\]; 1 to 4 sizes"),
    "5 dimensions": (adapter_bytes(tensors=replaced(TENSORS, 0, shape=(1,) * 5)), "has 5 dimensions; 1 to 4 are legal"),
    "size 0": (adapter_bytes(tensors=replaced(TENSORS, 0, shape=(8, 0))), r"has the shape \[8, 0\]"),
    "overflow": (
        adapter_bytes(tensors=replaced(TENSORS, 0, shape=(1 << 32, 1 << 32))),
        r"has the shape \[4294967296, 4294967296\]",
    ),
    "negative size": (
        adapter_bytes(tensors=replaced(TENSORS, 0, shape=((1 << 64) - 8, 4))),
        r"shape \[18446744073709551608, 4\]",
    ),
    "removed type": (adapter_bytes(tensors=replaced(TENSORS, 0, type=4)), "is of the unknown ggml type 4"),
    "negative type": (adapter_bytes(tensors=replaced(TENSORS, 0, type=-1)), "is of the unknown ggml type 4294967295"),
    "block size": (
        adapter_bytes(tensors=replaced(TENSORS, 0, type=GGML_Q8_0)),
        "rows of 8 values; Q8_0 needs a multiple of 32",
    ),
    "misaligned": (
        adapter_bytes(tensors=replaced(TENSORS, 5, offset=900)),
        "begin at byte 900 .* no multiple of the alignment 32",
    ),
    "gap": (
        adapter_bytes(tensors=replaced(TENSORS, 5, offset=704), tail=bytes(64)),
        "'blk.1.ffn_down.weight.lora_b' begin at byte 704 of the data section, expected 640: .* without gaps",
    ),
    "first elsewhere": (
        adapter_bytes(tensors=replaced(TENSORS[:1], 0, offset=32), tail=bytes(32)),
        "begin at byte 32 .*, expected 0",
    ),
    "swapped": (
        adapter_bytes(tensors=replaced(replaced(TENSORS, 0, offset=128), 1, offset=0)),
        "begin at byte 128 of the data section, expected 0",
    ),
    "overlap": (
        adapter_bytes(tensors=replaced(TENSORS, 1, offset=96)),
        "'blk.0.attn_q.weight.lora_a' and 'blk.0.attn_q.weight.lora_b' overlap",
    ),
    "same data twice": (adapter_bytes(tensors=replaced(TENSORS, 1, offset=0)), "overlap"),
    "outside": (
        adapter_bytes(tensors=replaced(TENSORS, 5, offset=1 << 63)),
        "truncated: .* 1 of 6 lie outside, from 'blk.1.ffn_down",
    ),
    "truncated": (adapter_bytes()[:-1], r"truncated: the file has \d+ bytes, its tensors need \d+; 1 of 6 lie outside"),
    "truncated header": (adapter_bytes()[:300], "truncated"),
    "no data at all": (adapter_bytes(tensors=[Tensor("a", (8,), data=b"")]).rstrip(b"\0") + bytes(4), "truncated"),
    "tail": (adapter_bytes(tail=b"PK"), "2 bytes follow the last tensor; only padding"),
    "tail without tensors": (with_values(("a", typed(U8, 1))) + bytes(64), r"\d+ bytes follow the last tensor"),
}


@pytest.mark.parametrize(("data", "message"), BAD.values(), ids=BAD.keys())
def test_a_defect_is_named(data, message):
    problems = problems_of(data)
    assert any(re.search(message, problem) for problem in problems), problems


def test_a_sound_header_is_enough_when_only_that_is_wanted():
    data = adapter_bytes()
    header = read(data).data_offset
    assert list(read(data[:header], whole=False).tensors) == [tensor.name for tensor in TENSORS]
    unknown = read(adapter_bytes(tensors=replaced(TENSORS, 0, type=999)), whole=False)
    assert unknown.tensors[TENSORS[0].name].type is None
    assert unknown.tensors[TENSORS[0].name].nbytes == 0


def test_arrays_are_stepped_over_when_only_the_header_is_wanted():
    container = read(base_bytes(), whole=False)
    assert container.metadata["llama.block_count"] == 2
    assert "tokenizer.ggml.tokens" not in container.metadata
    assert container.metadata_types["tokenizer.ggml.tokens"] == ("ARRAY", "STRING")
    assert container.tensors["output.weight"].shape == (8, 32)


BEHIND = "the array 'a' of 2 strings goes on behind the end of the file"


@pytest.mark.parametrize(
    ("strings", "message"),
    [
        (HUGE, "the array 'a' claims 2 elements, but only 8 bytes are left"),
        (text("x" * 8) + text("")[:7], BEHIND),
        (text("x") + struct.pack("<Q", 5) + b"1234", BEHIND),
        (struct.pack("<QQ", (1 << 64) - 8, (1 << 64) - 8), BEHIND),
    ],
)
def test_arrays_stepped_over_stay_inside_the_file(strings, message):
    data = with_values(("a", struct.pack("<IIQ", ARRAY, STRING, 2) + strings))
    (problem,) = problems_of(data, whole=False)
    assert re.search(message, problem), problem


def test_an_array_stepped_over_may_end_with_the_file():
    data = with_values(("a", typed(ARRAY, (STRING, ["x", ""]))))
    assert read(data, whole=False).metadata_types == {"a": ("ARRAY", "STRING")}


def test_the_longest_name_and_missing_padding_are_legal():
    name = "é" * 31 + "x"
    data = gguf_bytes([], [Tensor(name, (3,), data=b"abcdefghijkl")])
    assert read(data.rstrip(b"\0")).tensors[name].nbytes == 12


def test_all_defects_are_reported_together():
    tensors = replaced(replaced(TENSORS, 0, shape=(8, 0)), 3, type=4)
    problems = problems_of(adapter_bytes({"": typed(U8, 1), "flag": typed(BOOL, 9)}, tensors))
    assert len(problems) == 4


@pytest.mark.parametrize(
    ("count", "end"), [(2, r"\(2\) tensor 't1' is of the unknown ggml type 4$"), (10, r"type 4$"), (11, "1 more in")]
)
def test_few_problems_are_all_in_the_message(count, end):
    with pytest.raises(InvalidAdapterFileError, match=end):
        read(gguf_bytes([], [Tensor(f"t{index}", (1,), type=4) for index in range(count)]))


def test_the_message_stays_readable_and_the_problems_complete():
    tensors = [Tensor(f"t{index}", (1,), type=4) for index in range(30)]
    with pytest.raises(InvalidAdapterFileError, match=r"has 30 problems.*and 20 more in \.problems") as caught:
        read(gguf_bytes([], tensors))
    assert len(caught.value.problems) == 30


def test_240_tensors_are_read_within_8_ms():
    tensors = [Tensor(f"blk.{index // 2}.attn_q.weight.lora_{'ab'[index % 2]}", (8, 4)) for index in range(240)]
    data = adapter_bytes(tensors=tensors)
    assert best_cpu_seconds(lambda: read(data)) < 0.008  # 2 ms are usual


def test_an_absurd_count_costs_nothing():
    data = gguf_bytes([("a", struct.pack("<IIQ", ARRAY, U8, 1 << 61))], [])
    assert best_cpu_seconds(lambda: problems_of(data)) < 0.01


SOUND = adapter_bytes({"general.alignment": typed(U32, 32), "words": typed(ARRAY, (STRING, ["a", "b"])), "yes": typed(BOOL, 1)})
HEADER = read(SOUND).data_offset


@settings(max_examples=600, deadline=None)
@given(damages, st.booleans())
@example([("cut", 0, 0, 1)], True)
def test_damage_is_refused_or_harmless(steps, whole):
    data = mutate(SOUND, steps)
    begin = time.process_time()
    try:
        container = read(data, whole=whole)
    except InvalidAdapterFileError as error:
        assert error.problems  # noqa: PT017 - both outcomes are legal
    else:
        if whole:
            assert all(entry.offset + entry.nbytes <= len(data) for entry in container.tensors.values())
    assert time.process_time() - begin < 1


def test_every_cut_and_every_bit_of_the_header():
    for length in range(len(SOUND)):
        if length < HEADER:
            problems_of(SOUND[:length])
    for position in range(HEADER):
        for bit in range(8):
            damaged = bytearray(SOUND)
            damaged[position] ^= 1 << bit
            try:
                read(bytes(damaged))
            except InvalidAdapterFileError:
                continue
