"""The types that changed tensors get: the ones that were named, or the coarsest that keep the change."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from llamafu.adapters.gguf.codec import row_bytes
from llamafu.adapters.gguf.ggml_type import BLOCKS, GGMLType
from llamafu.baking.weight_delta import WeightDelta
from llamafu.baking.writer import changed, changed_block, row_blocks, share_kept
from llamafu.errors import ErrorCode, LoraError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from llamafu.adapters.file import AdapterFile
    from llamafu.adapters.gguf.codec import Codec
    from llamafu.adapters.gguf.shard import Shard
    from llamafu.adapters.gguf.tensor_entry import TensorEntry
    from llamafu.baking.writer import BakeRecipe

ENOUGH_KEPT = 0.9
"""The share of the changes that a baked model has to keep to answer as with its adapters."""
_SAMPLED_BLOCKS = 8  # of a tensor, measured for all of it
_FINER = {
    GGMLType.F16: (GGMLType.F32,),
    GGMLType.BF16: (GGMLType.F16, GGMLType.F32),
    GGMLType.Q8_0: (GGMLType.F16, GGMLType.F32),
}
_FINEST = (GGMLType.Q8_0, GGMLType.F16, GGMLType.F32)


class TypeChange(NamedTuple):
    """A number of tensors that got a finer type than they had."""

    source: GGMLType
    target: GGMLType
    tensors: int

    def __str__(self) -> str:
        return f"{self.tensors} tensor{'s' if self.tensors > 1 else ''} of {self.source.name} became {self.target.name}"


class _Kept(NamedTuple):
    """What a type keeps of a tensor's change, as the arguments of `share_kept`."""

    kept: float
    whole: float


def chosen_kinds(
    shards: Sequence[Shard], uses: Sequence[tuple[AdapterFile, float]], dtype: str, codec: Codec
) -> dict[str, GGMLType]:
    """Return the type of every changed tensor by name: its own for "auto" and "keep", else the one that is named.

    Raises LoraError, once a reason, for tensors that cannot be read, or not written in that type.
    """
    names = {name for file, _ in uses for name in file.pairs}
    kinds: dict[str, GGMLType] = {}
    problems: dict[str, list[str]] = {}
    for shard in shards:
        for entry in shard.container.tensors.values():
            if entry.name not in names:
                continue
            if entry.type is None:
                problem: str | None = "its type is unknown to the gguf package; a newer one may know it"
            else:
                kinds[entry.name] = kind = entry.type if dtype in ("auto", "keep") else GGMLType[dtype.upper()]
                block = BLOCKS[kind][0]
                problem = codec.problem(entry.type, kind)
                if entry.shape[0] % block:
                    problem = f"its rows of {entry.shape[0]} values do not divide into {kind.name} blocks of {block}"
            if problem:
                problems.setdefault(problem, []).append(entry.name)
    if problems:
        named = [f"{names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: {why}" for why, names in problems.items()]
        raise LoraError("; ".join(named), code=ErrorCode.INVALID_PARAM)
    return kinds


def kinds_that_keep(
    shards: Sequence[Shard], recipe: BakeRecipe, on_progress: Callable[[float], None]
) -> tuple[dict[str, GGMLType], float]:
    """Return the types that changed tensors get with the dtype "auto", and the share of all changes that their own keep.

    `recipe` has their own types. These stay where they keep 90 % of all changes; otherwise each tensor whose own keeps less
    gets the coarsest type that keeps 90 % of its change. What a type keeps is measured on a sample of the rows.
    """
    tensors = [
        (shard, entry, recipe.kinds[entry.name])
        for shard in shards
        for entry in shard.container.tensors.values()
        if entry.name in recipe.kinds
    ]
    own: dict[str, _Kept | None] = {}
    with ThreadPoolExecutor(recipe.n_threads, "llamafu-bake") as pool:
        for shard, entry, kind in tensors:
            own[entry.name] = _kept(shard, entry, kind, recipe, pool)
            on_progress(len(own) / len(tensors))
        measured = [kept for kept in own.values() if kept is not None]
        all_fit = len(measured) == len(own)
        share = share_kept(sum(kept.kept for kept in measured), sum(kept.whole for kept in measured)) if all_fit else 0.0
        if share >= ENOUGH_KEPT:
            return dict(recipe.kinds), share
        kinds = {
            entry.name: kind if _is_enough(own[entry.name]) else _finer(shard, entry, kind, recipe, pool)
            for shard, entry, kind in tensors
        }
    return kinds, share


def type_changes(before: Mapping[str, GGMLType], after: Mapping[str, GGMLType]) -> list[TypeChange]:
    """Count the tensors that got another type, by both types, the largest count first."""
    pairs = Counter((kind, after[name]) for name, kind in before.items() if after[name] is not kind)
    return [TypeChange(*kinds, count) for kinds, count in pairs.most_common()]


def _is_enough(kept: _Kept | None) -> bool:
    return kept is not None and share_kept(*kept) >= ENOUGH_KEPT


def _finer(shard: Shard, entry: TensorEntry, kind: GGMLType, recipe: BakeRecipe, pool: ThreadPoolExecutor) -> GGMLType:
    """Return the coarsest type that keeps the change of a tensor of the type `kind`; F32 where no other does."""
    for finer in _FINER.get(kind, _FINEST):
        is_possible = entry.shape[0] % BLOCKS[finer][0] == 0 and recipe.codec.problem(kind, finer) is None
        if is_possible and _is_enough(_kept(shard, entry, finer, recipe, pool)):
            return finer
    return GGMLType.F32


def _kept(shard: Shard, entry: TensorEntry, target: GGMLType, recipe: BakeRecipe, pool: ThreadPoolExecutor) -> _Kept | None:
    """Measure on a sample what `target` keeps of a tensor's change; None where the type cannot hold the sum."""
    assert entry.type is not None  # noqa: S101 - `chosen_kinds` refuses others
    source, delta = entry.type, WeightDelta(entry.name, recipe.uses)
    blocks = list(row_blocks(entry, source, target))
    step = -(-len(blocks) // _SAMPLED_BLOCKS)

    def measured(some: Iterable[int]) -> _Kept:
        def one(number: int) -> _Kept:
            block = blocks[number]
            before = block.matrix * entry.shape[1] + block.first
            size = row_bytes(block.width, source)
            with shard.path.open("rb") as file:
                file.seek(entry.offset + before * size)
                raw = file.read(block.rows * size)
            if len(raw) != block.rows * size:
                raise changed(shard.path)
            encoded = changed_block(raw, block, delta, recipe.codec)
            return _Kept(encoded.kept, encoded.whole)

        found = list(pool.map(one, some))
        return _Kept(sum(each.kept for each in found), sum(each.whole for each in found))

    try:
        sampled = measured(range(0, len(blocks), step))
        if step > 1 and not sampled.whole:  # the sample may miss the few experts of a stack that are changed
            return measured(range(len(blocks)))
        return _Kept(sampled.kept * step, sampled.whole * step)
    except LoraError:
        return None
