"""The models and adapters that the engine is measured with, made once and kept in the cache folder.

`MODELS` are the example model requantised, one with 151,936 tokens in its vocabulary, and a model of 2048 hidden units with
random weights and the same tokenizer.
The adapters have rank 8 on all seven projections, alpha 16 and small random values.

    python bench/_models.py      makes all models and prints where they are
"""

from __future__ import annotations

import hashlib
import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llamafu._util.atomic import whole_file
from llamafu._util.paths import cache_dir
from llamafu.adapters.gguf.base_model import read_base
from llamafu.adapters.writer import write_adapter
from llamafu.examples.model import example_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from gguf import GGUFReader, GGUFWriter

RANK, ALPHA = 8, 16.0
PROJECTIONS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
_RECIPE = 1  # raise it when what is written changes: the files of before stay under their old names
_SIGN_AND_MANTISSA = np.uint16(0x83FF)
_VOCABULARY = 151_936
_STRENGTH = 0.05  # of what a projection adds, beside inputs of unit variance


@dataclass(frozen=True)
class Wide:
    """Sizes of the random model: those of a model of one billion weights, with fewer layers."""

    hidden: int = 2048
    feed_forward: int = 5632
    heads: int = 32
    heads_kv: int = 8
    layers: int = 8

    def linear(self, module: str) -> tuple[int, int]:
        """Rows and columns of one projection."""
        kv = self.hidden // self.heads * self.heads_kv
        return {
            "attn_q": (self.hidden, self.hidden),
            "attn_k": (kv, self.hidden),
            "attn_v": (kv, self.hidden),
            "attn_output": (self.hidden, self.hidden),
            "ffn_gate": (self.feed_forward, self.hidden),
            "ffn_up": (self.feed_forward, self.hidden),
            "ffn_down": (self.hidden, self.feed_forward),
        }[module]


def model(name: str) -> Path:
    """Path of one of `MODELS`; made the first time, which takes a minute at most."""
    source = example_model()
    path = cache_dir() / "bench" / f"{name}-{sha256(source)[:8]}-{_RECIPE}.gguf"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        print(f"-- making {path}", file=sys.stderr)
        with whole_file(path) as unfinished:
            MODELS[name](source, unfinished)
    return path


