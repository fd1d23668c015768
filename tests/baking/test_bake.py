"""Baking adapters into models: against the live adapter, dense NumPy, the gguf package's reader and both quantisers."""

import hashlib
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFReader, GGUFWriter, quants
from helpers import baked_models
from helpers.baked_models import PIRATE, TEXT, data, divergence, logits, write_model
from helpers.doc_pages import ROOT, table
from helpers.merge_cases import dense, make
from helpers.peft_folders import tiny_factors, write_folder
from helpers.requantising import requantised

from llamafu import Llamafu
from llamafu.adapters import bake, convert_peft, inspect_adapter, read_base
from llamafu.adapters.gguf.codec import NumpyCodec, row_bytes
from llamafu.adapters.gguf.shard import read_shards
from llamafu.adapters.writer import write_adapter
from llamafu.baking.options import DTYPES
from llamafu.cli.main import main
from llamafu.errors import (
    InvalidAdapterFileError,
    InvalidScaleError,
    LibraryNotFoundError,
    LoraError,
    LoraIncompatibleError,
    LoraLoadError,
    ModelLoadError,
)
from llamafu.examples.model import example_model

ggml, no_library = baked_models.ggml, baked_models.no_library  # fixtures

BOTH = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16", "F16")
BLOCKS = "Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS".split()


def values(path):
    return {t.name: np.float64(quants.dequantize(t.data, t.tensor_type)) for t in GGUFReader(path).tensors}


@pytest.mark.parametrize("scales", [(1.0, 0.5), (-0.7, 2.0)])
def test_a_baked_model_answers_like_the_live_adapters(tiny_model, tiny_adapter_a, tiny_adapter_b, tmp_path, scales):
    """Halving alpha, or dropping the second adapter, moves the divergence above 1e-3."""
    adapters = dict(zip((tiny_adapter_a, tiny_adapter_b), scales, strict=True))
    live = logits(tiny_model, adapters)
    assert bake(tiny_model, adapters, tmp_path / "baked.gguf") == tmp_path / "baked.gguf"
    assert divergence(live, logits(tmp_path / "baked.gguf", {})) <= 1e-6
    assert divergence(live, logits(tiny_model, {})) > 1e-3
    assert divergence(live, logits(tiny_model, {tiny_adapter_a: scales[0]})) > 1e-3


def test_the_sum_is_exact_and_the_rest_is_untouched(tiny_model, tiny_adapter_a, tiny_adapter_b, tmp_path):
    adapters = {tiny_adapter_a: 0.8, tiny_adapter_b: -1.5}
    out = bake(tiny_model, adapters, tmp_path / "baked.gguf")
    wanted = values(tiny_model)
    for path, scale in adapters.items():
        for name, change in dense(path).items():
            wanted[name] = wanted[name] + scale * change
    for name, array in values(out).items():
        np.testing.assert_allclose(array, wanted[name], rtol=0, atol=2e-6, err_msg=name)
    changed = set(dense(tiny_adapter_a))
    before, after = data(tiny_model), data(out)
    assert list(after) == list(before)
    assert {name for name in before if before[name] != after[name]} == changed


def test_metadata_stay_and_say_what_was_baked(tiny_model, tiny_adapter_a, tiny_adapter_b, tmp_path):
    """A second bake adds to the list. Everything that was there is there, in the same bytes."""
    once = bake(tiny_model, {tiny_adapter_a: 0.25}, tmp_path / "once.gguf")
    twice = bake(once, {tiny_adapter_b: 1.0}, tmp_path / "twice.gguf")
    (source,), (result,) = read_shards(tiny_model), read_shards(twice)
    spans = result.container.metadata_spans
    for key, (begin, end) in source.container.metadata_spans.items():
        first, last = spans[key]
        assert result.head[first:last] == source.head[begin:end], key
    new = {key: read_base(twice).metadata[key] for key in spans if key not in source.container.metadata_spans}
    assert new.pop("llamafu.bake.0.kept") == pytest.approx(1, abs=1e-3)
    assert new.pop("llamafu.bake.1.kept") == pytest.approx(1, abs=1e-3)
    assert new == {
        "llamafu.bake.count": 2,
        "llamafu.bake.0.name": "a",
        "llamafu.bake.0.digest": inspect_adapter(tiny_adapter_a).digest,
        "llamafu.bake.0.scale": 0.25,
        "llamafu.bake.0.source_name": "tiny.gguf",
        "llamafu.bake.0.source_digest": hashlib.sha256(tiny_model.read_bytes()).hexdigest(),
        "llamafu.bake.1.name": "b",
        "llamafu.bake.1.digest": inspect_adapter(tiny_adapter_b).digest,
        "llamafu.bake.1.scale": 1.0,
        "llamafu.bake.1.source_name": "once.gguf",
        "llamafu.bake.1.source_digest": hashlib.sha256(once.read_bytes()).hexdigest(),
    }


