"""What counts as an adapter: the facts of a sound one, and one bad file for every check."""

from __future__ import annotations

import hashlib
import os
import re
import struct
import subprocess
import sys
import time

import gguf
import numpy as np
import pytest
from helpers.cpu_time import best_cpu_seconds
from helpers.damage import damages, mutate
from helpers.gguf_bytes import (
    ARRAY,
    F32,
    F64,
    GGML_BF16,
    GGML_F16,
    GGML_Q8_0,
    I32,
    STRING,
    U32,
    Tensor,
    adapter_bytes,
    adapter_tensors,
    base_bytes,
    experts,
    floats,
    gguf_bytes,
    pair,
    replaced,
    typed,
    writer,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafu.adapters import AdapterInfo, check_adapter, inspect_adapter, read_adapter
from llamafu.adapters.file import AdapterFileNotFoundError
from llamafu.adapters.info import TensorInfo, split_name
from llamafu.errors import ErrorCode, InvalidAdapterFileError, LoraLoadError

TENSORS = adapter_tensors()
TOKENS = "adapter.alora.invocation_tokens"
INFINITY, NAN = float("inf"), float("nan")


@pytest.fixture
def write(tmp_path):
    return writer(tmp_path, "adapter.gguf")


def problems_of(data, path="adapter.gguf"):
    with pytest.raises(InvalidAdapterFileError) as caught:
        check_adapter(data, path)
    assert caught.value.code == ErrorCode.INVALID_ADAPTER_FILE
    return caught.value.problems


def test_the_facts_of_an_adapter(write):
    data = adapter_bytes(
        {
            "general.base_model.0.name": typed(STRING, "Tiny 135M"),
            "general.base_model.0.repo_url": typed(STRING, "https://example.org/tiny"),
            TOKENS: typed(ARRAY, (U32, [5, 6])),
        },
    )
    info = inspect_adapter(write(data))
    assert info == AdapterInfo(
        architecture="llama",
        rank=4,
        alpha=16.0,
        uniform=False,
        parameter_count=4 * (8 + 8) * 2 + 2 * (16 + 8),
        nbytes=4 * (4 * (8 + 8) * 2 + 2 * (16 + 8)),
        target_modules=("attn_q", "ffn_down"),
        layers=(0, 1),
        base_model="Tiny 135M",
        invocation_tokens=(5, 6),
        metadata={
            "general.type": "adapter",
            "general.architecture": "llama",
            "adapter.type": "lora",
            "adapter.lora.alpha": 16.0,
            "general.base_model.0.name": "Tiny 135M",
            "general.base_model.0.repo_url": "https://example.org/tiny",
            TOKENS: (5, 6),
        },
        tensors=(
            TensorInfo("blk.0.attn_q.weight", "attn_q", 0, 4, (8, 8), "F32", 256, 4.0),
            TensorInfo("blk.1.attn_q.weight", "attn_q", 1, 4, (8, 8), "F32", 256, 4.0),
            TensorInfo("blk.1.ffn_down.weight", "ffn_down", 1, 2, (8, 16), "F32", 192, 8.0),
        ),
        digest=hashlib.sha256(data).hexdigest(),
    )
    assert hash(info) == hash(inspect_adapter(write(data, "again.gguf")))


@pytest.mark.parametrize("alpha", [None, typed(F32, 0.0)])
def test_no_alpha_means_strength_1(alpha):
    info = check_adapter(adapter_bytes({"adapter.lora.alpha": alpha}, TENSORS[:4]), "a").info
    assert (info.alpha, info.uniform) == (0.0, True)
    assert [tensor.strength for tensor in info.tensors] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, None),
        ({"general.base_model.0.repo_url": typed(STRING, "https://example.org/tiny")}, "https://example.org/tiny"),
        ({"general.base_model.0.name": typed(U32, 3)}, None),
        ({"general.base_model.0.name": typed(STRING, "")}, None),
    ],
)
def test_the_base_models_name_may_be_missing(keys, expected):
    assert check_adapter(adapter_bytes(keys), "a").info.base_model == expected


