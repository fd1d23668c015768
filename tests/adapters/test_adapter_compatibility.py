"""Base models' headers, and every way in which an adapter may not fit one."""

from __future__ import annotations

import os
import re
import struct
import time
from pathlib import Path

import pytest
from helpers.cpu_time import best_cpu_seconds
from helpers.damage import damages, mutate
from helpers.gguf_bytes import (
    ARRAY,
    BASE_SHAPES,
    I32,
    STRING,
    U32,
    Tensor,
    adapter_bytes,
    adapter_tensors,
    base_bytes,
    experts,
    gguf_bytes,
    pair,
    typed,
    writer,
)
from helpers.tower_adapters import write_tower_adapter
from hypothesis import given, settings

from llamafu.adapters import check_adapter, check_compatibility, read_base
from llamafu.adapters.gguf.base_model import ModelFileNotFoundError
from llamafu.errors import ErrorCode, ModelLoadError

Q = "blk.0.attn_q.weight"
UNTIED = BASE_SHAPES
TIED = {name: shape for name, shape in BASE_SHAPES.items() if name != "output.weight"}


@pytest.fixture
def write(tmp_path):
    return writer(tmp_path, "base.gguf")


@pytest.fixture
def report(write):
    """Report on an adapter of these tensors and this model."""

    def report(tensors, shapes=UNTIED, *, keys=None, **base):
        adapter = check_adapter(adapter_bytes(keys, tensors), Path("adapter.gguf"))
        return check_compatibility(adapter, read_base(write(base_bytes(shapes, **base))))

    return report


def test_the_facts_of_a_base_model(write):
    base = read_base(str(write(base_bytes())))
    assert base.path == write(base_bytes())
    assert (base.name, base.architecture, base.tied, base.vocabulary_size) == ("Tiny", "llama", False, 32)
    assert base.tensors == BASE_SHAPES
    assert base.metadata == {"general.architecture": "llama", "general.name": "Tiny", "llama.block_count": 2}
    tied = read_base(write(base_bytes(TIED, {"general.name": None})))
    assert (tied.name, tied.tied) == ("base", True)
    assert read_base(write(base_bytes({"blk.0.attn_q.weight": (8, 8)}))).vocabulary_size is None


def test_shards_are_read_together(write):
    first = base_bytes({"token_embd.weight": (8, 32)}, {"split.count": typed(U32, 2)})
    second = gguf_bytes(
        [("split.count", typed(U32, 2)), ("general.name", typed(STRING, "not this"))], [Tensor(Q, (8, 8), data=b"")]
    )
    path = write(first, "big-00001-of-00002.gguf")
    with pytest.raises(
        ModelFileNotFoundError, match=r"split into 2 parts, and big-00002-of-00002\.gguf is not there; put it into"
    ):
        read_base(path)
    other = write(second, "big-00002-of-00002.gguf")
    for shard in (path, other):
        base = read_base(shard)
        assert (base.name, base.tensors) == ("Tiny", {"token_embd.weight": (8, 32), Q: (8, 8)})
    assert read_base(write(base_bytes(), "x-00001-of-00000.gguf")).tensors == BASE_SHAPES


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "base.gguf is an empty file"),
        (b"PK\x03\x04", "base.gguf: not a GGUF file but a zip archive"),
        (base_bytes()[:400], r"base.gguf: .*truncated"),
        (adapter_bytes(), r"is a LoRA adapter \(general.type 'adapter'\), no base model"),
        (base_bytes(changes={"general.type": typed(STRING, "mmproj")}), "is a multimodal projector"),
        (base_bytes(changes={"general.type": typed(STRING, "imatrix")}), "is an importance matrix"),
        (base_bytes(changes={"general.architecture": None}), "'general.architecture' is None; it must be the name of one"),
        (base_bytes(changes={"general.architecture": typed(U32, 1)}), "'general.architecture' is 1; it must be"),
        (base_bytes(changes={"general.architecture": typed(STRING, "")}), "'general.architecture' is ''; it must be"),
        (base_bytes({}), "has no tensors: it is a vocabulary"),
    ],
)
def test_what_is_no_base_model_is_refused(write, data, message):
    with pytest.raises(ModelLoadError, match=message):
        read_base(write(data))


def test_a_missing_model_is_a_file_not_found_error(tmp_path):
    for path in (tmp_path / "none.gguf", tmp_path / "none" / "none.gguf"):
        with pytest.raises(ModelFileNotFoundError, match="there is no such model file") as caught:
            read_base(path)
        assert isinstance(caught.value, FileNotFoundError)
        assert isinstance(caught.value, ModelLoadError)
        assert caught.value.code == ErrorCode.FILE_NOT_FOUND


def test_folders_and_devices_are_no_models(tmp_path):
    for path, words in (
        (tmp_path, "config.json is not there; give a GGUF model"),
        (os.devnull, "is no file; give a GGUF model file"),
    ):
        with pytest.raises(ModelLoadError, match=words):
            read_base(path)


