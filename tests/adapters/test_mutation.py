"""Thousands of damaged adapter files against the real library: each is an error or works; none crashes or hangs.

The files are made from seeds, so number 1234 is the same everywhere. A child process goes through them and says what it
is about to try; when it dies, the parent names the file and starts another child behind it.
"""

from __future__ import annotations

import json
import math
import os
import resource
import struct
import sys
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from helpers.child import ROOT, start
from helpers.gguf_bytes import ARRAY, F32, F64, I32, STRING, U8, U32, U64, Tensor, gguf_bytes, pair, replaced, typed

COUNT = 2400 if os.environ.get("LLAMAFU_FUZZ_COUNT") else 800
SECONDS = 5  # for one file
BASES = ("a.gguf", "f16.gguf", "alora.gguf")
MODELS = ("tiny.gguf", "tiny-tied.gguf")
TELLING = [0, 1, 2, 7, 8, 31, 33, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
KINDS = {"UINT8": U8, "UINT32": U32, "INT32": I32, "FLOAT32": F32, "STRING": STRING, "UINT64": U64, "FLOAT64": F64}
NAMES = [
    "token_embd.weight",
    "output.weight",
    "blk.0.attn_norm.weight",
    "blk.7.attn_q.weight",
    "blk.0.attn_q",
    "blk.0.ffn_up_exps.weight",
    "blk.-1.attn_q.weight",
    "",
    "x" * 63,
    "x" * 64,
    "x" * 5000,
    "blk.0.attn_q.weight\0",
    "blk.0.attn_q.weight.lora_a",
    "é",
    b"\xff\xfe",
]


# -- damage to bytes -----------------------------------------------------------------------------------------------------


def flip_bits(random, data, limit):
    for _ in range(random.choice([1, 1, 2, 8])):
        data[random.randrange(limit)] ^= 1 << random.randrange(8)


def overwrite(random, data, limit):
    at, size = random.randrange(limit), random.choice([1, 4, 8, 32, 500])
    piece = data[at : at + size]
    data[at : at + size] = random.choice([bytes(len(piece)), b"\xff" * len(piece), random.randbytes(len(piece))])


def truncate(random, data, limit):
    del data[random.choice([random.randrange(limit), random.randrange(len(data)), len(data) - 1]) :]


def remove_block(random, data, limit):
    at = random.randrange(limit)
    del data[at : at + random.choice([1, 4, 8, 32, 333])]


def repeat_block(random, data, limit):
    at, size = random.randrange(limit), random.choice([1, 4, 8, 32, 333])
    data[at:at] = data[at : at + size]


def move_block(random, data, limit):
    at, to, size = random.randrange(limit), random.randrange(limit), random.choice([4, 8, 32, 333])
    piece = data[at : at + size]
    data[to : to + len(piece)] = piece


def telling_number(random, data, limit):
    at = random.randrange(limit)
    layout = random.choice(["<Q", "<Q", "<I"])
    number = struct.pack(layout, random.choice(TELLING) & (2**64 - 1 if layout == "<Q" else 2**32 - 1))
    data[at : at + len(number)] = number


def header_count(random, data, _limit):
    at, layout = random.choice([(4, "<I"), (8, "<Q"), (16, "<Q")])
    old = struct.unpack_from(layout, data, at)[0]
    number = random.choice([*TELLING, old - 1, old + 1, old + 2])
    struct.pack_into(layout, data, at, number & (2**64 - 1 if layout == "<Q" else 2**32 - 1))


BYTE_DAMAGE = [
    flip_bits,
    overwrite,
    truncate,
    remove_block,
    repeat_block,
    move_block,
    telling_number,
    header_count,
]


# -- damage to what the bytes mean: each changes `metadata` ({key: typed value}) or `tensors`, and may return a layout ---


def retype_value(random, metadata, tensors):
    key = random.choice(list(metadata))
    kind = random.choice(list(KINDS.values()))
    metadata[key] = typed(kind, random.choice(["", "16", "adapter"]) if kind == STRING else random.choice([0, 1, 16]))


def array_value(random, metadata, tensors):
    element = random.choice([U8, U32, I32, F32, STRING])
    values = ["x"] * random.randrange(4) if element == STRING else [random.randrange(100)] * random.randrange(4)
    metadata[random.choice(list(metadata))] = typed(ARRAY, (element, values))


def alpha_value(random, metadata, tensors):
    kind, value = random.choice(
        [(F32, v) for v in (math.nan, math.inf, -math.inf, -16.0, 0.0, 1e-45, 3.4e38, 1e30)]
        + [(I32, 16), (U32, 16), (F64, 16.0), (STRING, "16"), (ARRAY, (F32, [16.0]))]
    )
    metadata["adapter.lora.alpha"] = typed(kind, value)


def text_value(random, metadata, tensors):
    key = random.choice(["general.type", "general.architecture", "adapter.type"])
    words = ["", "model", "lora", "adapter", "llama", "qwen2", "LLAMA", "x" * 10_000, "lo\0ra", b"\xff\xff"]
    metadata[key] = typed(STRING, random.choice(words))


def drop_value(random, metadata, tensors):
    del metadata[random.choice(list(metadata))]


def alignment_value(random, metadata, tensors):
    kind, value = random.choice([(U32, 0), (U32, 1), (U32, 3), (U32, 64), (U32, 2**31), (STRING, "32"), (U64, 32), (I32, -32)])
    metadata["general.alignment"] = typed(kind, value)
    return {"alignment": random.choice([1, 32, 64])}


def invocation_value(random, metadata, tensors):
    kind = random.choice([U32, I32, F32, STRING])
    values = random.choice([[], [5], [316], [317], [2**31 - 1], [1, 2, 3] * 300])
    metadata["adapter.alora.invocation_tokens"] = typed(ARRAY, (kind, list(map(str, values)) if kind == STRING else values))


def tensor_type(random, metadata, tensors):
    number = random.choice([*range(42), 255, 2**31, 2**32 - 1])
    for i in random.sample(range(len(tensors)), random.choice([1, 2, len(tensors)])):
        tensors[i : i + 1] = replaced(tensors, i, type=number)[i : i + 1]


def tensor_sizes(random, metadata, tensors):
    i = random.randrange(len(tensors))
    shape = list(tensors[i].shape)
    shape[random.randrange(len(shape))] = random.choice([*TELLING, 3, 4, 5, 64])
    tensors[i] = replaced(tensors, i, shape=tuple(shape))[i]


def tensor_dimensions(random, metadata, tensors):
    a, b = random.choice([(1, 1), (2, 2), (4, 1), (1, 2)])
    change = random.choice(
        [
            lambda s: (*s, 1),
            lambda s: (*s, 2),
            lambda s: (*s, 1, 1),
            lambda s: s[:1],
            lambda s: s[::-1],
            lambda s: (),
            lambda s: (s[0] * s[1],),
        ]
    )
    for i in random.choice([[random.randrange(len(tensors))], range(len(tensors)), range(0, len(tensors), a + b)]):
        tensors[i] = replaced(tensors, i, shape=change(tensors[i].shape))[i]


def tensor_offset(random, metadata, tensors):
    i = random.randrange(len(tensors))
    tensors[i] = replaced(tensors, i, offset=random.choice([*TELLING, 32, 64, 16]))[i]


def tensor_name(random, metadata, tensors):
    i = random.randrange(len(tensors))
    name = random.choice(NAMES)
    suffix = random.choice([".lora_a", ".lora_b", "", ".lora_A", ".weight", ".lora_magnitude"])
    tensors[i] = replaced(tensors, i, name=name + (suffix.encode() if isinstance(name, bytes) else suffix))[i]


def swap_factors(random, metadata, tensors):
    i = random.randrange(0, len(tensors), 2)
    one, other = tensors[i], tensors[i + 1]
    if random.random() < 0.5:
        tensors[i], tensors[i + 1] = replaced([one], 0, name=other.name)[0], replaced([other], 0, name=one.name)[0]
    else:
        tensors[i : i + 2] = [other, one]  # another order is no damage
        tensors[i] = replaced(tensors, i, shape=one.shape)[i]


def drop_tensors(random, metadata, tensors):
    for _ in range(random.choice([1, 2, len(tensors) - 1, len(tensors)])):
        del tensors[random.randrange(len(tensors))]


def repeat_tensor(random, metadata, tensors):
    tensors.insert(random.randrange(len(tensors)), random.choice(tensors))


def added_pair(random, metadata, tensors):
    rank = random.choice([1, 4, 64])
    target = random.choice([name for name in NAMES if isinstance(name, str)])
    width, height = random.choice([(64, 64), (64, 317), (317, 64), (64, 32), (1, 1)])
    tensors += pair(target, width, height, rank, seed=random.randrange(99))


def embedding_factors(random, metadata, tensors):
    rank = random.choice([1, 4, 63])
    a, b = (rank, 317), (rank, 64)
    tensors[:] = tensors if random.random() < 0.5 else []
    if random.random() < 0.3:
        a, b = a[::-1], b[::-1]
    tensors += [Tensor("token_embd.weight.lora_a", a), Tensor("token_embd.weight.lora_b", b)]


def wild_numbers(random, metadata, tensors):
    i = random.randrange(len(tensors))
    values = [math.nan, math.inf, -math.inf, 1e38, -3e38, 1e-45, 65504.0]
    width = "<e" if tensors[i].type == 1 else "<f"
    value = random.choice(values)
    if width == "<e" and math.isfinite(value):
        value = math.copysign(min(abs(value), 65504.0), value)
    data = bytearray(tensors[i].data)
    for _ in range(random.choice([1, 10, 400])):
        at = random.randrange(len(data) // struct.calcsize(width)) * struct.calcsize(width)
        data[at : at + struct.calcsize(width)] = struct.pack(width, value)
    tensors[i] = replaced(tensors, i, data=bytes(data))[i]


def rank_of_one_factor(random, metadata, tensors):
    i = random.randrange(0, len(tensors), 2)
    rank = random.choice([1, 3, 5, 300])
    tensors[i : i + 2] = [
        Tensor(tensors[i].name, (tensors[i].shape[0], rank)),
        Tensor(tensors[i + 1].name, (random.choice([rank, rank + 1]), tensors[i + 1].shape[1])),
    ]


def short_file(random, metadata, tensors):
    data = tensors[-1].data
    tensors[-1] = replaced([tensors[-1]], 0, data=data[: random.randrange(len(data))])[0]
    return {"alignment": 1} if random.random() < 0.5 else None


def layout(random, metadata, tensors):
    return random.choice(
        [{"magic": m} for m in (b"GGML", b"FUGG", b"\0\0\0\0")]
        + [{"version": v} for v in (0, 1, 2, 4, 3 << 24, 2**32 - 1)]
        + [{"tail": random.randbytes(100)}]
    )


MEANING_DAMAGE = [
    retype_value,
    array_value,
    alpha_value,
    text_value,
    drop_value,
    alignment_value,
    invocation_value,
    tensor_type,
    tensor_sizes,
    tensor_dimensions,
    tensor_offset,
    tensor_name,
    swap_factors,
    drop_tensors,
    repeat_tensor,
    added_pair,
    embedding_factors,
    wild_numbers,
    rank_of_one_factor,
    short_file,
    layout,
]
DAMAGE = BYTE_DAMAGE + MEANING_DAMAGE


class Adapter:
    """A sound adapter file, whole and taken apart."""

    def __init__(self, path):
        from llamafu.adapters.gguf.reader import read_container

        self.data = path.read_bytes()
        container = read_container(self.data, name=path.name)
        self.header = container.data_offset
        self.metadata = {}
        for key, (kind, element) in container.metadata_types.items():
            value = container.metadata[key]
            self.metadata[key] = typed(ARRAY, (KINDS[element], value)) if element else typed(KINDS[kind], value)
        self.tensors = [
            Tensor(entry.name, entry.shape, int(entry.type), self.data[entry.offset : entry.offset + entry.nbytes])
            for entry in container.tensors.values()
        ]


def mutant(number, adapters):
    """Return the bytes of damaged file `number`, the model to try it on, and what was done."""
    random = Random(number)  # noqa: S311 - it must be repeatable, not secret
    damage = DAMAGE[number % len(DAMAGE)]
    base = random.choice(BASES)
    model = random.choice(MODELS)
    adapter = adapters[base]
    if damage in BYTE_DAMAGE:
        data = bytearray(adapter.data)
        damage(random, data, random.choice([adapter.header, adapter.header, len(data)]))
        content = bytes(data)
    else:
        metadata, tensors = dict(adapter.metadata), list(adapter.tensors)
        arguments = damage(random, metadata, tensors) or {}
        content = gguf_bytes(list(metadata.items()), tensors, **arguments)
    return content, model, f"number {number}: {damage.__name__} of {base} on {model}"


# -- the child ---------------------------------------------------------------------------------------------------------


def work(tiny_dir, folder, first):
    """Go through the files from `first` on: one line before each, one after it."""
    import faulthandler

    import numpy as np

    from llamafu import Llamafu
    from llamafu.errors import DecodeError, LlamafuError, LoraIncompatibleError

    adapters = {name: Adapter(tiny_dir / name) for name in BASES}
    models = {name: Llamafu(tiny_dir / name, n_ctx=64, n_threads=1) for name in MODELS}
    wanted = {name: ask(llm, {}) for name, llm in models.items()}
    for number in range(first, COUNT):
        content, model, what = mutant(number, adapters)
        path = folder / "damaged.gguf"
        path.write_bytes(content)
        tell("try", what)
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        llm = models[model]
        fits = llm.validate_lora_compatibility(path)
        refusal = refused(lambda llm=llm, path=path: llm.load_lora_adapter(path), LlamafuError)
        if refusal:
            assert not fits or isinstance(refusal, LoraIncompatibleError), "the report found nothing"  # the probing decode may
            assert str(refusal).isprintable(), refusal
        else:
            assert fits, fits.problems
            refusal = refused(lambda llm=llm: ask(llm, {"damaged": 1.0}), DecodeError)
            if refusal:
                assert "not finite" in str(refusal), refusal
            else:
                assert np.isfinite(llm._session.instance.context.logits()).all(), "logits are not finite"
            llm.unload_lora_adapter("damaged")
            assert ask(llm, {}) == wanted[model], "the base answers otherwise than before"
        result = type(refusal).__name__ if refusal else "sound"
        faulthandler.cancel_dump_traceback_later()
        tell("result", result)


def tell(key, value):
    sys.stdout.write(json.dumps({key: value}) + "\n")
    sys.stdout.flush()


def refused(call, kind):
    try:
        call()
    except kind as error:
        return error
    return None


def ask(llm, lora):
    return llm.complete("Hello", lora=lora, temperature=0, max_tokens=2).tokens


def bypass(tiny_dir, name):
    """Give a killer to libllama unread, and decode with it."""
    from llamafu import Llamafu
    from llamafu._native.adapter import Adapter as NativeAdapter

    model, content, _ = killers(tiny_dir)[name]
    llm = Llamafu(tiny_dir / model, n_ctx=64, n_threads=1)
    native = NativeAdapter(llm._session.instance.model, content, label=name)
    llm._session.instance.context.set_adapters({native: 1.0})
    llm._session.instance.context.decode([1, 2, 3], 0)


def killers(tiny_dir):
    """Files that end the process when libllama gets them: {name: (model, bytes, what our message says)}."""
    whole = Adapter(tiny_dir / "a.gguf")

    def made(changes=None, tensors=None):
        return gguf_bytes(list({**whole.metadata, **(changes or {})}.items()), whole.tensors if tensors is None else tensors)

    def every(**fields):
        return [replaced([tensor], 0, **{k: v(tensor) for k, v in fields.items()})[0] for tensor in whole.tensors]

    embedding = [Tensor("token_embd.weight.lora_a", (4, 317)), Tensor("token_embd.weight.lora_b", (4, 64))]
    return {
        "alpha as a string": ("tiny.gguf", made({"adapter.lora.alpha": typed(STRING, "16")}), "adapter.lora.alpha"),
        "general.type as a number": ("tiny.gguf", made({"general.type": typed(U32, 1)}), "general.type"),
        "integer tensors": ("tiny.gguf", made(tensors=every(type=lambda _: 26)), "I32"),
        "three dimensions": (
            "tiny.gguf",
            made(tensors=every(shape=lambda t: (*t.shape, 2), data=lambda t: t.data * 2)),
            "dimensions",
        ),
        "embeddings of a tied model": ("tiny-tied.gguf", made(tensors=embedding), "tied"),
    }


# -- the tests -----------------------------------------------------------------------------------------------------------


def arguments(*words):
    places = [str(ROOT / "tests"), str(ROOT / "tests" / "adapters")]
    code = f"import sys; sys.path[:0] = {places!r}; import test_mutation; test_mutation.main(*sys.argv[1:])"
    return ["-c", code, *map(str, words)]


def main(task, tiny_dir, *rest):
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if task == "work":
        work(Path(tiny_dir), Path(rest[0]), int(rest[1]))
    else:
        bypass(Path(tiny_dir), rest[0])


@pytest.mark.skipif(sys.platform == "win32", reason="a child that dies has no signal to tell there")
def test_damaged_files(tiny_dir, tmp_path):
    """Every one is a LlamafuError, or loads and gives finite logits, or a DecodeError that says why not."""
    deaths, results, first = [], Counter(), 0
    while first < COUNT and len(deaths) < 10:
        status, out, err = start(arguments("work", tiny_dir, tmp_path, first), seconds=240)
        lines = [json.loads(line) for line in out.splitlines()]
        tried = [line["try"] for line in lines if "try" in line]
        results.update(line["result"] for line in lines if "result" in line)
        if status or err:
            deaths.append(f"{tried[-1] if tried else 'before the first file'}: status {status}\n{err[-1500:]}")
        first += max(len(tried), 1)
    assert not deaths, f"{len(deaths)} deaths\n" + "\n".join(deaths)
    assert results.total() == COUNT
    # Both ways of ending are exercised, and many times.
    assert results["InvalidAdapterFileError"] > COUNT / 4, results
    assert results["LoraIncompatibleError"] > COUNT / 50, results
    assert results["sound"] > COUNT / 10, results
    assert results["DecodeError"] > 0, results


@pytest.mark.skipif(sys.platform == "win32", reason="a child that dies has no signal to tell there")
def test_the_reader_is_what_saves_us(tiny_dir, tmp_path):
    """Files that kill the process when libllama gets them unread; through our reader each is an error that says why."""
    from llamafu import Llamafu
    from llamafu.errors import LoraError

    deaths = {}
    for name, (model, content, part) in killers(tiny_dir).items():
        path = tmp_path / "killer.gguf"
        path.write_bytes(content)
        with Llamafu(tiny_dir / model, n_ctx=64, n_threads=1) as llm, pytest.raises(LoraError, match=part):
            llm.load_lora_adapter(path)
        deaths[name], _, stacks = start(arguments("bypass", tiny_dir, name), seconds=60, GGML_NO_BACKTRACE="1")
        assert "Fatal Python error" in stacks or not deaths[name], stacks
    # A build may have mended one of them; had it all, the first test would prove little.
    assert min(deaths.values()) < 0, deaths
