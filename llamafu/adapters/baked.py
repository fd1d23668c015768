"""Writing a base model with adapters added into it: one pass through the file, a few rows in memory at a time."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from llamafu.adapters.change import Change
from llamafu.adapters.codec import row_bytes
from llamafu.adapters.fitting import Lens, fit, lens
from llamafu.adapters.grid import RANGES, put_together, taken_apart
from llamafu.adapters.tensor_entry import padded
from llamafu.errors import LoraError, ModelLoadError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from numpy.typing import NDArray

    from llamafu.adapters.codec import Bytes, Codec
    from llamafu.adapters.file import AdapterFile
    from llamafu.adapters.ggml_type import GGMLType
    from llamafu.adapters.shard import Addition, Shard
    from llamafu.adapters.tensor_entry import TensorEntry

_VALUES = 1 << 18  # in one piece of work: a megabyte of float32, which stays in a core's cache
_FITTED_VALUES = 1 << 20  # likewise, where they are calibrated: few enough for their equations, many for few loops
_BYTES = 1 << 22  # copied in one go
_AHEAD = 4  # pieces of work a thread, waiting to be written
_LARGEST = {"F32": float(np.finfo(np.float32).max), "BF16": float(np.finfo(np.float32).max)}
_LARGEST_SCALE = float(np.finfo(np.float16).max)
"""F16 holds no more, and the quantised types keep their scales in it."""


class _Block(NamedTuple):
    """Rows of a tensor that are worked on at once."""

    name: str
    source: GGMLType
    target: GGMLType
    width: int
    matrix: int
    """Which expert's; 0 for a tensor that is one matrix."""
    first: int
    rows: int


class _Made(NamedTuple):
    """A finished block, and what it says of the loss by rounding: see `write_baked`."""

    content: Bytes
    kept: float
    whole: float


class Recipe(NamedTuple):
    """What is made of a base model."""

    uses: Sequence[tuple[AdapterFile, float]]
    kinds: Mapping[str, GGMLType]
    """The type of each changed tensor in the result."""
    codec: Codec
    n_threads: int
    moment: Callable[[str], NDArray[np.float64]] | None = None
    """The mean of x x^T over a changed tensor's inputs x, where rounding is calibrated. Asked for in the files' order."""
    aim: float = 1.0
    """How much of the change a calibrated fit aims at."""


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
    recipe: Recipe,
    additions: Callable[[str, float], Mapping[str, Addition]],
    on_progress: Callable[[float], None],
) -> float:
    """Write each shard with its changes to its place in `outputs`, and return which share of the changes is in there.

    Rounding loses what is small beside the steps of a type. The share is the projection of what really changed on what
    should have: 1 where rounding did no harm, 0 where it undid everything. Where rounding is calibrated, it is that of the
    outputs on the calibration text.

    `additions` makes the metadata of the first shard from the SHA-256 of all source files, one after another, and that
    share, which are known only at the end; what it returns must have the same length whatever they are.
    """
    kept = whole = 0.0
    digest = hashlib.sha256()
    total, done = sum(shard.size for shard in shards), 0
    with ThreadPoolExecutor(recipe.n_threads, "llamafu-bake") as pool:
        try:
            for number, (shard, output) in enumerate(zip(shards, outputs, strict=True)):
                extra = {} if number else additions(digest.hexdigest(), 1.0)
                with shard.path.open("rb") as source, output.open("wb") as target:
                    digest.update(source.read(len(shard.head)))
                    target.write(shard.header(extra, recipe.kinds, lengths(shard, recipe.kinds)))
                    for piece in _in_order(_pieces(shard, source, digest.update, recipe, pool), _AHEAD * recipe.n_threads):
                        target.write(piece.content)
                        kept, whole = kept + piece.kept, whole + piece.whole
                        on_progress((done + source.tell()) / total)
                done += shard.size
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    share = kept / whole if whole else 1.0
    with outputs[0].open("r+b") as target:
        target.write(shards[0].header(additions(digest.hexdigest(), share), recipe.kinds, lengths(shards[0], recipe.kinds)))
    return share