def test_an_unreadable_model_is_a_load_error(write, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    path = write(base_bytes())
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ModelLoadError, match="the model file cannot be read: Permission denied") as caught:
        read_base(path)
    assert caught.value.code == ErrorCode.FILE_READ_FAILED


@settings(max_examples=200, deadline=None)
@given(damages)
def test_a_damaged_model_is_refused_or_read(tmp_path_factory, steps):
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(mutate(base_bytes(), steps))
    begin = time.process_time()
    try:
        base = read_base(path)
    except ModelLoadError as error:
        assert str(path) in str(error)  # noqa: PT017 - both outcomes are legal
    else:
        check_compatibility(check_adapter(adapter_bytes(), Path("a")), base)
    assert time.process_time() - begin < 1


def test_a_vocabulary_of_256k_is_stepped_over_within_100_ms(write):
    """As large as the largest in use; its strings would take several times as long to make."""
    words = struct.pack("<IIQ", ARRAY, STRING, 256_000) + b"".join(
        struct.pack("<Q", length := i % 12) + b"x" * length for i in range(256_000)
    )
    path = write(base_bytes(changes={"tokenizer.ggml.tokens": words}))
    assert best_cpu_seconds(lambda: read_base(path), tries=3) < 0.1


@pytest.mark.parametrize("shapes", [UNTIED, TIED])
def test_what_fits_is_true(report, shapes):
    found = report([*adapter_tensors(), *experts(8, 16, 2, 3)], shapes)
    assert found
    assert found.problems == ()


def test_embeddings_and_output_of_an_untied_model_fit(report):
    embeddings = [Tensor("token_embd.weight.lora_a", (4, 32)), Tensor("token_embd.weight.lora_b", (4, 8))]
    assert report([*embeddings, *pair("output.weight", 8, 32, 2)]).problems == ()


def test_one_expert_may_be_stored_flat(report):
    assert report(experts(8, 16, 2, 1), {**UNTIED, "blk.0.ffn_up_exps.weight": (8, 16)}).problems == ()


TOKENS = "adapter.alora.invocation_tokens"
OFF = {
    "absent, near": (
        {"tensors": pair("blk.0.attn_qkv.weight", 8, 24, 2)},
        "blk.0.attn_qkv.weight: not in the base model; the nearest names in it are attn_q, attn_k",
    ),
    "absent, the model tied": (
        {"tensors": pair("blk.0.attn_qkv.weight", 8, 24, 2), "shapes": TIED},
        "blk.0.attn_qkv.weight: not in the base model; the nearest names in it are attn_q, attn_k",
    ),
    "only outside the layers": (
        {"tensors": pair("blk.0.output.weight", 8, 32, 2)},
        "blk.0.output.weight: not in the base model; the nearest names in it are output",
    ),
    "absent, nothing near": (
        {"tensors": pair("zzz.weight", 8, 8, 2)},
        "zzz.weight: not in the base model; it has attn_k, attn_q, ffn_down, ffn_up, ffn_up_exps, output, token_embd",
    ),
    "absent layer": (
        {"tensors": [*pair("blk.1.attn_q.weight", 8, 8, 2), *pair("blk.2.attn_q.weight", 8, 8, 2)]},
        "blk.2.attn_q.weight: not in the base model, which has attn_q in layers 0-1 only",
    ),
    "absent in all layers but one": (
        {"tensors": pair("blk.0.attn_v.weight", 8, 8, 2), "shapes": {**UNTIED, "blk.1.attn_v.weight": (8, 8)}},
        "blk.0.attn_v.weight: not in the base model, which has attn_v in layer 1 only",
    ),
    "name without .weight": (
        {"tensors": pair("blk.0.attn_q", 8, 8, 2)},
        "blk.0.attn_q: not in the base model; the name there ends in .weight",
    ),
    "width": (
        {"tensors": pair(Q, 16, 8, 2)},
        "blk.0.attn_q.weight: the adapter is 16 in, 8 out; the base model is 8 in, 8 out",
    ),
    "height": (
        {"tensors": pair("blk.0.attn_k.weight", 8, 8, 2)},
        "blk.0.attn_k.weight: the adapter is 8 in, 8 out; the base model is 8 in, 4 out",
    ),
    "vector": (
        {"tensors": pair("blk.0.attn_norm.weight", 8, 1, 1)},
        "blk.0.attn_norm.weight: a vector of 8 values in the base model (norm, bias); libllama adapts matrices only",
    ),
    "number of experts": (
        {"tensors": experts(8, 16, 2, 4)},
        "blk.0.ffn_up_exps.weight: the adapter has 4 experts, the base model 3 experts",
    ),
    "experts and width": (
        {"tensors": experts(4, 16, 2, 4)},
        (
            "blk.0.ffn_up_exps.weight: the adapter is 4 in, 16 out; the base model is 8 in, 16 out; "
            "the adapter has 4 experts, the base model 3 experts"
        ),
    ),
    "matrix where the model has a stack": (
        {"tensors": pair(Q, 8, 8, 2), "shapes": {**UNTIED, Q: (8, 8, 5)}},
        "blk.0.attn_q.weight: the adapter has one matrix, no experts, the base model 5 experts",
    ),
    "tied embeddings": (
        {"tensors": [Tensor("token_embd.weight.lora_a", (4, 32)), Tensor("token_embd.weight.lora_b", (4, 8))], "shapes": TIED},
        (
            "token_embd.weight: the base model's output matrix is tied to its token embeddings (there is no output.weight), "
            "and libllama aborts on an adapter for such embeddings; train without embed_tokens and lm_head"
        ),
    ),
    "size of embeddings": (
        {"tensors": [Tensor("token_embd.weight.lora_a", (4, 33)), Tensor("token_embd.weight.lora_b", (4, 8))]},
        "token_embd.weight: the adapter is 8 in, 33 out; the base model is 8 in, 32 out",
    ),
    "output of a tied model": (
        {"tensors": pair("output.weight", 8, 32, 2), "shapes": TIED},
        "output.weight: not in the base model, whose output matrix is tied to token_embd.weight; train without lm_head",
    ),
    "tokens": (
        {"tensors": pair(Q, 8, 8, 2), "keys": {TOKENS: typed(ARRAY, (U32, [31, 32, 1 << 31]))}},
        "invocation tokens 32, 2147483648 lie outside the base model's vocabulary of 32 tokens",
    ),
    "architecture": (
        {"tensors": pair(Q, 8, 8, 2), "changes": {"general.architecture": typed(STRING, "qwen2")}},
        "the adapter is for the architecture 'llama', the base model is 'qwen2'",
    ),
}


