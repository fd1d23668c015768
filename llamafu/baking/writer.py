"""Writing a base model with adapters added to its weights: one pass through the file, a few rows in memory at a time."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from llamafu.adapters.gguf.codec import row_bytes
from llamafu.adapters.gguf.tensor_entry import padded
from llamafu.baking.weight_delta import WeightDelta
from llamafu.errors import LoraError, ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from numpy.typing import NDArray

    from llamafu.adapters.file import AdapterFile
    from llamafu.adapters.gguf.codec import Bytes, Codec
    from llamafu.adapters.gguf.ggml_type import GGMLType
    from llamafu.adapters.gguf.shard import Addition, Shard
    from llamafu.adapters.gguf.tensor_entry import TensorEntry

_BLOCK_VALUES = 1 << 18  # a megabyte of float32, which stays in a core's cache
_COPY_BYTES = 1 << 22  # copied in one go
_AHEAD = 4  # blocks in the making or waiting to be written, for each thread
_LARGEST = {"F32": float(np.finfo(np.float32).max), "BF16": float(np.finfo(np.float32).max)}
_LARGEST_F16 = float(np.finfo(np.float16).max)
"""Of F16, and of the quantised types, whose scales are F16."""


class RowBlock(NamedTuple):
    """Consecutive rows of one matrix, the unit of work of a thread."""

    name: str
    source: GGMLType
    target: GGMLType
    width: int
    matrix: int
    """The number of the expert; 0 for a tensor that is one matrix."""
    first: int
    """The first row's number in its matrix."""
    rows: int


class EncodedBlock(NamedTuple):
    """A block in its new type, and what rounding kept of its change."""

    content: Bytes
    kept: float
    """The inner product of the change that is in `content` with the wanted one."""
    whole: float
    """The squared norm of the wanted change."""


class BakeRecipe(NamedTuple):
    """How a base model is changed."""

    uses: Sequence[tuple[AdapterFile, float]]
    """The adapters, each with its scale."""
    kinds: Mapping[str, GGMLType]
    """The type of each changed tensor in the result."""
    codec: Codec
    n_threads: int
    fitted: Mapping[str, Bytes] = MappingProxyType({})
    """Changed tensors that calibration has quantised, as their bytes in the result."""


class Written(NamedTuple):
    """A source's digest and what rounding kept, known once everything was written."""

    digest: str
    """The SHA-256 of all source files, one after another."""
    kept: float
    """The share of the changes that rounding kept: see `share_kept`. Calibrated tensors do not count."""


def lengths(shard: Shard, kinds: Mapping[str, GGMLType]) -> dict[str, int]:
    """Return how many bytes each tensor takes in the result, its padding included; changed ones have the types `kinds`."""
    found = {}
    for name, (entry, length) in shard.regions().items():
        if name in kinds and kinds[name] is not entry.type:
            size = math.prod(entry.shape[1:]) * row_bytes(entry.shape[0], kinds[name])
            found[name] = padded(size, shard.container.alignment)
        else:
            found[name] = length
    return found


def write_baked(
    shards: Sequence[Shard],
    outputs: Sequence[Path],
    recipe: BakeRecipe,
    metadata: Mapping[str, Addition],
    on_progress: Callable[[float], None],
) -> Written:
    """Write each shard with its changes to the file of the same place in `outputs`; `metadata` are added to the first.

    Raises ModelLoadError for a source that changes meanwhile, LoraError for a sum that its type cannot hold.
    """
    kept = whole = 0.0
    digest = hashlib.sha256()
    total, done = sum(shard.size for shard in shards), 0
    with ThreadPoolExecutor(recipe.n_threads, "llamafu-bake") as pool:
        try:
            for number, (shard, output) in enumerate(zip(shards, outputs, strict=True)):
                with shard.path.open("rb") as source, output.open("wb") as target:
                    digest.update(source.read(len(shard.head)))
                    target.write(_header(shard, recipe, {} if number else metadata))
                    for chunk in _in_order(_chunks(shard, source, digest.update, recipe, pool), _AHEAD * recipe.n_threads):
                        target.write(chunk.content)
                        kept, whole = kept + chunk.kept, whole + chunk.whole
                        on_progress((done + source.tell()) / total)
                done += shard.size
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return Written(digest.hexdigest(), share_kept(kept, whole))


def share_kept(kept: float, whole: float) -> float:
    """Return the share of the changes that rounding kept, from 0 to 1.

    `kept` is the inner product of the real change with the wanted one, `whole` the squared norm of the wanted one: their
    quotient is the projection of the real change. A projection above 1, noise in that direction, counts like one as far below.
    """
    return max(0.0, 1 - abs(1 - kept / whole)) if whole else 1.0