def test_a_scale_of_zero_leaves_the_adapter_out(tiny_model, tiny_adapter_a, tiny_adapter_b, tmp_path):
    nothing = bake(tiny_model, {tiny_adapter_a: 0}, tmp_path / "nothing.gguf")
    assert nothing.read_bytes() == tiny_model.read_bytes()
    one = bake(tiny_model, {tiny_adapter_a: 0.0, tiny_adapter_b: 1.0}, tmp_path / "one.gguf")
    assert one.read_bytes() == bake(tiny_model, {tiny_adapter_b: 1.0}, tmp_path / "two.gguf").read_bytes()


# -- types --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BOTH)
def test_both_quantisers_write_the_same_bytes(ggml, kind):
    random = np.random.default_rng(5)
    rows = (random.standard_normal((16, 256)) * np.exp(random.standard_normal((16, 1)))).astype(np.float32)
    rows[3] = 0
    ours, theirs = ggml.encode(rows, Kind[kind]), NumpyCodec().encode(rows, Kind[kind])
    assert bytes(ours) == bytes(theirs)
    back, again = np.empty_like(rows), np.empty_like(rows)
    ggml.decode(ours, Kind[kind], back)
    NumpyCodec().decode(theirs, Kind[kind], again)
    assert np.array_equal(back, again)


@pytest.mark.parametrize("kind", BLOCKS)
def test_ggml_alone_writes_the_others(ggml, kind):
    """They come back as gguf reads them, and near to what they were."""
    rows = np.random.default_rng(5).standard_normal((8, 512)).astype(np.float32)
    encoded = ggml.encode(rows, Kind[kind])
    assert len(encoded) == 8 * row_bytes(512, Kind[kind])
    back, again = np.empty_like(rows), np.empty_like(rows)
    ggml.decode(encoded, Kind[kind], back)
    NumpyCodec().decode(encoded, Kind[kind], again)
    np.testing.assert_allclose(back, again, rtol=0, atol=1e-5)
    assert np.sqrt(np.mean((back - rows) ** 2)) < 0.5
    assert ggml.problem(Kind[kind], Kind[kind]) is None
    assert "llamafu lib install" in NumpyCodec().problem(Kind[kind], Kind[kind])


