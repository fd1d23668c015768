"""torch's archives: what torch would read from them, or one error, and nothing in them ever runs.

tests/data/torch_weights.bin was written by torch 2.13:

    x = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    d = collections.OrderedDict(f32=x, turned=x.T, part=x[1:, 2:], f16=(x / 8).half(), bf16=(x / 3).bfloat16(),
                                parameter=torch.nn.Parameter(x[0].clone()))
    d._metadata = {"": {"version": 1}}
    torch.save(d, "torch_weights.bin")
"""

import contextlib
import io
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers.damage import damages, mutate
from helpers.torch_bytes import archive, dictionary, name, number, numbers, storage, tensor, text, torch_bytes, whole
from hypothesis import given, settings

from llamafu.adapters.peft.torch_pickle import read_pickled
from llamafu.errors import InvalidAdapterFileError

REAL = (Path(__file__).parents[1] / "data" / "torch_weights.bin").read_bytes()
X = np.arange(12, dtype="f4").reshape(3, 4)
ARRAYS = {"x": X, "y": (X / 8).astype("f2")}
SOUND = torch_bytes(ARRAYS)


def test_what_torch_wrote():
    arrays = read_pickled(REAL, name="f")
    bf16 = (((X / 3).view("<u4") + 0x7FFF + ((X / 3).view("<u4") >> 16 & 1)) >> 16 << 16).view("<f4")
    expected = {"f32": X, "turned": X.T, "part": X[1:, 2:], "f16": (X / 8).astype("f2"), "bf16": bf16, "parameter": X[0]}
    assert list(arrays) == sorted(expected)
    for key, array in arrays.items():
        np.testing.assert_array_equal(array, expected[key])
        assert array.dtype == expected[key].dtype
        assert not array.flags.writeable or key == "bf16"


def test_both_byte_orders():
    for order, sign in ((b"little", "<"), (b"big", ">"), (None, "<")):
        swapped = {key: array.astype(array.dtype.newbyteorder(sign)) for key, array in ARRAYS.items()}
        arrays = read_pickled(torch_bytes(swapped, order=order), name="f")
        assert {key: array.tolist() for key, array in arrays.items()} == {key: a.tolist() for key, a in ARRAYS.items()}
        assert [array.dtype.str for array in arrays.values()] == ["<f4", "<f2"]
    with pytest.raises(InvalidAdapterFileError, match="byte order is b'middle'"):
        read_pickled(torch_bytes(ARRAYS, order=b"middle"), name="f")


def test_newer_protocols_and_empty_ones():
    """Frames, short texts, names from the stack: what protocol 4 writes for the same dictionary."""
    names = b"\x8c\x0dtorch._utils\x8c\x12_rebuild_tensor_v2".replace(b"\x0dtorch", b"\x0ctorch") + b"\x93"
    cut = b"(" + storage("0", "FloatStorage", 12) + number(0) + numbers([12]) + numbers([1]) + b"\x89}tR"
    code = b"\x80\x04\x95" + bytes(8) + b"}\x94(\x8c\x01x" + names + cut + b"u."
    assert read_pickled(archive(code, {"archive/data/0": X.tobytes()}), name="f")["x"].tolist() == list(range(12))
    assert read_pickled(archive(b"\x80\x02}.", {}), name="f") == {}