def test_experts_and_embeddings_have_their_own_layouts():
    tensors = [
        *experts(8, 16, 2, 3),
        *experts(8, 16, 2, 3, module="ffn_up_chexps"),
        Tensor("token_embd.weight.lora_a", (4, 32)),
        Tensor("token_embd.weight.lora_b", (4, 8)),
        *pair("output.weight", 8, 32, 1),
    ]
    adapter = check_adapter(adapter_bytes(tensors=tensors), "a")
    assert [(tensor.module, tensor.layer, tensor.rank, tensor.shape) for tensor in adapter.info.tensors] == [
        ("ffn_up_exps", 0, 2, (3, 16, 8)),
        ("ffn_up_chexps", 0, 2, (3, 16, 8)),
        ("token_embd", None, 4, (32, 8)),
        ("output", None, 1, (32, 8)),
    ]
    assert adapter.info.layers == (0,)
    assert adapter.matrix(adapter.pairs["blk.0.ffn_up_exps.weight"].a).shape == (3, 2, 8)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("blk.12.attn_q.weight", ("attn_q", 12)),
        ("blk.3.attn_q.bias", ("attn_q.bias", 3)),
        ("enc.blk.1.attn_q.weight", ("enc.attn_q", 1)),
        ("output.weight", ("output", None)),
        ("blk.x.attn_q.weight", ("blk.x.attn_q", None)),
    ],
)
def test_names_are_split_into_module_and_layer(name, expected):
    assert split_name(name) == expected


def test_the_bytes_that_were_checked_are_kept(write):
    data = adapter_bytes()
    path = write(data)
    adapter = read_adapter(str(path))
    path.write_bytes(b"changed meanwhile")
    assert (adapter.path, adapter.content, adapter.digest) == (path, data, hashlib.sha256(data).hexdigest())
    a, b = adapter.pairs["blk.1.ffn_down.weight"]
    assert (a.name, b.name) == ("blk.1.ffn_down.weight.lora_a", "blk.1.ffn_down.weight.lora_b")
    np.testing.assert_array_equal(adapter.matrix(a), np.frombuffer(TENSORS[4].data, "<f4").reshape(2, 16))
    np.testing.assert_array_equal(adapter.matrix(b), np.frombuffer(TENSORS[5].data, "<f4").reshape(8, 2))
    adapter.matrix(a)[:] = 0  # a copy: the checked bytes cannot be changed through it
    assert adapter.content == data


def encoded(values, kind):
    """`values` as ggml stores them."""
    quant = gguf.GGMLQuantizationType(kind)
    return gguf.quants.quantize(values, quant).tobytes()


@pytest.mark.parametrize(("kind", "error"), [(GGML_F16, 1e-3), (GGML_BF16, 1e-2), (GGML_Q8_0, 2e-2)])
def test_every_float_type_becomes_float32(kind, error):
    a, b = (
        np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32) for seed, shape in ((0, (32, 64)), (1, (16, 32)))
    )
    tensors = [
        Tensor("blk.0.attn_q.weight.lora_a", (64, 32), kind, encoded(a, kind)),
        Tensor("blk.0.attn_q.weight.lora_b", (32, 16), kind, encoded(b, kind)),
    ]
    adapter = check_adapter(adapter_bytes(tensors=tensors), "a")
    for entry, expected in zip(adapter.pairs["blk.0.attn_q.weight"], (a, b), strict=True):
        matrix = adapter.matrix(entry)
        assert matrix.dtype == np.float32
        np.testing.assert_allclose(matrix, expected, atol=error)
    assert adapter.info.tensors[0].dtype == gguf.GGMLQuantizationType(kind).name


def test_factors_of_two_types_are_both_named():
    tensors = replaced(pair("output.weight", 8, 8, 4), 0, type=GGML_F16, data=bytes(64))
    assert check_adapter(adapter_bytes(tensors=tensors), "a").info.tensors[0].dtype == "F16/F32"