def test_types_that_cannot_be_written(ggml):
    assert "importance matrix" in ggml.problem(Kind.F16, Kind.IQ2_XXS)
    for codec in (ggml, NumpyCodec()):
        assert "cannot be turned into numbers" in codec.problem(Kind.I32, Kind.F32)
        assert codec.problem(Kind.F64, Kind.F32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("source", ["tiny.gguf", "tiny-q4_0.gguf"])
def test_every_dtype(ggml, tiny_dir, tiny_adapter_a, tmp_path, source, dtype):
    """The result is what ggml makes of the sum, to the byte; all else is copied."""
    base = tiny_dir / source
    out = bake(base, {tiny_adapter_a: 1.0}, tmp_path / "out.gguf", dtype=dtype)
    before, after, sums = data(base), data(out), values(base)
    changes = dense(tiny_adapter_a)
    for name, (content, kind, shape) in after.items():
        if name not in changes:
            assert (content, kind, shape) == before[name]
            continue
        assert kind is (before[name][1] if dtype in ("auto", "keep") else Kind[dtype.upper()])
        assert shape == before[name][2]
        total = np.float32(sums[name] + changes[name])
        if kind is Kind.F32:
            np.testing.assert_allclose(np.frombuffer(content, "<f4").reshape(total.shape), total, rtol=0, atol=1e-6)
        else:  # a sum that lies between two steps may go either way in its last bit
            same = np.frombuffer(content, np.uint8) == np.frombuffer(ggml.encode(total, kind), np.uint8)
            assert same.mean() > 0.99
    assert logits(out, {}).shape == logits(base, {}).shape


def test_without_a_library(no_library, tiny_dir, tiny_adapter_a, tmp_path, monkeypatch):
    """Gguf's quantiser gives the file that ggml's gives."""
    slow = bake(tiny_dir / "tiny-q4_0.gguf", {tiny_adapter_a: 1.0}, tmp_path / "slow.gguf")
    monkeypatch.undo()
    fast = bake(tiny_dir / "tiny-q4_0.gguf", {tiny_adapter_a: 1.0}, tmp_path / "fast.gguf")
    assert data(slow) == data(fast)


def test_without_a_library_k_quants_are_refused(ggml, no_library, tmp_path):
    name = "blk.0.attn_q.weight"
    adapter = make(tmp_path / "a.gguf", seed=1, shapes={name: (8, 256)})
    writer = GGUFWriter(tmp_path / "k.gguf", "llama")
    rows = np.random.default_rng(1).standard_normal((8, 256)).astype(np.float32)
    writer.add_tensor(name, np.frombuffer(ggml.encode(rows, Kind.Q4_K), np.uint8).reshape(8, -1), raw_dtype=Kind.Q4_K)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    with pytest.raises(LoraError, match=r"blk.0.attn_q.weight: only libllama.*Q4_K.*lib install.*dtype 'f16'"):
        bake(tmp_path / "k.gguf", {adapter: 1}, tmp_path / "out.gguf")
    assert data(bake(tmp_path / "k.gguf", {adapter: 1}, tmp_path / "out.gguf", dtype="f16"))[name][1] is Kind.F16


def test_a_named_library_must_work(tiny_model, tiny_adapter_a, tmp_path, monkeypatch):
    with pytest.raises(LibraryNotFoundError):
        bake(tiny_model, {tiny_adapter_a: 1}, tmp_path / "out.gguf", library=tmp_path / "absent.so")
    monkeypatch.setattr("llamafu._native.library._loaded", None)
    monkeypatch.setenv("LLAMAFU_LIB", str(tmp_path / "absent.so"))
    with pytest.raises(LibraryNotFoundError):
        bake(tiny_model, {tiny_adapter_a: 1}, tmp_path / "out.gguf")


# -- kinds of tensors and files -----------------------------------------------------------------------------------


def test_embeddings_and_experts(tmp_path):
    """Token embeddings lie transposed in the adapter; every expert gets its own change. Many blocks, many threads."""
    shapes = {"token_embd.weight": (40, 32), "blk.0.ffn_up_exps.weight": (5, 24, 32), "output.weight": (40, 32)}
    random = np.random.default_rng(0)
    model = write_model(tmp_path / "m.gguf", {name: random.standard_normal(s).astype(np.float32) for name, s in shapes.items()})
    factors = {**shapes, "token_embd.weight": (32, 40)}
    adapters = {make(tmp_path / f"{seed}.gguf", seed=seed, shapes=factors): seed / 2 for seed in (1, 2)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llamafu.baking.writer._BLOCK_VALUES", 100)
        out = bake(model, adapters, tmp_path / "out.gguf", n_threads=3)
    wanted = values(model)
    for path, scale in adapters.items():
        for name, change in dense(path).items():
            wanted[name] = wanted[name] + scale * (change.T if name == "token_embd.weight" else change)
    for name, array in values(out).items():
        np.testing.assert_allclose(array, wanted[name], rtol=0, atol=1e-5, err_msg=name)


def split(path, folder, stem="big"):
    """Write a model as two shards, as llama-gguf-split does: all metadata in the first."""
    reader = GGUFReader(path)
    half = len(reader.tensors) // 2
    for number, part in enumerate((reader.tensors[:half], reader.tensors[half:])):
        writer = GGUFWriter(folder / f"{stem}-{number + 1:05d}-of-00002.gguf", "llama")
        if not number:
            for key, field in reader.fields.items():
                if not key.startswith(("GGUF.", "general.architecture")):
                    inner = field.types[-1] if len(field.types) > 1 else None
                    writer.add_key_value(key, field.contents(), field.types[0], inner)
        for key, value in (("split.no", number), ("split.count", 2)):
            writer.add_uint16(key, value)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in part:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
            step()
    return folder / f"{stem}-00001-of-00002.gguf"


def test_shards_stay_shards(tiny_model, tiny_adapter_a, tmp_path):
    big = split(tiny_model, tmp_path)
    live = logits(big, {tiny_adapter_a: 1.0})
    out = bake(big, {tiny_adapter_a: 1.0}, tmp_path / "out.gguf")
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out-00001-of-00002.gguf", "out-00002-of-00002.gguf"]
    assert out == tmp_path / "out-00001-of-00002.gguf"
    assert divergence(live, logits(out, {})) <= 1e-6
    both = b"".join((tmp_path / f"big-0000{i}-of-00002.gguf").read_bytes() for i in (1, 2))
    assert read_base(out).metadata["llamafu.bake.0.source_digest"] == hashlib.sha256(both).hexdigest()
    named = bake(big, {tiny_adapter_a: 1.0}, tmp_path / "named-00001-of-00002.gguf")
    assert named.read_bytes() == out.read_bytes()
    for wrong in ("x-00001-of-00003.gguf", "big.gguf", "big-00002-of-00002.gguf"):
        with pytest.raises(ValueError, match=r"named like a shard|files of the model"):
            bake(big, {tiny_adapter_a: 1.0}, tmp_path / wrong)
    lonely = shutil.copy(big, tmp_path / "lonely.gguf")
    with pytest.raises(ModelLoadError, match=r"one of 2 shards"):
        bake(lonely, {tiny_adapter_a: 1.0}, tmp_path / "x.gguf")
    (tmp_path / "big-00002-of-00002.gguf").unlink()
    with pytest.raises(ModelLoadError, match="is not there; put it into"):
        bake(big, {tiny_adapter_a: 1.0}, tmp_path / "x.gguf")


def test_a_peft_folder(tmp_path):
    """The folder gives what its exact GGUF form gives: the example exists as both."""
    from llamafu.adapters import AdapterReader

    folder = ROOT / "examples" / "adapters" / "pirate"
    model = example_model()
    exact = AdapterReader(read_base(model), dtype="exact").read(folder).info.tensors[0].dtype.lower()
    convert_peft(folder, tmp_path / "pirate.gguf", base=model, dtype=exact)
    one = bake(model, {folder: 1.0}, tmp_path / "one.gguf")
    two = bake(model, {tmp_path / "pirate.gguf": 1.0}, tmp_path / "two.gguf")
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("size", [3e-7, 7e4])
def test_a_folder_is_baked_from_what_is_in_it(tiny_model, tmp_path, size):
    """Values that F16 has not: rounded to it first, a third of the small change is lost, and the large one is refused."""
    folder = write_folder(tmp_path / "folder", tiny_factors(size))
    out = bake(tiny_model, {folder: 1.0}, tmp_path / "out.gguf", dtype="f32")
    before, after = values(tiny_model), values(out)
    convert_peft(folder, tmp_path / "exact.gguf", base=tiny_model, dtype="f32")
    for name, change in dense(tmp_path / "exact.gguf").items():
        step = np.spacing(np.abs(before[name]).max().astype(np.float32)) + np.spacing(np.float32(np.abs(change).max()))
        np.testing.assert_allclose(after[name] - before[name], change, rtol=0, atol=4 * step)
    assert read_base(out).metadata["llamafu.bake.0.kept"] == pytest.approx(1, abs=0.01)
    words = ["bake", "-m", str(tiny_model), "--lora", str(folder), "-o", str(tmp_path / "verb.gguf"), "--dtype", "f32"]
    assert main(words) == 0
    assert data(tmp_path / "verb.gguf") == data(out)


# -- what is refused ----------------------------------------------------------------------------------------------


def test_what_cannot_be_baked(tiny_model, tiny_dir, tiny_adapter_a, tmp_path):
    """One clear error each; no file appears and none changes."""
    model = shutil.copy(tiny_model, tmp_path / "model.gguf")
    whole = model.read_bytes()
    cases = {
        "cut": whole[:-100],
        "head": whole[:200],
        "big-endian": whole[:4] + b"\0\0\0\3" + whole[8:],
        "more": whole + bytes(99),
    }
    for name, content in cases.items():
        (tmp_path / f"{name}.gguf").write_bytes(content)
    adapter = shutil.copy(tiny_adapter_a, tmp_path / "a.gguf")
    copy = shutil.copy(tiny_adapter_a, tmp_path / "copy.gguf")
    bent = make(tmp_path / "bent.gguf", seed=1, shapes={"blk.0.attn_q.weight": (64, 32)})
    embedding = make(tmp_path / "embedding.gguf", seed=1, shapes={"token_embd.weight": (64, 317)})
    wrong_count = write_model(
        tmp_path / "count.gguf", {"blk.0.attn_q.weight": np.zeros((20, 12), np.float32)}, extra=[("llamafu.bake.count", 65535)]
    )
    fits = make(tmp_path / "fits.gguf", seed=1, shapes={"blk.0.attn_q.weight": (20, 12)})
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "link.gguf").symlink_to(model)
    out = tmp_path / "out.gguf"
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.iterdir()}
    for source, adapters, target, options, kind, words in (
        (model, {}, out, {}, ValueError, "no adapter"),
        (model, {adapter: math.nan}, out, {}, InvalidScaleError, "is nan"),
        (model, {adapter: -math.inf}, out, {}, InvalidScaleError, "is -inf"),
        (model, {adapter: 1}, out, {"dtype": "q4_0"}, ValueError, "keep, f32, f16, bf16, q8_0"),
        (model, [adapter], out, {}, TypeError, "is no mapping; give {path: scale}"),
        (model, {adapter: "1"}, out, {}, TypeError, "has '1' for .*, which is no number"),
        (model, {adapter: 1}, out, {"n_threads": 0}, ValueError, "n_threads is 0"),
        (model, {adapter: 1}, model, {}, ValueError, "files of the model"),
        (model, {adapter: 1}, tmp_path / "link.gguf", {}, ValueError, "files of the model"),
        (model, {adapter: 1}, adapter, {}, ValueError, "one of the adapters"),
        (model, {adapter: 1}, folder, {}, IsADirectoryError, "is a folder"),
        (model, {adapter: 1}, tmp_path / "no" / "out.gguf", {}, FileNotFoundError, "there is no folder"),
        (model, {adapter: 1}, tmp_path / "x-00001-of-00002.gguf", {}, ValueError, "named like a shard"),
        (model, {adapter: 1, copy: 1}, out, {}, LoraError, "same adapter"),
        (model, {bent: 1}, out, {}, LoraIncompatibleError, "32 in, 64 out"),
        (model, {tiny_dir / "alora.gguf": 1}, out, {}, LoraIncompatibleError, "aLoRA"),
        (tiny_dir / "tiny-tied.gguf", {embedding: 1}, out, {}, LoraIncompatibleError, "tied"),
        (tiny_dir / "tiny-qwen2.gguf", {adapter: 1}, out, {}, LoraIncompatibleError, "qwen2"),
        (model, {model: 1}, out, {}, InvalidAdapterFileError, "no adapter but a base model"),
        (adapter, {adapter: 1}, out, {}, ModelLoadError, "a LoRA adapter"),
        (model, {tmp_path / "absent.gguf": 1}, out, {}, LoraLoadError, "no such adapter file"),
        (tmp_path / "absent.gguf", {adapter: 1}, out, {}, ModelLoadError, "no such model file"),
        (tmp_path / "cut.gguf", {adapter: 1}, out, {}, ModelLoadError, "truncated"),
        (tmp_path / "head.gguf", {adapter: 1}, out, {}, ModelLoadError, "truncated|claims"),
        (tmp_path / "big-endian.gguf", {adapter: 1}, out, {}, ModelLoadError, "big-endian"),
        (tmp_path / "more.gguf", {adapter: 1}, out, {}, ModelLoadError, "follow the last tensor"),
        (model, {adapter: 1e8}, out, {"dtype": "f16"}, LoraError, "weight: with these scales it holds values that F16 cannot"),
        (model, {adapter: 1e30}, out, {}, InvalidScaleError, "the scale 1e.30 of .*a.gguf makes the change of blk.0.attn"),
        (model, {adapter: -1e30}, out, {"dtype": "f32"}, InvalidScaleError, "the scale -1e.30 of .* give a smaller scale"),
        (wrong_count, {fits: 1}, out, {"dtype": "q8_0"}, LoraError, "12 values do not divide into Q8_0 blocks of 32"),
    ):
        with pytest.raises(kind, match=words):
            bake(source, adapters, target, **options)
        assert {path: path.is_file() and path.read_bytes() for path in tmp_path.iterdir()} == before
    assert read_base(bake(wrong_count, {fits: 1}, out)).metadata["llamafu.bake.count"] == 65536
    with pytest.raises(ModelLoadError, match="llamafu.bake.count"):
        bake(out, {fits: 1}, tmp_path / "again.gguf")