def rewrite_metadata(shard: Shard, output: Path, recipe: BakeRecipe, metadata: Mapping[str, Addition]) -> None:
    """Overwrite the `metadata` that `write_baked` wrote with other values, which take the same number of bytes."""
    with output.open("r+b") as target:
        target.write(_header(shard, recipe, metadata))


def _header(shard: Shard, recipe: BakeRecipe, metadata: Mapping[str, Addition]) -> bytes:
    return shard.header(metadata, recipe.kinds, lengths(shard, recipe.kinds))


def _in_order(chunks: Iterator[Bytes | Future[EncodedBlock]], ahead: int) -> Iterator[EncodedBlock]:
    """Yield finished chunks in order, with up to `ahead` of them in the making."""
    waiting: deque[Bytes | Future[EncodedBlock]] = deque()
    for chunk in chunks:
        waiting.append(chunk)
        while len(waiting) > ahead:
            yield _ready(waiting.popleft())
    while waiting:
        yield _ready(waiting.popleft())


def _ready(chunk: Bytes | Future[EncodedBlock]) -> EncodedBlock:
    return chunk.result() if isinstance(chunk, Future) else EncodedBlock(chunk, 0.0, 0.0)


def _chunks(
    shard: Shard, source: BinaryIO, hashed: Callable[[bytes], None], recipe: BakeRecipe, pool: ThreadPoolExecutor
) -> Iterator[Bytes | Future[EncodedBlock]]:
    """Read the data of a shard once from front to back, and yield the chunks of the result, changed ones as futures.

    `hashed` is called with everything that is read.
    """

    def read(count: int) -> bytes:
        content = source.read(count)
        if len(content) != count:
            raise changed(shard.path)
        hashed(content)
        return content

    sizes = lengths(shard, recipe.kinds)
    for name, (entry, length) in shard.regions().items():
        if entry.type is None or name not in recipe.kinds:
            for start in range(0, length, _COPY_BYTES):
                yield read(min(_COPY_BYTES, length - start))
            continue
        kind = recipe.kinds[name]
        if name in recipe.fitted:
            read(entry.nbytes)
            yield recipe.fitted[name]
        else:
            delta = WeightDelta(name, recipe.uses)
            for block in row_blocks(entry, entry.type, kind):
                raw = read(block.rows * row_bytes(block.width, entry.type))
                yield pool.submit(changed_block, raw, block, delta, recipe.codec)
        padding = read(length - entry.nbytes)
        written = math.prod(entry.shape[1:]) * row_bytes(entry.shape[0], kind)
        yield padding if kind is entry.type else bytes(sizes[name] - written)


def row_blocks(entry: TensorEntry, source: GGMLType, target: GGMLType) -> Iterator[RowBlock]:
    """Divide a tensor into blocks of rows, none with rows of two experts; `target` is the type that they get."""
    width, height, *stack = entry.shape
    step = max(1, _BLOCK_VALUES // width)
    for matrix in range(math.prod(stack)):
        for first in range(0, height, step):
            yield RowBlock(entry.name, source, target, width, matrix, first, min(step, height - first))


def changed_block(raw: bytes, block: RowBlock, delta: WeightDelta, codec: Codec) -> EncodedBlock:
    """Add `delta` to the rows of a block, `raw` in its source type, and encode them in its target type."""
    before = np.empty((block.rows, block.width), np.float32)
    codec.decode(raw, block.source, before)
    wanted = delta.rows(block.matrix, block.first, block.rows)
    after = summed(block.name, before, wanted, block.target)
    content = codec.encode(after, block.target)
    codec.decode(content, block.target, after)
    with np.errstate(all="ignore"):  # huge values square to infinity
        after -= before
        return EncodedBlock(content, float(np.vdot(after, wanted)), float(np.vdot(wanted, wanted)))


def summed(name: str, before: NDArray[np.float32], delta: NDArray[np.float32], kind: GGMLType) -> NDArray[np.float32]:
    """Return `before` + `delta`; raises LoraError if the type `kind` cannot hold it."""
    with np.errstate(all="ignore"):  # the next lines look for what overflowed
        after: NDArray[np.float32] = before + delta
    limit = _LARGEST.get(kind.name, _LARGEST_F16)
    if not (after.max() <= limit and after.min() >= -limit):  # also where one is NaN
        message = (
            f"{name}: with these scales it holds values that {kind.name} cannot (NaN, infinite or beyond {limit:g}); use "
            "smaller scales, or the dtype 'f32'"
        )
        raise LoraError(message)
    return after


def changed(path: Path) -> ModelLoadError:
    """Return the error for a source file that changed between two reads."""
    return ModelLoadError(f"{path} changed while it was read; bake again when nothing writes to it")