def _in_order(pieces: Iterator[Bytes | Future[_Made]], ahead: int) -> Iterator[_Made]:
    """Wait for each piece in its turn, with up to `ahead` of them in the making."""
    waiting: deque[Bytes | Future[_Made]] = deque()
    for piece in pieces:
        waiting.append(piece)
        while len(waiting) > ahead:
            yield _ready(waiting.popleft())
    while waiting:
        yield _ready(waiting.popleft())


def _ready(piece: Bytes | Future[_Made]) -> _Made:
    return piece.result() if isinstance(piece, Future) else _Made(piece, 0.0, 0.0)


def _pieces(
    shard: Shard, source: BinaryIO, hashed: Callable[[bytes], None], recipe: Recipe, pool: ThreadPoolExecutor
) -> Iterator[Bytes | Future[_Made]]:
    """Read the data of a shard once from front to back, and say what takes the place of each part."""

    def read(count: int) -> bytes:
        content = source.read(count)
        if len(content) != count:
            raise _changed(shard.path)
        hashed(content)
        return content

    sizes = lengths(shard, recipe.kinds)
    for name, (entry, length) in shard.regions().items():
        if entry.type is None or name not in recipe.kinds:
            for start in range(0, length, _BYTES):
                yield read(min(_BYTES, length - start))
            continue
        change, kind = Change(name, recipe.uses), recipe.kinds[name]
        seen = lens(recipe.moment(name), change.directions) if recipe.moment and kind in RANGES else None
        for block in _blocks(entry, entry.type, kind, _FITTED_VALUES if seen else _VALUES):
            raw = read(block.rows * row_bytes(block.width, entry.type))
            yield pool.submit(_with_change, raw, block, change, recipe, seen)
        padding = read(length - entry.nbytes)
        written = math.prod(entry.shape[1:]) * row_bytes(entry.shape[0], kind)
        yield padding if kind is entry.type else bytes(sizes[name] - written)


def _blocks(entry: TensorEntry, source: GGMLType, target: GGMLType, values: int) -> Iterator[_Block]:
    """Divide a tensor into few enough rows at a time, never of two experts at once."""
    width, height, *stack = entry.shape
    step = max(1, values // width)
    for matrix in range(math.prod(stack)):
        for first in range(0, height, step):
            yield _Block(entry.name, source, target, width, matrix, first, min(step, height - first))


def _with_change(raw: bytes, block: _Block, change: Change, recipe: Recipe, seen: Lens | None) -> _Made:
    codec = recipe.codec
    before, after = np.empty((2, block.rows, block.width), np.float32)
    codec.decode(raw, block.source, before)
    wanted = change.rows(block.matrix, block.first, block.rows)
    with np.errstate(all="ignore"):  # the next lines look for what overflowed
        np.add(before, wanted, out=after)
    limit = _LARGEST.get(block.target.name, _LARGEST_SCALE)
    if not (after.max() <= limit and after.min() >= -limit):  # also where one is NaN
        message = (
            f"{block.name}: with these scales it holds values that {block.target.name} cannot (NaN, infinite or beyond "
            f"{limit:g}); use smaller scales, or the dtype 'f32'"
        )
        raise LoraError(message)
    if seen is None:
        content: Bytes = codec.encode(after, block.target)
    else:
        content = put_together(fit(taken_apart(raw, block.source, block.rows), np.float32(recipe.aim) * wanted, seen))
    codec.decode(content, block.target, after)
    with np.errstate(all="ignore"):  # huge values square to infinity
        after -= before
        felt = wanted if seen is None else wanted @ seen.seen
        return _Made(content, float(np.vdot(after, felt)), float(np.vdot(wanted, felt)))


def _changed(path: Path) -> ModelLoadError:
    return ModelLoadError(f"{path} changed while it was read; bake again when nothing writes to it")