def test_random_damage_is_an_error_or_a_model(tiny_model, tiny_adapter_b, tmp_path):
    """Flipped bytes in the header: never another exception, never a file left behind."""
    whole = tiny_model.read_bytes()
    (shard,) = read_shards(tiny_model)
    random = np.random.default_rng(3)
    refused = 0
    for _ in range(60):
        damaged = bytearray(whole)
        for position in random.integers(0, len(shard.head), 3):
            damaged[position] = random.integers(256)
        (tmp_path / "model.gguf").write_bytes(damaged)
        try:
            bake(tmp_path / "model.gguf", {tiny_adapter_b: 1}, tmp_path / "out.gguf").unlink()
        except (ModelLoadError, LoraError):
            refused += 1
        assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
    assert refused > 10


def test_the_disk_is_measured_first(tiny_model, tiny_adapter_a, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage._replace(free=1000))
    with pytest.raises(OSError, match=r"takes \d{6} bytes, and 1000 are free") as caught:
        bake(tiny_model, {tiny_adapter_a: 1}, tmp_path / "out.gguf")
    assert caught.value.errno == 28
    assert list(tmp_path.iterdir()) == []


def child(code, *arguments, **options):
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, **options)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit for file sizes")
def test_a_disk_that_fills_up_leaves_nothing(tiny_model, tiny_adapter_a, tmp_path):
    (tmp_path / "out.gguf").write_bytes(b"old")
    code = """
        import resource, sys
        from llamafu.cli.main import main
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        sys.exit(main(["bake", "-m", sys.argv[1], "--lora", sys.argv[2], "-o", sys.argv[3], "--force"]))
    """
    process = child(code, tiny_model, tiny_adapter_a, tmp_path / "out.gguf")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "File too large" in said
    assert "out.gguf" in said
    assert "Traceback" not in said
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("out.gguf", b"old")]