@pytest.mark.parametrize(("case", "message"), OFF.values(), ids=OFF.keys())
def test_a_mismatch_is_named(report, case, message):
    found = report(**case)
    assert not found
    assert found.problems == (message,)


def test_tokens_are_not_judged_without_a_vocabulary(report):
    keys = {TOKENS: typed(ARRAY, (U32, [99]))}
    assert report(pair(Q, 8, 8, 2), {Q: (8, 8)}, keys=keys)


def test_every_mismatch_is_reported_and_layers_share_a_line(report):
    tensors = [
        tensor
        for layer in range(6)
        for module in ("attn_q", "attn_v")
        for tensor in pair(f"blk.{layer}.{module}.weight", 4, 8, 2)
        if layer != 4
    ]
    problems = report(tensors, changes={"general.architecture": typed(STRING, "gemma3")}).problems
    assert problems == (
        "the adapter is for the architecture 'llama', the base model is 'gemma3'",
        "blk.0-1.attn_q.weight: the adapter is 4 in, 8 out; the base model is 8 in, 8 out",
        "blk.0-3,5.attn_v.weight: not in the base model; the nearest names in it are attn_q, attn_k",
        "blk.2-3,5.attn_q.weight: not in the base model, which has attn_q in layers 0-1 only",
    )
    named = {
        (int(layer), module)
        for problem in problems[1:]
        for ranges, module in re.findall(r"^blk\.([0-9,-]+)\.(\w+)\.weight", problem)
        for part in ranges.split(",")
        for layer in range(int(part.split("-")[0]), int(part.split("-")[-1]) + 1)
    }
    assert named == {(layer, module) for layer in (0, 1, 2, 3, 5) for module in ("attn_q", "attn_v")}


def test_a_hopeless_match_of_240_tensors_is_reported_quickly(write):
    tensors = [
        tensor
        for layer in range(30)
        for module in ("wq", "wk", "wv", "wo")
        for tensor in (
            Tensor(f"blk.{layer}.{module}.weight.lora_a", (8, 2)),
            Tensor(f"blk.{layer}.{module}.weight.lora_b", (2, 8)),
        )
    ]
    adapter = check_adapter(adapter_bytes(tensors=tensors), Path("a"))
    base = read_base(write(base_bytes(changes={"general.file_type": typed(I32, 1)})))
    assert len(check_compatibility(adapter, base).problems) == 4
    assert best_cpu_seconds(lambda: check_compatibility(adapter, base)) < 0.02


def test_factors_of_a_tower_are_refused_with_the_mend(tiny_model, tmp_path):
    path = write_tower_adapter(tmp_path / "tower.gguf")
    adapter = check_adapter(path.read_bytes(), path)
    report = check_compatibility(adapter, read_base(tiny_model))
    assert len(report.problems) == 3
    for part, problem in zip(("vision tower", "vision tower", "projector"), sorted(report.problems, reverse=True), strict=True):
        assert f"belongs to the model's {part} (its mmproj file)" in problem
        assert "--drop vision, audio or projector" in problem
