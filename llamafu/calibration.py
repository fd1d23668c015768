"""Rounding by what goes into a model's matrices while it reads a text with its adapters on: what a calibrated `bake` does."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from llamafu._native.adapter import Adapter
from llamafu._native.context import Context, ContextOptions
from llamafu._native.inputs import Inputs
from llamafu._native.model import Model
from llamafu.adapters.baked import write_baked
from llamafu.adapters.ggml_type import BLOCKS
from llamafu.adapters.grid import RANGES
from llamafu.adapters.info import is_expert
from llamafu.calibration_text import WINDOW, read_windows, spread, written_windows
from llamafu.errors import ErrorCode, LibraryNotFoundError, LoraError
from llamafu.likeness import Likeness, likeness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from llamafu._native.library import Library
    from llamafu.adapters.baked import Recipe
    from llamafu.adapters.file import AdapterFile
    from llamafu.adapters.ggml_type import GGMLType
    from llamafu.adapters.shard import Addition, Shard

logger = logging.getLogger("llamafu.baking")

_ROOM = 1 << 30  # bytes of moments that are kept at once
_DOUBLE = 8  # bytes
_HELD = 20  # windows that are kept back for measuring
_TRIALS = 3  # bakes, of which all but the last are measured
_CLOSE = 0.01  # of the size of the change
_FARTHEST = 2.0  # times the change, or a part of it, that is aimed at


def write_calibrated(
    shards: Sequence[Shard],
    outputs: Sequence[Path],
    recipe: Recipe,
    additions: Callable[[str, float], Mapping[str, Addition]],
    on_progress: Callable[[float], None],
    *,
    library: Library | None,
    text: str | None,
) -> float | None:
    """Do as `write_baked` does, and round by calibration; `text` None lets the model write it.

    A fit keeps less than it aims at on text that it has not seen, and adds noise. So the result is measured on a part of
    the text that is kept back, and baked again with another aim, until it changes the model as much as the adapters do.

    Return None where nothing can be calibrated, and where the noise outweighs the change: round to the nearest then.
    Raises LoraError for a tensor that cannot be calibrated, LibraryNotFoundError.
    """
    if library is None:
        message = "calibration runs the model, and no libllama is in use; get one with `llamafu lib install`"
        raise LibraryNotFoundError(message)
    sizes = _sizes(shards, recipe.kinds)
    if not sizes:
        return None
    found = Calibration(library, shards[0].path, recipe.uses, sizes, text=text, n_threads=recipe.n_threads)
    try:
        kept = 0.0
        for trial in range(_TRIALS):
            told = _part_of(on_progress, trial)
            kept = write_baked(shards, outputs, recipe._replace(moment=found.moment), additions, told)
            if trial == _TRIALS - 1:
                break
            seen = found.likeness(outputs[0])
            logger.debug("aim %.3f: size %.3f, error %.3f of the change", recipe.aim, seen.size, seen.error)
            if seen.error >= 1:
                logger.warning(
                    "%s: the changes are too small for calibration, which adds more noise than that; rounded to the nearest",
                    shards[0].path,
                )
                return None
            if abs(seen.size - 1) < _CLOSE:
                break
            aim = recipe.aim / seen.size**0.5
            recipe = recipe._replace(aim=min(max(aim, 1 / _FARTHEST), _FARTHEST))
    finally:
        found.close()
    on_progress(1.0)
    return kept


def _part_of(on_progress: Callable[[float], None], trial: int) -> Callable[[float], None]:
    """Give a trial its part of the whole progress."""
    return lambda share: on_progress((trial + share) / _TRIALS)


def _sizes(shards: Sequence[Shard], kinds: Mapping[str, GGMLType]) -> dict[str, int]:
    """Return how many inputs each matrix has that is to be calibrated, in the files' order."""
    sizes: dict[str, int] = {}
    problems: dict[str, list[str]] = {}
    for entry in (entry for shard in shards for entry in shard.container.tensors.values() if entry.name in kinds):
        kind = kinds[entry.name]
        if kind in RANGES and not is_expert(entry.name):
            sizes[entry.name] = entry.shape[0]
        elif kind in RANGES:
            problems.setdefault(_UNSEEN, []).append(entry.name)
        elif BLOCKS[kind][0] > 1:
            types = ", ".join(known.name for known in RANGES)
            why = f"its type {kind.name} cannot be calibrated, only {types} can; choose the dtype 'f16' instead"
            problems.setdefault(why, []).append(entry.name)
    if problems:
        message = "; ".join(f"{_listed(names)}: {why}" for why, names in problems.items())
        raise LoraError(message, code=ErrorCode.INVALID_PARAM)
    return sizes