@pytest.mark.skipif(sys.platform == "win32", reason="signals of other systems")
@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_leaves_nothing(tiny_model, tiny_adapter_a, tmp_path, name, status):
    code = """
        import os, signal, sys, time
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup changes
        from llamafu.baking.weight_delta import WeightDelta
        from llamafu.cli.main import main
        made = WeightDelta.rows
        def slowly(*arguments):
            os.write(1, b"at work" + os.linesep.encode())  # whole: several threads do
            time.sleep(0.2)
            return made(*arguments)
        WeightDelta.rows = slowly
        sys.exit(main(["bake", "-m", sys.argv[1], "--lora", sys.argv[2], "-o", sys.argv[3]]))
    """
    process = child(code, tiny_model, tiny_adapter_a, tmp_path / "out.gguf")
    assert process.stdout.readline() == "at work\n"
    assert len(list(tmp_path.iterdir())) == 1
    began = time.monotonic()
    process.send_signal(getattr(signal, name))
    _, said = process.communicate(timeout=60)
    assert process.returncode == status
    assert time.monotonic() - began < 10
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


# -- the real model -----------------------------------------------------------------------------------------------


def perplexity(path, adapters):
    with Llamafu(path, n_ctx=256, type_k="f32", type_v="f32", flash_attn="off", n_threads=2) as llm:
        native = {llm._adapters.native(llm.load_lora_adapter(path)): scale for path, scale in adapters.items()}
        context = llm._session.instance.context
        context.set_adapters(native)
        tokens = llm.tokenize(TEXT)
        assert len(tokens) > 150
        context.decode(tokens, 0, all_logits=True)
        rows = np.array([context.logits(i) for i in range(len(tokens) - 1)], np.float64)
        context.set_adapters({})
    rows -= rows.max(-1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(-1, keepdims=True))
    return math.exp(-rows[np.arange(len(rows)), tokens[1:]].mean())