class Runs:
    """Pickles as a call of anything."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile():
    nested = Runs(list, Runs(map, os.system, Runs(list, ["echo run > {file}"])))
    return {
        "os.system": Runs(os.system, "echo run > {file}"),
        "eval": Runs(eval, "open('{file}', 'w')"),
        "exec": Runs(exec, "open('{file}', 'w')"),
        "subprocess": Runs(subprocess.check_call, ["touch", "{file}"]),
        "nested": nested,
        "in a dictionary": {"x": Runs(os.system, "echo run > {file}")},
        "a file": Runs(open, "{file}", "w"),
        "a class": Runs(type, "T", (), {}),
    }


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_runs(protocol, tmp_path):
    file = str(tmp_path / "ran").replace("\\", "/")
    for value in hostile().values():
        code = pickle.dumps(value, protocol=protocol)
        for changed in (code, code.replace(b"{file}", file.encode())):
            with pytest.raises(InvalidAdapterFileError, match="nothing was executed|breaks off|no UTF-8"):
                read_pickled(archive(changed, {}), name="f")
    assert not list(tmp_path.iterdir())
    assert "pickle.py" not in {Path(module.__file__ or "").name for key, module in sys.modules.items() if key == "torch"}


@pytest.mark.parametrize(
    "code",
    [
        b"ios\nsystem\n(S'ls'\noR.",  # INST
        b"(cos\nsystem\nX\x02\0\0\0lso.",  # OBJ
        name("os", "system") + text("ls") + b"\x85R.",
        b"\x82\x01.",  # EXT1: a name by number
        name("torch", "load") + b")R.",
        name("torch.Storage", "x") + b")R.",
        name("builtins", "getattr") + b")R.",
        b"}" + name("torch._utils", "_rebuild_tensor_v2") + b"}b.",  # BUILD on a name
        b"}}" + text("__class__") + number(1) + b"sb.",  # attributes of a dictionary
        b"Pname\n.",  # a persistent id of protocol 0
        b"\x81.",  # NEWOBJ
        name("torch._utils", "_rebuild_tensor_v2") + b")R.",
        name("collections", "OrderedDict") + number(1) + b"\x85R.",
    ],
)
def test_instructions_that_weights_do_not_need(code):
    with pytest.raises(InvalidAdapterFileError, match="nothing was executed"):
        read_pickled(archive(b"\x80\x02" + code, {}), name="f")


def cut(shape, strides, offset=0, size=12, kind="FloatStorage", key="0"):
    return archive(
        dictionary([("x", tensor(storage(key, kind, size), shape, strides, offset))]), {"archive/data/0": X.tobytes()}
    )


def with_code(code):
    return archive(b"\x80\x02" + code, {"archive/data/0": X.tobytes()})


TWICE = dictionary([("x", whole("0", X)), ("x", whole("0", X))])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no torch archive but an unknown format or nothing"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (pickle.dumps({}, protocol=2), "format of torch before 1.6.*load it with torch and save it as safetensors"),
        (b"PK", "damaged or truncated"),
        (SOUND[:-1], "damaged or truncated"),
        (SOUND[:30], "damaged or truncated"),
        (REAL[: len(REAL) // 2], "damaged or truncated"),
        (SOUND.replace(X.tobytes(), X[::-1].tobytes()), "checksum differs"),
        (torch_bytes(ARRAYS, compression=zipfile.ZIP_DEFLATED), "is compressed"),
        (archive(b"", {}), "breaks off at byte 0"),
        (archive(b"\x80", {}), "breaks off"),
        (archive(b"\x80\x02X\xff\xff\xff\xff", {}), "breaks off"),
        (archive(b"\x80\x02X\x01\0\0\0\xff.", {}), "no UTF-8"),
        (archive(b"\x80\x02}.", {"archive/data.pkl/../../../etc/passwd": b""}), "leads out of the archive"),
        (archive(b"\x80\x02}.", {"/etc/passwd": b""}), "leads out of the archive"),
        (archive(b"\x80\x02}.", {"..\\x": b""}), "leads out of the archive"),
        (archive(b"\x80\x02}.", {"other/data.pkl": b""}), "2 members data.pkl"),
        (archive(b"", {}, root="archive/code"), "breaks off"),
        (cut([3, 4], [4, 1], size=11), "has 48 bytes, 11 values of a FloatStorage have 44"),
        (cut([3, 4], [4, 1], size=1 << 61), "has 48 bytes"),
        (cut([3, 4], [4, 1], size=-12), "has 48 bytes"),
        (cut([3, 4], [4, 1], kind="LongStorage"), "is a LongStorage; it must be one of FloatStorage, HalfStorage"),
        (cut([3, 4], [4, 1], kind="UntypedStorage"), "is a UntypedStorage"),
        (cut([3, 4], [4, 1], key="../../x"), "storage '../../x' that the archive does not have"),
        (cut([3, 4], [4, 1], offset=1), "the storage has 12 values"),
        (cut([3, 4], [4, 1], offset=-1), "the storage has 12 values"),
        (cut([3, 4], [5, 1]), "the storage has 12 values"),
        (cut([1 << 40, 1 << 40], [0, 0]), "the storage has 12 values"),
        (cut([13], [0]), "the storage has 12 values"),
        (cut([2], [1 << 62]), "the storage has 12 values"),
        (cut([2], [-1], offset=11), "a shape or strides"),
        (cut([-1, 4], [4, 1]), "a shape or strides"),
        (cut([0, 4], [4, 1]), "ZeRO-3"),
        (cut([3, 4], [1]), "a shape or strides"),
        (cut([1] * 9, [1] * 9), "a shape or strides"),
        (archive(TWICE, {"archive/data/0": X.tobytes()}), "'x' is given twice"),
        (with_code(number(3) + b"."), "its pickle is 3, it must be a dictionary"),
        (with_code(b"}" + text("x") + number(3) + b"s."), "entry 'x' is 3, it must be a tensor"),
        (with_code(b"}" + text("x") + b"}s."), "entry 'x' is a dictionary"),
        (with_code(b"}q\x00" + text("x") + b"h\x00s."), "entry 'x' is a dictionary"),  # itself
        (with_code(b"}" + number(1) + whole("0", X) + b"s."), "an entry 1 of a dictionary"),
        (with_code(name("os", "system") + b"."), r"its pickle wants 'os\.system'; weights have no use for that"),
        (with_code(b"."), "empty stack"),
        (with_code(b"t."), "an end without a beginning"),
        (with_code(b"}(" + text("x") + b"u."), "a key without a value"),
        (with_code(b"h\x07."), "the value 7, which is not there"),
        (with_code(b"r\xff\xff\xff\xff."), "empty stack"),
        (with_code(b"(" * 100_000 + b"t" * 100_000 + b"."), r"its pickle is \(\.\.\.\), it must"),
    ],
)
def test_damaged(content, words):
    with pytest.raises(InvalidAdapterFileError, match=words) as caught:
        read_pickled(content, name="f")
    assert len(caught.value.problems) == 1
    assert len(str(caught.value)) < 1000


def test_two_descriptions_of_one_storage():
    entries = [("x", whole("0", X)), ("y", tensor(storage("0", "HalfStorage", 24), [24], [1]))]
    with pytest.raises(InvalidAdapterFileError, match="described in two ways"):
        read_pickled(archive(dictionary(entries), {"archive/data/0": X.tobytes()}), name="f")


def test_overlapping_tensors_are_bounded():
    """A thousand tensors over one storage would become a thousand times the file when converted."""
    entries = [(str(index), whole("0", X)) for index in range(1000)]
    content = archive(dictionary(entries), {"archive/data/0": X.tobytes()})
    shared = read_pickled(content, name="f")  # its descriptions are longer than its numbers
    assert len(shared) == 1000
    large = np.zeros(100_000, "f4")
    entries = [(str(index), whole("0", large)) for index in range(10)]
    with pytest.raises(InvalidAdapterFileError, match="4000000 bytes.*overlap beyond reason"):
        read_pickled(archive(dictionary(entries), {"archive/data/0": large.tobytes()}), name="f")


@pytest.mark.parametrize("bomb", ["deflated", "numbers", "memo", "text"])
def test_bombs_take_no_memory(bomb):
    code = {
        "deflated": b"\x80\x02}.",
        "numbers": b"\x80\x02" + (number(1) + b"\x85") * 50_000 + b".",
        "memo": b"\x80\x02}r\xff\xff\xff\x7f.",
        "text": b"\x80\x02\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.",
    }[bomb]
    content = archive(code, {"archive/data/0": bytes(50 << 20)} if bomb == "deflated" else {}, compression=zipfile.ZIP_STORED)
    if bomb == "deflated":
        content = archive(code, {"archive/data/0": bytes(50 << 20)}, compression=zipfile.ZIP_DEFLATED)
        assert len(content) < 1 << 20
    tracemalloc.start()
    try:
        with contextlib.suppress(InvalidAdapterFileError):
            assert read_pickled(content, name="f") == {}
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_a_lying_size_in_the_list_of_members():
    with zipfile.ZipFile(io.BytesIO(SOUND)) as file:
        at = file.start_dir
    for field, offset in (("compressed", 20), ("whole", 24), ("both", None)):
        content = bytearray(SOUND)
        places = [20, 24] if offset is None else [offset]
        for place in places:
            content[at + place : at + place + 4] = struct.pack("<I", 0x7FFFFFF0)
        with pytest.raises(InvalidAdapterFileError, match="lies about its size|lies outside the file"):
            read_pickled(bytes(content), name=field)


def test_every_cut_is_one_error():
    for length in range(0, len(REAL), 7):
        with pytest.raises(InvalidAdapterFileError):
            read_pickled(REAL[:length], name="f")


@settings(max_examples=150, deadline=None)
@given(damages)
def test_any_damage_of_the_archive_is_one_error_or_none(steps):
    check(mutate(SOUND, steps))


CODE = dictionary([("x", whole("0", X)), ("y", whole("1", ARRAYS["y"]))])


@settings(max_examples=300, deadline=None)
@given(damages)
def test_any_damage_of_the_pickle_is_one_error_or_none(steps):
    """The archive around it is sound, so that damage gets as far as the instructions."""
    check(torch_bytes(ARRAYS, code=mutate(CODE, steps)))


def check(content):
    with contextlib.suppress(InvalidAdapterFileError):
        arrays = read_pickled(content, name="f")
        assert sum(array.nbytes for array in arrays.values()) <= 2 * len(content)
        assert all(np.ascontiguousarray(array).dtype in ("f4", "f2") for array in arrays.values())
