"""torch's archives built instruction by instruction, so that a test can put exactly one thing wrong."""

from __future__ import annotations

import io
import struct
import zipfile

import numpy as np

STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "uint16": "BFloat16Storage", "int64": "LongStorage"}


def text(value):
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value):
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def numbers(values):
    return b"(" + b"".join(map(number, values)) + b"t"


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def storage(key, kind, size):
    return b"(" + text("storage") + name("torch", kind) + text(key) + text("cpu") + number(size) + b"tQ"


def tensor(store, shape, strides, offset=0):
    """The call that cuts a tensor from a storage."""
    hooks = name("collections", "OrderedDict") + b")R"
    arguments = store + number(offset) + numbers(shape) + numbers(strides) + b"\x89" + hooks
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + b"tR"


def whole(key, array):
    """A tensor that is all of its storage."""
    strides = [step // array.itemsize for step in array.strides]
    return tensor(storage(key, STORAGES[array.dtype.name], array.size), array.shape, strides)


def dictionary(entries):
    return b"\x80\x02}(" + b"".join(text(key) + value for key, value in entries) + b"u."


def archive(code, members, *, root="archive", compression=zipfile.ZIP_STORED):
    """A zip archive with a pickle and further members by name."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as file:
        for member, content in {f"{root}/data.pkl": code, **members}.items():
            file.writestr(zipfile.ZipInfo(member), content, compression)
    return out.getvalue()


def torch_bytes(arrays, *, code=None, order=None, **changes):
    """What torch.save makes of a dictionary of contiguous arrays; `changes` go to `archive`."""
    entries = [(key, whole(str(index), array)) for index, (key, array) in enumerate(arrays.items())]
    members = {f"archive/data/{index}": np.ascontiguousarray(array).tobytes() for index, array in enumerate(arrays.values())}
    if order is not None:
        members["archive/byteorder"] = order
    return archive(dictionary(entries) if code is None else code, members, **changes)