@pytest.mark.parametrize(("kind", "dtype"), [("Q8_0", "keep"), ("Q4_0", "q8_0")])
def test_perplexity_is_that_of_the_live_adapter(ggml, tmp_path, kind, dtype):
    model = requantised(Kind[kind], tmp_path / "model.gguf", ggml)
    live, base = perplexity(model, {PIRATE: 1.0}), perplexity(model, {})
    baked = perplexity(bake(model, {PIRATE: 1.0}, tmp_path / "baked.gguf", dtype=dtype), {})
    assert abs(live / base - 1) > 0.1
    assert abs(baked / live - 1) < 0.01


@pytest.mark.parametrize("scale", [1.0, 0.05])
def test_a_loss_is_told(tiny_dir, tiny_adapter_a, tmp_path, caplog, capsys, scale):
    """What is small beside the steps of a type that was named is lost in rounding, and this is not hidden."""
    model, out = tiny_dir / "tiny-q4_0.gguf", tmp_path / "out.gguf"
    with caplog.at_level(logging.WARNING, "llamafu"):
        bake(model, {tiny_adapter_a: scale}, out, dtype="keep")
    kept = read_base(out).metadata["llamafu.bake.0.kept"]
    before, after = values(model), values(out)
    top = bottom = 0.0
    for name, change in dense(tiny_adapter_a).items():
        top += np.vdot(after[name] - before[name], scale * change)
        bottom += np.vdot(scale * change, scale * change)
    assert kept == pytest.approx(top / bottom, abs=1e-3)
    assert (kept < 0.9) == ("rounding kept only" in caplog.text)
    assert (kept < 0.9) == (scale < 1)
    words = [
        "bake",
        "-m",
        str(model),
        "--lora",
        f"{tiny_adapter_a}={scale}",
        "-o",
        str(tmp_path / "verb.gguf"),
        "--dtype",
        "keep",
    ]
    assert main(words) == (1 if scale < 1 else 0)
    assert ("writes it all the same" in capsys.readouterr().err) == (scale < 1)
    assert (tmp_path / "verb.gguf").exists() == (scale == 1)
    assert main([*words, "--force", "--accept-loss"]) == 0
    assert ("use --calibrate auto or --dtype auto to keep more" in capsys.readouterr().out) == (scale < 1)
    assert (tmp_path / "verb.gguf").read_bytes() == out.read_bytes()