def kept_adapters(base: Path, count: int) -> list[Path]:
    """Return the first `count` adapters for `base`, kept beside it in the cache folder."""
    return adapters(base, base.with_suffix(".adapters"), count)


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def requantise(source: Path, output: Path, to: str) -> None:
    """Write `source` with its Q4_1 matrices, and for F16 its other quantised ones too, as type `to`."""
    from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, LlamaFileType, quants

    kind = GGMLQuantizationType[to]
    again = {"Q4_1"} if to == "Q4_0" else {"Q4_1", "Q8_0"}
    reader, writer = GGUFReader(source), GGUFWriter(output, "llama")
    _copy_metadata(reader, writer, {"general.file_type": int(LlamaFileType[f"MOSTLY_{to}"])})
    for tensor in reader.tensors:
        if tensor.tensor_type.name in again:
            values = quants.dequantize(tensor.data, tensor.tensor_type)
            writer.add_tensor(tensor.name, quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    _finish(writer)


def _q4_0(source: Path, output: Path) -> None:
    requantise(source, output, "Q4_0")


def _f16(source: Path, output: Path) -> None:
    requantise(source, output, "F16")


def _wide(source: Path, output: Path) -> None:
    """Write a llama model of 2048 hidden units, all matrices Q4_0 with random weights, with the tokenizer of `source`."""
    from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, LlamaFileType

    wide, bits = Wide(), np.random.Generator(np.random.PCG64(1))
    reader, writer = GGUFReader(source), GGUFWriter(output, "llama")
    changed = {
        "general.name": "random, 2048 wide",
        "general.file_type": int(LlamaFileType.MOSTLY_Q4_0),
        "llama.block_count": wide.layers,
        "llama.embedding_length": wide.hidden,
        "llama.feed_forward_length": wide.feed_forward,
        "llama.attention.head_count": wide.heads,
        "llama.attention.head_count_kv": wide.heads_kv,
    }
    _copy_metadata(reader, writer, changed)

    def add(name: str, rows: int, columns: int, gain: float = 1.0) -> None:
        # A block of 32 values is a scale (F16) and 32 numbers from 0 to 15; 8 means 0, and their deviation is 4.6.
        blocks = bits.integers(0, 256, (rows, columns // 32, 18), np.uint8)
        scale = np.array([gain / columns**0.5 / 4.6], np.float16)
        blocks[:, :, :2] = scale.view(np.uint8)
        writer.add_tensor(name, blocks.reshape(rows, -1), raw_dtype=GGMLQuantizationType.Q4_0)

    vocabulary = len(reader.fields["tokenizer.ggml.tokens"].data)
    add("token_embd.weight", vocabulary, wide.hidden, 2.0)
    for layer in range(wide.layers):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(wide.hidden, np.float32))
        for module in PROJECTIONS:
            add(f"blk.{layer}.{module}.weight", *wide.linear(module))
    writer.add_tensor("output_norm.weight", np.ones(wide.hidden, np.float32))
    _finish(writer)


def _words(source: Path, output: Path) -> None:
    """Write `source` with as many tokens as Qwen's vocabulary has: the new ones are random words with the rows of old ones."""
    from gguf import GGUFReader, GGUFWriter

    reader, writer = GGUFReader(source), GGUFWriter(output, "llama")
    texts = reader.fields["tokenizer.ggml.tokens"].contents()
    kinds = reader.fields["tokenizer.ggml.token_type"].contents()
    dice, known = np.random.Generator(np.random.PCG64(1)), set(texts)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    while len(known) < _VOCABULARY:
        known.add("\u0120" * int(dice.integers(2)) + "".join(dice.choice(letters, dice.integers(4, 12))))
    added = sorted(known.difference(texts))
    changed = {
        "tokenizer.ggml.tokens": [*texts, *added],
        "tokenizer.ggml.token_type": [*kinds, *[1] * len(added)],
        "llama.vocab_size": _VOCABULARY,
    }
    _copy_metadata(reader, writer, changed)
    for tensor in reader.tensors:
        values = np.array(tensor.data)
        if tensor.name == "token_embd.weight":
            values = np.concatenate([values, values[dice.integers(100, len(values), len(added))]])
        writer.add_tensor(tensor.name, values, raw_dtype=tensor.tensor_type)
    _finish(writer)


MODELS: dict[str, Callable[[Path, Path], None]] = {"q4_0": _q4_0, "f16": _f16, "wide": _wide, "words": _words}


def adapters(base: Path, folder: Path, count: int, rank: int = RANK) -> list[Path]:
    """Write `count` adapters for the model file `base` into `folder`, every one with other content, and return their paths.

    Fast enough for thousands: only the first goes through the writer, the others change its values. Each value is a random
    sign and mantissa at the first one's exponent, so none is zero, infinite or large.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"a{i:04d}.gguf" for i in range(count)]
    missing = [i for i, path in enumerate(paths) if not path.is_file()]
    if not missing:
        return paths
    header, exponents = _template(base, folder, rank)
    for i in missing:
        noise = np.frombuffer(np.random.Generator(np.random.PCG64(i)).bytes(exponents.nbytes), np.uint16)
        with whole_file(paths[i]) as unfinished, unfinished.open("wb") as file:
            file.write(header)
            file.write((noise & _SIGN_AND_MANTISSA) | exponents)
    return paths


def _template(base: Path, folder: Path, rank: int) -> tuple[bytes, np.ndarray[Any, np.dtype[np.uint16]]]:
    """Header of an adapter for `base`, and its values: powers of two as F16 bits."""
    pairs = {}
    for name, shape in read_base(base).tensors.items():
        if name.removesuffix(".weight").rpartition(".")[2] in PROJECTIONS:
            columns, rows = shape
            a = np.full((rank, columns), _power_of_two(columns**-0.5), np.float32)
            pairs[name] = (a, np.full((rows, rank), _power_of_two(_STRENGTH * rank**0.5 / ALPHA), np.float32))
    with tempfile.TemporaryDirectory(dir=folder) as room:
        path = Path(room) / "template.gguf"
        info = write_adapter(path, pairs, architecture="llama", alpha=ALPHA, metadata={}, dtype="F16")
        content = path.read_bytes()
    values = np.frombuffer(content, np.uint16, offset=len(content) - info.nbytes)
    assert (values & _SIGN_AND_MANTISSA == 0).all()  # noqa: S101 - no padding, nothing but the factors
    return content[: len(content) - info.nbytes], values


def _power_of_two(deviation: float) -> float:
    """Smallest value of a binade whose values have about this standard deviation, sign included."""
    return 2.0 ** round(math.log2(deviation / 1.53))


def _copy_metadata(reader: GGUFReader, writer: GGUFWriter, changed: dict[str, Any]) -> None:
    from gguf import GGUFValueType

    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue  # the writer's own
        kind, *rest = field.types
        value = changed.get(field.name, field.contents())
        writer.add_key_value(field.name, value, kind, rest[-1] if kind == GGUFValueType.ARRAY else None)


def _finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    for known in MODELS:
        made = model(known)
        kept_adapters(made, 32)
        print(f"{sha256(made)} {made}")
