"""Writing a base model with adapters added into it: one pass through the file, a few rows in memory at a time."""

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

_VALUES = 1 << 18  # in one chunk of work: a megabyte of float32, which stays in a core's cache
_BYTES = 1 << 22  # copied in one go
_AHEAD = 4  # chunks of work a thread, waiting to be written
_LARGEST = {"F32": float(np.finfo(np.float32).max), "BF16": float(np.finfo(np.float32).max)}
_LARGEST_SCALE = float(np.finfo(np.float16).max)
"""F16 holds no more, and the quantised types keep their scales in it."""


class RowBlock(NamedTuple):
    """Rows of a tensor that are worked on at once."""

    name: str
    source: GGMLType
    target: GGMLType
    width: int
    matrix: int
    """Which expert's; 0 for a tensor that is one matrix."""
    first: int
    rows: int


class EncodedBlock(NamedTuple):
    """A finished block, and what it says of the loss by rounding: see `write_baked`."""

    content: Bytes
    kept: float
    whole: float


class BakeRecipe(NamedTuple):
    """What is made of a base model."""

    uses: Sequence[tuple[AdapterFile, float]]
    kinds: Mapping[str, GGMLType]
    """The type of each changed tensor in the result."""
    codec: Codec
    n_threads: int
    fitted: Mapping[str, Bytes] = MappingProxyType({})
    """Changed tensors that are rounded already, by what calibration found: they are only copied."""


class Written(NamedTuple):
    """What there is to say of a baked model."""

    digest: str
    """The SHA-256 of all source files, one after another."""
    kept: float
    """Which share of the changes rounding kept: see `write_baked`."""


def lengths(shard: Shard, kinds: Mapping[str, GGMLType]) -> dict[str, int]:
    """Return how many bytes each tensor's region of the result takes, its padding included."""
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
    records: Mapping[str, Addition],
    on_progress: Callable[[float], None],
) -> Written:
    """Write each shard with its changes to its place in `outputs`; `records` become metadata of the first.

    Rounding loses what is small beside the steps of a type: see `share_kept`. Fitted tensors do not count.
    """
    kept = whole = 0.0
    digest = hashlib.sha256()
    total, done = sum(shard.size for shard in shards), 0
    with ThreadPoolExecutor(recipe.n_threads, "llamafu-bake") as pool:
        try:
            for number, (shard, output) in enumerate(zip(shards, outputs, strict=True)):
                with shard.path.open("rb") as source, output.open("wb") as target:
                    digest.update(source.read(len(shard.head)))
                    target.write(_header(shard, recipe, {} if number else records))
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
    """Return the share of the changes that rounding kept: 1 where it did no harm, 0 where it undid everything.

    `kept` is the product of what really changed and what should have, `whole` the square of the latter. So the share is the
    projection of one on the other; what it has too much, noise that happens to point that way, is as bad as what is missing.
    """
    return max(0.0, 1 - abs(1 - kept / whole)) if whole else 1.0


def rewrite_records(shard: Shard, output: Path, recipe: BakeRecipe, records: Mapping[str, Addition]) -> None:
    """Put other values in place of the `records` that `write_baked` wrote, which take the same room."""
    with output.open("r+b") as target:
        target.write(_header(shard, recipe, records))


def _header(shard: Shard, recipe: BakeRecipe, records: Mapping[str, Addition]) -> bytes:
    return shard.header(records, recipe.kinds, lengths(shard, recipe.kinds))


def _in_order(chunks: Iterator[Bytes | Future[EncodedBlock]], ahead: int) -> Iterator[EncodedBlock]:
    """Wait for each chunk in its turn, with up to `ahead` of them in the making."""
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
    """Read the data of a shard once from front to back, and say what takes the place of each part."""

    def read(count: int) -> bytes:
        content = source.read(count)
        if len(content) != count:
            raise changed(shard.path)
        hashed(content)
        return content

    sizes = lengths(shard, recipe.kinds)
    for name, (entry, length) in shard.regions().items():
        if entry.type is None or name not in recipe.kinds:
            for start in range(0, length, _BYTES):
                yield read(min(_BYTES, length - start))
            continue
        kind = recipe.kinds[name]
        if name in recipe.fitted:
            read(entry.nbytes)
            yield recipe.fitted[name]
        else:
            change = WeightDelta(name, recipe.uses)
            for block in matrix_blocks(entry, entry.type, kind):
                raw = read(block.rows * row_bytes(block.width, entry.type))
                yield pool.submit(changed_block, raw, block, change, recipe.codec)
        padding = read(length - entry.nbytes)
        written = math.prod(entry.shape[1:]) * row_bytes(entry.shape[0], kind)
        yield padding if kind is entry.type else bytes(sizes[name] - written)


def matrix_blocks(entry: TensorEntry, source: GGMLType, target: GGMLType) -> Iterator[RowBlock]:
    """Divide a tensor into few enough rows at a time, never of two experts at once; `target` is what they become."""
    width, height, *stack = entry.shape
    step = max(1, _VALUES // width)
    for matrix in range(math.prod(stack)):
        for first in range(0, height, step):
            yield RowBlock(entry.name, source, target, width, matrix, first, min(step, height - first))


def changed_block(raw: bytes, block: RowBlock, change: WeightDelta, codec: Codec) -> EncodedBlock:
    """Add the change to the rows of a block, and say what of it is there in its new type."""
    before = np.empty((block.rows, block.width), np.float32)
    codec.decode(raw, block.source, before)
    wanted = change.rows(block.matrix, block.first, block.rows)
    after = summed(block.name, before, wanted, block.target)
    content = codec.encode(after, block.target)
    codec.decode(content, block.target, after)
    with np.errstate(all="ignore"):  # huge values square to infinity
        after -= before
        return EncodedBlock(content, float(np.vdot(after, wanted)), float(np.vdot(wanted, wanted)))


def summed(name: str, before: NDArray[np.float32], change: NDArray[np.float32], kind: GGMLType) -> NDArray[np.float32]:
    """Return before + `change`; raises LoraError if the type `kind` cannot hold it."""
    with np.errstate(all="ignore"):  # the next lines look for what overflowed
        after: NDArray[np.float32] = before + change
    limit = _LARGEST.get(kind.name, _LARGEST_SCALE)
    if not (after.max() <= limit and after.min() >= -limit):  # also where one is NaN
        message = (
            f"{name}: with these scales it holds values that {kind.name} cannot (NaN, infinite or beyond {limit:g}); use "
            "smaller scales, or the dtype 'f32'"
        )
        raise LoraError(message)
    return after


def changed(path: Path) -> ModelLoadError:
    """Make the error for a source that is not what it was."""
    return ModelLoadError(f"{path} changed while it was read; bake again when nothing writes to it")