def test_the_change_is_kept_unless_another_type_is_named(tiny_dir, tiny_adapter_a, tmp_path, caplog, capsys):
    """Each tensor whose own type loses it gets the coarsest that does not; where none loses much, all stay as they are."""
    model, out = tiny_dir / "tiny-q4_0.gguf", tmp_path / "out.gguf"
    assert data(bake(model, {tiny_adapter_a: 1.0}, out)) == data(bake(model, {tiny_adapter_a: 1.0}, out, dtype="keep"))
    caplog.clear()
    bake(model, {tiny_adapter_a: 0.05}, out)
    assert read_base(out).metadata["llamafu.bake.0.kept"] > 0.9
    changed = {name for name, (_, kind, _) in data(out).items() if kind is not data(model)[name][1]}
    assert changed
    assert {data(out)[name][1] for name in changed} == {Kind.Q8_0}
    assert f"{len(changed)} tensors of Q4_0 became Q8_0, since these keep only " in caplog.text
    tiny = bake(model, {tiny_adapter_a: 1e-6}, tmp_path / "tiny.gguf")
    assert read_base(tiny).metadata["llamafu.bake.0.kept"] > 0.9
    before, after = values(model), values(tiny)
    for name, change in dense(tiny_adapter_a).items():
        assert np.vdot(after[name] - before[name], change) == pytest.approx(1e-6 * np.vdot(change, change), rel=0.15)
    words = ["bake", "-m", str(model), "--lora", f"{tiny_adapter_a}=0.05", "-o", str(out)]
    content = out.read_bytes()
    assert main(words) == 1
    assert "exists and is not replaced" in capsys.readouterr().err
    assert main([*words, "--force"]) == 0
    said = capsys.readouterr().out
    assert f"{len(changed)} tensors of Q4_0 became Q8_0, since their own type kept " in said
    assert out.read_bytes() == content


