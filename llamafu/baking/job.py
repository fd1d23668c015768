"""The writing of one baked model: rounded to the nearest, or calibrated."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

from llamafu.baking.calibration import Calibration, calibrated_matrices
from llamafu.baking.writer import rewrite_metadata, write_baked

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from llamafu._native.library import Library
    from llamafu.adapters.gguf.shard import Shard
    from llamafu.baking.metadata import BakeMetadata
    from llamafu.baking.writer import BakeRecipe

logger = logging.getLogger("llamafu.baking")

_FITTING = 0.9  # share of the progress that quantising takes, where it is calibrated


class BakeJob(NamedTuple):
    """One result to write: sources, files, and how tensors are made."""

    shards: Sequence[Shard]
    outputs: Sequence[Path]
    recipe: BakeRecipe
    metadata: BakeMetadata
    on_progress: Callable[[float], None]

    def write_rounded(self) -> float:
        """Write it with every value rounded to the nearest, and return the share of the changes that is kept."""
        written = write_baked(self.shards, self.outputs, self.recipe, self.metadata.entries(None), self.on_progress)
        entries = self.metadata.entries(None, digest=written.digest, kept=written.kept)
        rewrite_metadata(self.shards[0], self.outputs[0], self.recipe, entries)
        return written.kept

    def write_calibrated(self, library: Library | None, calibration: str | os.PathLike[str], text: str | None) -> float | None:
        """Write it calibrated, and return the share of the changes that is kept.

        `text` is that of `calibration`, None for what the model generates. None is returned, and the result is not to be used,
        where no changed tensor needs calibration, and where that adds more noise than there is change (a warning is logged).
        """
        matrices = calibrated_matrices(self.shards, self.recipe)
        if not matrices:
            return None
        with Calibration(library, self.shards[0].path, self.recipe, text=text) as model:
            fitted = model.fitted(matrices, lambda share: self.on_progress(_FITTING * share))
            recipe = self.recipe._replace(fitted=fitted)
            written = write_baked(
                self.shards,
                self.outputs,
                recipe,
                self.metadata.entries(calibration),
                lambda share: self.on_progress(_FITTING + (1 - _FITTING) * share),
            )
            fidelity = model.fidelity(self.outputs[0])
        logger.debug("size %.3f, error %.3f of the change", fidelity.size, fidelity.error)
        if fidelity.error >= 1:
            message = "%s: the changes are too small for calibration, which adds more noise than that; rounded to the nearest"
            logger.warning(message, self.shards[0].path)
            return None
        entries = self.metadata.entries(calibration, digest=written.digest, kept=fidelity.kept)
        rewrite_metadata(self.shards[0], self.outputs[0], recipe, entries)
        return fidelity.kept
