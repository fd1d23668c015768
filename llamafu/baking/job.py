"""The writing of one baked model, rounded to the nearest or for a text."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

from llamafu.baking.calibration import Calibration, places
from llamafu.baking.writer import rewrite_records, write_baked

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from llamafu._native.library import Library
    from llamafu.adapters.gguf.shard import Shard
    from llamafu.baking.metadata import BakeMetadata
    from llamafu.baking.writer import BakeRecipe

logger = logging.getLogger("llamafu.baking")

_FITTING = 0.9  # of the work, where it is calibrated


class BakeJob(NamedTuple):
    """One result to write."""

    shards: Sequence[Shard]
    outputs: Sequence[Path]
    recipe: BakeRecipe
    metadata: BakeMetadata
    on_progress: Callable[[float], None]

    def write_rounded(self) -> float:
        """Write it, every value rounded to the nearest, and return the share of the changes that is kept."""
        written = write_baked(self.shards, self.outputs, self.recipe, self.metadata.entries(None), self.on_progress)
        records = self.metadata.entries(None, digest=written.digest, kept=written.kept)
        rewrite_records(self.shards[0], self.outputs[0], self.recipe, records)
        return written.kept

    def write_calibrated(self, library: Library | None, calibration: str | os.PathLike[str], text: str | None) -> float | None:
        """Write it, rounded for a text; None where nothing can be calibrated, and where that makes more noise than change."""
        matrices = places(self.shards, self.recipe)
        if not matrices:
            return None
        with Calibration(library, self.shards[0].path, self.recipe, text=text) as found:
            fitted = found.fitted(matrices, lambda share: self.on_progress(_FITTING * share))
            recipe = self.recipe._replace(fitted=fitted)
            written = write_baked(
                self.shards,
                self.outputs,
                recipe,
                self.metadata.entries(calibration),
                lambda share: self.on_progress(_FITTING + (1 - _FITTING) * share),
            )
            seen = found.fidelity(self.outputs[0])
        logger.debug("size %.3f, error %.3f of the change", seen.size, seen.error)
        if seen.error >= 1:
            message = "%s: the changes are too small for calibration, which adds more noise than that; rounded to the nearest"
            logger.warning(message, self.shards[0].path)
            return None
        records = self.metadata.entries(calibration, digest=written.digest, kept=seen.kept)
        rewrite_records(self.shards[0], self.outputs[0], recipe, records)
        return seen.kept