def test_what_no_coarse_type_holds_becomes_f32(tiny_dir, tmp_path, capsys):
    """Sums beyond 65504 in a model of Q4_0, whose scales are F16."""
    folder = write_folder(tmp_path / "folder", tiny_factors(7e4))
    words = ["bake", "-m", str(tiny_dir / "tiny-q4_0.gguf"), "--lora", str(folder), "-o", str(tmp_path / "out.gguf")]
    assert main([*words, "--dtype", "keep"]) == 1
    assert "the dtype 'f32'" in capsys.readouterr().err
    assert main(words) == 0
    assert "14 tensors of Q4_0 became F32, since their own type kept 0%" in capsys.readouterr().out
    assert read_base(tmp_path / "out.gguf").metadata["llamafu.bake.0.kept"] == pytest.approx(1, abs=1e-3)


def test_few_changed_experts_are_found(tmp_path):
    """One of 64 experts is changed, which no sample of the stack's rows may miss."""
    name = "blk.0.ffn_up_exps.weight"
    stack = np.random.default_rng(0).standard_normal((64, 64, 256)).astype(np.float32)
    model = write_model(tmp_path / "m.gguf", {name: stack}, kinds={name: Kind.Q4_0})
    a, b = np.zeros((64, 2, 256)), np.zeros((64, 64, 2))
    a[37], b[37] = 0.01, 0.01
    write_adapter(tmp_path / "a.gguf", {name: (a, b)}, architecture="llama", alpha=2, metadata={})
    out = bake(model, {tmp_path / "a.gguf": 1.0}, tmp_path / "out.gguf")
    assert data(out)[name][1] is not Kind.Q4_0
    assert read_base(out).metadata["llamafu.bake.0.kept"] > 0.9


# -- the command and the page -------------------------------------------------------------------------------------


def test_command(tiny_model, tiny_adapter_a, tiny_adapter_b, tmp_path, capsys):
    out = tmp_path / "out.gguf"
    words = ["bake", "-m", str(tiny_model), "--lora", f"{tiny_adapter_a}=0.5", "--lora", str(tiny_adapter_b), "-o", str(out)]
    assert main(words) == 0
    said = capsys.readouterr()
    assert said.out == f"{out}: {tiny_adapter_a}, {tiny_adapter_b} baked in, 100% of the changes kept\n"
    assert "100% baking" in said.err
    content = out.read_bytes()
    assert main(words) == 1
    assert out.read_bytes() == content
    assert "exists and is not replaced" in capsys.readouterr().err
    words.append("--force")
    assert bake(tiny_model, {tiny_adapter_a: 0.5, tiny_adapter_b: 1.0}, out).read_bytes() == content
    for wrong in (["--dtype", "q2"], ["--lora", str(tiny_adapter_b)], ["--lora", f"{tiny_adapter_a}=x"]):
        assert main([*words, *wrong]) == 2
    assert main([*words, "-o", str(tiny_model)]) == 2
    assert main(["bake", "-m", str(tmp_path / "absent"), *words[3:]]) == 1
    assert main([*words, "-o", str(tmp_path / "no" / "out.gguf")]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]
    assert out.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_the_page_lists_every_dtype():
    assert [row[0] for row in table(ROOT / "docs" / "baking.md", "dtype")] == list(DTYPES)


@pytest.mark.parametrize("dtype", ["auto", "f32"])
def test_where_no_type_keeps_more_none_is_advised(dtype, tiny_model, tiny_adapter_a, tmp_path, capsys):
    words = ["bake", "-m", str(tiny_model), "--lora", f"{tiny_adapter_a}=1e-12", "-o", str(tmp_path / "o.gguf")]
    assert main([*words, "--dtype", dtype, "--accept-loss"]) == 0
    said = capsys.readouterr().out
    assert "no type keeps more" in said
    assert "to keep more" not in said