_UNSEEN = (
    "no plain matrix product uses it (as with stacks of experts and token embeddings), so it has no inputs to calibrate with; "
    "bake without calibration"
)


def _listed(names: Sequence[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more" if names[1:] else names[0]


class Calibration:
    """The inputs of a model's matrices `sizes` {name: inputs}, in the order in which they will be asked for.

    Opens the model a second time, by libllama on the CPU. Close it after use. One thread at a time.

    A pass over the text gathers the moments of as many matrices as fit into a gigabyte (at least one); the next pass
    follows when another one is asked for, and forgets them.
    """

    def __init__(
        self,
        library: Library,
        path: Path,
        uses: Sequence[tuple[AdapterFile, float]],
        sizes: Mapping[str, int],
        *,
        text: str | None,
        n_threads: int,
    ) -> None:
        self._n_threads = n_threads
        self._groups = list(_groups(sizes))
        self._group: list[str] = []
        self._inputs: Inputs | None = None
        self._model = Model(library, path)
        self._adapters: dict[Adapter, float] = {}
        try:
            for file, scale in uses:
                self._adapters[Adapter(self._model, file.content, label=file.path.name)] = scale
            if text is None:
                windows = written_windows(self._model, self._adapters, n_threads)
            else:
                windows = read_windows(self._model, text)
        except BaseException:
            self.close()
            raise
        stride = max(2, len(windows) // _HELD)
        self._held = spread(windows[1::stride], min(_HELD, len(windows[1::stride])))
        self._read = [window for number, window in enumerate(windows) if number % stride != 1]

    def close(self) -> None:
        """Free the model. Idempotent."""
        for adapter in self._adapters:
            adapter.close()
        self._model.close()

    def moment(self, name: str) -> NDArray[np.float64]:
        """Return the mean of x x^T over the inputs x of the matrix: [in, in]; raises LoraError if it has none."""
        if self._inputs is None or name not in self._group:
            self._inputs = None  # frees the memory first
            self._group = next(group for group in self._groups if name in group)
            self._inputs = self._gathered(self._group)
        return self._inputs.moment(name)

    def likeness(self, baked: Path) -> Likeness:
        """Compare a baked model with this one and its adapters, on the part of the text that no moment is of."""
        model = Model(self._model.library, baked)
        contexts: list[Context] = []
        try:
            for opened, adapters in ((self._model, {}), (self._model, self._adapters), (model, {})):
                contexts.append(self._context(opened, adapters))
            return likeness(contexts[0], contexts[1], contexts[2], self._held)
        finally:
            for context in contexts:
                context.close()
            model.close()

    def _gathered(self, names: Sequence[str]) -> Inputs:
        inputs = Inputs(self._model.library, names)
        context = self._context(self._model, self._adapters, inputs)
        try:
            for window in self._read:
                context.clear()
                inputs.begin()
                context.decode(window, 0, all_logits=True)  # else the last layer computes one row only
                inputs.check()
        finally:
            context.close()
        if missing := inputs.missing:
            message = f"{_listed(missing)}: {_UNSEEN}"
            raise LoraError(message, code=ErrorCode.INVALID_PARAM)
        return inputs

    def _context(self, model: Model, adapters: Mapping[Adapter, float], hook: Inputs | None = None) -> Context:
        context = Context(model, ContextOptions(n_ctx=WINDOW, n_batch=WINDOW, n_threads=self._n_threads), hook=hook)
        try:
            context.set_adapters(adapters)
        except BaseException:
            context.close()
            raise
        return context


def _groups(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Divide the matrices, in their order, so that the moments of each group have room."""
    group: list[str] = []
    used = 0
    for name, size in sizes.items():
        needed = _DOUBLE * size * size
        if group and used + needed > _ROOM:
            yield group
            group, used = [], 0
        group.append(name)
        used += needed
    yield group