def with_float(value, layout, kind, index):
    """Replace one value of the fourth of the six tensors."""
    size = struct.calcsize(layout)
    data = bytearray(32 * size)
    data[index * size : (index + 1) * size] = struct.pack(layout, value)
    return replaced(TENSORS, 3, type=kind, data=bytes(data))


def bad_scale():
    block = bytearray(encoded(np.ones((32, 32), np.float32), GGML_Q8_0))
    block[34:36] = struct.pack("<e", INFINITY)
    return [
        Tensor("blk.0.attn_q.weight.lora_a", (32, 32), GGML_Q8_0, bytes(block)),
        Tensor("blk.0.attn_q.weight.lora_b", (32, 16), data=floats(16, 32)),
    ]


def whole(kind, name="blk.0.attn_q.weight"):
    """Make a pair of which A is of another type, its bytes all zero."""
    size, width = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    data = bytes(256 * 4 // size * width)
    return [Tensor(f"{name}.lora_a", (256, 4), kind, data), Tensor(f"{name}.lora_b", (4, 8))]


Q, DOWN = "blk.1.attn_q.weight", "blk.1.ffn_down.weight"
BAD = {
    "type missing": (adapter_bytes({"general.type": None}), "'general.type' is missing; it must be 'adapter'"),
    "type is a number": (
        adapter_bytes({"general.type": typed(U32, 1)}),
        "'general.type' is of type UINT32; it must be a STRING, 'adapter'",
    ),
    "type is a list": (
        adapter_bytes({"general.type": typed(ARRAY, (STRING, ["adapter"]))}),
        "'general.type' is of type ARRAY of STRING; it must be a STRING",
    ),
    "type is model": (
        adapter_bytes({"general.type": typed(STRING, "model")}),
        "'general.type' is 'model'; it must be 'adapter'",
    ),
    "adapter.type missing": (adapter_bytes({"adapter.type": None}), "'adapter.type' is missing; it must be 'lora'"),
    "adapter.type wrong": (adapter_bytes({"adapter.type": typed(STRING, "ia3")}), "'adapter.type' is 'ia3'; it must be 'lora'"),
    "adapter.type number": (
        adapter_bytes({"adapter.type": typed(F32, 1)}),
        "'adapter.type' is of type FLOAT32; it must be a STRING, 'lora'",
    ),
    "architecture missing": (adapter_bytes({"general.architecture": None}), "'general.architecture' is missing$"),
    "architecture empty": (
        adapter_bytes({"general.architecture": typed(STRING, "")}),
        "'general.architecture' is ''; it must be the name",
    ),
    "architecture number": (
        adapter_bytes({"general.architecture": typed(U32, 1)}),
        "'general.architecture' is of type UINT32; it must be a STRING$",
    ),
    "alpha integer": (adapter_bytes({"adapter.lora.alpha": typed(U32, 16)}), "alpha' is of type UINT32; it must be FLOAT32"),
    "alpha double": (adapter_bytes({"adapter.lora.alpha": typed(F64, 16)}), "alpha' is of type FLOAT64; it must be FLOAT32"),
    "alpha text": (adapter_bytes({"adapter.lora.alpha": typed(STRING, "16")}), "alpha' is of type STRING; it must be FLOAT32"),
    "alpha NaN": (adapter_bytes({"adapter.lora.alpha": typed(F32, NAN)}), "alpha' is nan; it must be finite and at least 0"),
    "alpha infinite": (adapter_bytes({"adapter.lora.alpha": typed(F32, INFINITY)}), "alpha' is inf; it must be finite"),
    "alpha negative": (
        adapter_bytes({"adapter.lora.alpha": typed(F32, -8)}),
        "alpha' is -8.0; it must be finite and at least 0",
    ),
    "tokens of i32": (
        adapter_bytes({TOKENS: typed(ARRAY, (I32, [1]))}),
        "tokens' is of type ARRAY of INT32; it must be an ARRAY of UINT32",
    ),
    "one token": (adapter_bytes({TOKENS: typed(U32, 1)}), "tokens' is of type UINT32; it must be an ARRAY of UINT32"),
    "no tensors": (adapter_bytes(tensors=[]), "the file has no tensors"),
    "foreign tensor": (
        adapter_bytes(tensors=[*TENSORS, Tensor("blk.0.attn_q.dora", (8,))]),
        "'blk.0.attn_q.dora' is no LoRA factor: .* nor in .lora_b$",
    ),
    "norm vector": (
        adapter_bytes(tensors=[*TENSORS, Tensor("blk.0.attn_norm.weight", (8,))]),
        "'blk.0.attn_norm.weight' is no LoRA factor: .*libllama would drop this norm vector in silence",
    ),
    "suffix only": (adapter_bytes(tensors=replaced(TENSORS, 0, name=".lora_a")), "'.lora_a' names no base tensor"),
    "suffix twice": (
        adapter_bytes(tensors=replaced(TENSORS, 0, name="x.lora_a.lora_a")),
        "'x.lora_a.lora_a' names no base tensor",
    ),
    "both suffixes": (
        adapter_bytes(tensors=replaced(TENSORS, 0, name="x.lora_b.lora_a")),
        "'x.lora_b.lora_a' names no base tensor",
    ),
    "no B": (adapter_bytes(tensors=TENSORS[:-1]), f"'{DOWN}.lora_a' has no partner '{DOWN}.lora_b'"),
    "no A": (adapter_bytes(tensors=TENSORS[1:]), "'blk.0.attn_q.weight.lora_b' has no partner 'blk.0.attn_q.weight.lora_a'"),
    "ranks differ": (
        adapter_bytes(tensors=replaced(TENSORS, 3, shape=(2, 8), data=None)),
        rf"'{Q}': A is \[8, 4\] and B is \[2, 8\] .*the ranks A\[1\] = 4 and B\[0\] = 2 must be equal",
    ),
    "transposed A": (adapter_bytes(tensors=replaced(TENSORS, 4, shape=(2, 16))), r"A\[1\] = 16 and B\[0\] = 2"),
    "embedding not flipped": (
        adapter_bytes(tensors=pair("token_embd.weight", 32, 8, 4)),
        r"the ranks A\[0\] = 32 and B\[0\] = 4 must be equal for token embeddings",
    ),
    "one dimension": (adapter_bytes(tensors=replaced(TENSORS, 2, shape=(32,))), "both must have 2 dimensions outside experts"),
    "B of one dimension": (
        adapter_bytes(tensors=replaced(TENSORS, 3, shape=(32,))),
        "both must have 2 dimensions outside experts",
    ),
    "three dimensions": (
        adapter_bytes(tensors=[Tensor("blk.0.x.weight.lora_a", (8, 4, 2)), Tensor("blk.0.x.weight.lora_b", (4, 8, 2))]),
        r"'blk.0.x.weight': A is \[8, 4, 2\] and B is \[4, 8, 2\] .*both must have 2 dimensions outside experts",
    ),
    "flat experts": (
        adapter_bytes(tensors=pair("blk.0.ffn_up_exps.weight", 8, 8, 4)),
        "both must have 3 dimensions for experts",
    ),
    "flat chunked experts": (
        adapter_bytes(tensors=pair("blk.0.ffn_up_chexps.weight", 8, 8, 4)),
        "both must have 3 dimensions for experts",
    ),
    "numbers of experts": (
        adapter_bytes(
            tensors=[Tensor("blk.0.ffn_up_exps.weight.lora_a", (8, 4, 2)), Tensor("blk.0.ffn_up_exps.weight.lora_b", (4, 8, 3))]
        ),
        "they disagree about the number of experts, 2 and 3",
    ),
    "experts' ranks": (
        adapter_bytes(
            tensors=[Tensor("blk.0.ffn_up_exps.weight.lora_a", (8, 4, 2)), Tensor("blk.0.ffn_up_exps.weight.lora_b", (2, 8, 2))]
        ),
        r"the ranks A\[1\] = 4 and B\[0\] = 2",
    ),
    **{
        f"type {kind.name}": (
            adapter_bytes(tensors=whole(kind)),
            f"lora_a' is of type {kind.name}; adapters may hold .*BF16, F16, F32",
        )
        for kind in gguf.GGMLQuantizationType
        if kind.name in {"I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K"}
    },
    "F32 NaN": (adapter_bytes(tensors=with_float(NAN, "<f", 0, 31)), f"'{Q}.lora_b' holds NaN or infinite values"),
    "F32 infinity": (adapter_bytes(tensors=with_float(-INFINITY, "<f", 0, 0)), f"'{Q}.lora_b' holds NaN or infinite values"),
    "F16 NaN": (adapter_bytes(tensors=with_float(NAN, "<e", GGML_F16, 7)), f"'{Q}.lora_b' holds NaN or infinite values"),
    "F16 infinity": (
        adapter_bytes(tensors=with_float(-INFINITY, "<e", GGML_F16, 7)),
        f"'{Q}.lora_b' holds NaN or infinite values",
    ),
    "BF16 infinity": (
        adapter_bytes(tensors=with_float(0x7F80, "<H", GGML_BF16, 7)),
        f"'{Q}.lora_b' holds NaN or infinite values",
    ),
    "BF16 NaN": (adapter_bytes(tensors=with_float(0xFFC1, "<H", GGML_BF16, 7)), f"'{Q}.lora_b' holds NaN or infinite values"),
    "Q8_0 infinite scale": (adapter_bytes(tensors=bad_scale()), "'blk.0.attn_q.weight.lora_a' holds NaN or infinite values"),
}


@pytest.mark.parametrize(("data", "message"), BAD.values(), ids=BAD.keys())
def test_a_defect_is_named(data, message):
    problems = problems_of(data)
    assert len(problems) <= 2, problems  # a wrong name leaves its partner alone; else the defect alone is reported
    assert any(re.search(message, problem) for problem in problems), problems


def test_all_defects_are_reported_together():
    tensors = [*with_float(NAN, "<f", 0, 5), Tensor("blk.0.attn_norm.weight", (8,)), Tensor("x.weight.lora_a", (8, 4))]
    problems = problems_of(adapter_bytes({"general.type": None, "adapter.lora.alpha": typed(U32, 1)}, tensors))
    assert len(problems) == 5


def test_padding_may_hold_anything():
    """One byte pattern is a NaN as F32, but it lies between two tensors, not in one."""
    sound = [
        Tensor("blk.0.attn_q.weight.lora_a", (3, 1), data=floats(3) + b"\xff" * 20),
        Tensor("blk.0.attn_q.weight.lora_b", (1, 3), data=floats(3)),
    ]
    assert check_adapter(adapter_bytes(tensors=sound), "a").info.rank == 1


@pytest.mark.parametrize("large", [False, True])
def test_a_base_model_is_no_adapter_and_says_so_once(write, monkeypatch, large):
    if large:
        monkeypatch.setattr("llamafu.adapters.file._PEEK_ABOVE", 0)
        monkeypatch.setattr("llamafu.adapters.file.check_adapter", None)  # the header alone must be enough
    path = write(
        base_bytes()
        if large
        else gguf_bytes([("general.architecture", typed(STRING, "llama"))], [Tensor("output.weight", (8, 32))])
    )
    with pytest.raises(
        InvalidAdapterFileError, match=r"adapter.gguf: no adapter but a base model .*\(untyped, llama, \d+ tensors\)"
    ) as caught:
        read_adapter(path)
    assert len(caught.value.problems) == 1


def test_a_large_adapter_is_read_like_a_small_one(write, monkeypatch):
    monkeypatch.setattr("llamafu.adapters.file._PEEK_ABOVE", 0)
    assert read_adapter(write(adapter_bytes())).info.rank == 4


def test_a_missing_file_is_a_file_not_found_error(tmp_path):
    for path in (tmp_path / "none.gguf", tmp_path / "none" / "none.gguf", str(tmp_path / "none.gguf")):
        with pytest.raises(AdapterFileNotFoundError, match=r"none.gguf: there is no such adapter file") as caught:
            read_adapter(path)
        assert isinstance(caught.value, FileNotFoundError)
        assert isinstance(caught.value, LoraLoadError)
        assert caught.value.code == ErrorCode.FILE_NOT_FOUND


def test_folders_are_refused_with_what_to_give(tmp_path):
    with pytest.raises(InvalidAdapterFileError, match="a folder; give a GGUF adapter file"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(InvalidAdapterFileError, match="with adapter_model.safetensors and without adapter_config.json"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InvalidAdapterFileError, match="a folder with a PEFT adapter, which needs its base model"):
        read_adapter(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_and_devices_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", os.devnull):
        with pytest.raises(InvalidAdapterFileError, match="a device, pipe or socket; give a GGUF adapter file"):
            read_adapter(path)


def test_an_unreadable_file_is_a_load_error(write, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    path = write(adapter_bytes())
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(LoraLoadError, match="the adapter file cannot be read: Permission denied") as caught:
        read_adapter(path)
    assert caught.value.code == ErrorCode.FILE_READ_FAILED


SOUND = adapter_bytes({TOKENS: typed(ARRAY, (U32, [1, 2]))})


@settings(max_examples=600, deadline=None)
@given(damages)
def test_damage_is_refused_or_harmless(steps):
    begin = time.process_time()
    data = mutate(SOUND, steps)
    try:
        adapter = check_adapter(data, "a")
    except InvalidAdapterFileError as error:
        assert error.problems  # noqa: PT017 - both outcomes are legal
    else:
        matrices = [adapter.matrix(entry) for pair in adapter.pairs.values() for entry in pair]
        assert all(np.isfinite(matrix).all() for matrix in matrices)
        assert adapter.info.parameter_count == sum(matrix.size for matrix in matrices)
    assert time.process_time() - begin < 1


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(TENSORS) - 1), st.data())
def test_any_float_that_is_not_finite_is_found(index, data):
    count = len(TENSORS[index].data) // 4
    bits = data.draw(st.integers(0, 0xFFFFFFFF))
    position = data.draw(st.integers(0, count - 1))
    values = bytearray(TENSORS[index].data)
    values[position * 4 : position * 4 + 4] = struct.pack("<I", bits)
    content = adapter_bytes(tensors=replaced(TENSORS, index, data=bytes(values)))
    if np.isfinite(np.array([bits], np.uint32).view(np.float32)[0]):
        check_adapter(content, "a")
    else:
        assert problems_of(content) == (f"tensor {TENSORS[index].name!r} holds NaN or infinite values",)


def test_a_megabyte_is_inspected_within_15_ms(write):
    """210 pairs, as rank-2 adapters of a 30-layer model 576 wide have: 1 MB."""
    tensors = [
        tensor
        for layer in range(30)
        for module, width, height in (
            ("attn_q", 576, 576),
            ("attn_k", 576, 192),
            ("attn_v", 576, 192),
            ("attn_output", 576, 576),
            ("ffn_gate", 576, 1536),
            ("ffn_up", 576, 1536),
            ("ffn_down", 1536, 576),
        )
        for tensor in (
            Tensor(f"blk.{layer}.{module}.weight.lora_a", (width, 2), GGML_F16),
            Tensor(f"blk.{layer}.{module}.weight.lora_b", (2, height), GGML_F16),
        )
    ]
    path = write(adapter_bytes(tensors=tensors))
    assert path.stat().st_size > 1_000_000
    assert best_cpu_seconds(lambda: inspect_adapter(path)) < 0.015


def test_importing_the_package_imports_neither_numpy_nor_gguf():
    code = "import sys, llamafu.adapters; print({'numpy', 'gguf', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "set()\n"


def test_inspecting_does_not_import_torch(write):
    code = (
        f"import sys, llamafu.adapters as a; a.inspect_adapter({str(write(adapter_bytes()))!r}); print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"
