"""The type that a converted adapter's tensors are stored in, chosen by how much of their changes it loses."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from llamafu.adapters.info import is_flipped
from llamafu.adapters.invalid_file import invalid_file
from llamafu.adapters.peft.storage_loss import MOST_LOST, narrowed, percent, share_lost

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from llamafu.adapters.peft.factor_mapping import FactorPair

    Matrix = NDArray[np.floating[Any]]

logger = logging.getLogger("llamafu.adapters")

_MAY_LOSE = {"auto": MOST_LOST, "exact": 0.0}
"""The share of a tensor's change up to which F16 is chosen."""
DTYPES = (*_MAY_LOSE, "f16", "f32")
"""The types that can be asked for."""


class Stored(NamedTuple):
    """The type of a converted adapter's tensors, and what it loses."""

    dtype: str
    """"f16" or "f32"."""
    lost: float
    """The largest loss of a tensor's change: see `share_lost`."""
    where: str
    """The tensor with that loss."""
    instead: float | None = None
    """What F16 would have lost, where F32 was chosen for that."""

    @property
    def is_much(self) -> bool:
        """Whether it loses more than a type that was chosen here would."""
        return self.lost > MOST_LOST

    def __str__(self) -> str:
        at = f" ({self.where})" if self.where else ""
        return f"{self.dtype.upper()}: the largest loss of a tensor's change is {percent(self.lost)}{at}"


def store_factors(pairs: Sequence[FactorPair], alpha: float, dtype: str, name: str) -> tuple[list[tuple[str, Matrix]], Stored]:
    """Return the GGUF tensors of `pairs`, in the type that is named or chosen by its loss, and what it loses, which is logged.

    `alpha` is the file's, `dtype` one of DTYPES, `name` the file's name for messages. Raises what `gguf_tensors` raises.
    """
    if dtype == "f32":
        return gguf_tensors(pairs, alpha, "<f4", name)
    tensors, stored = gguf_tensors(pairs, alpha, "<f2", name, is_named=dtype == "f16")
    if dtype == "f16":
        level = logging.WARNING if stored.is_much else logging.INFO
        logger.log(level, "%s: %s%s", name, stored, "; choose the dtype 'f32' to keep it" if stored.is_much else "")
    elif stored.lost > _MAY_LOSE[dtype]:
        logger.info("%s: %s; F32 is taken", name, stored)
        tensors, exact = gguf_tensors(pairs, alpha, "<f4", name)
        return tensors, exact._replace(instead=stored.lost)
    return tensors, stored


def gguf_tensors(
    pairs: Sequence[FactorPair], alpha: float, dtype: str, name: str, *, is_named: bool = True
) -> tuple[list[tuple[str, Matrix]], Stored]:
    """Return the GGUF tensors in NumPy's type `dtype`; B is scaled where the file's one alpha is not the pair's.

    Raises InvalidAdapterFileError, if the user named the type (`is_named`), where it cannot hold the values, or loses more
    than 1 % of a tensor's change because of that scaling.
    """
    problems = []
    tensors: list[tuple[str, Matrix]] = []
    worst, where = 0.0, ""
    for pair in pairs:
        target, a, b, own = pair.target, pair.a, pair.b, pair.alpha
        share = 1 if own == alpha else own / float(np.float32(alpha))
        b = b if share == 1 else b.astype(np.float64) * share
        stored = (narrowed(a, dtype), narrowed(b, dtype))
        as_matrices = [(one.T, other) if is_flipped(target) else (one, other) for one, other in ((a, b), stored)]
        lost = share_lost(*as_matrices)
        if is_named:
            problems += [
                f"{target}.lora_{side} has values beyond {np.finfo(dtype).max:g}; choose the dtype 'f32'"
                for side, values in zip("ab", stored, strict=True)
                if not np.isfinite(values).all()
            ]
            if share != 1 and MOST_LOST < lost < np.inf:
                problems.append(
                    f"{target}.lora_b has alpha {own:g} where most have {alpha:g}, and its values are too "
                    f"small for {np.dtype(dtype).name} once that is made up for; choose the dtype 'f32'"
                )
        if lost > worst:
            worst, where = lost, target
        tensors += [(f"{target}.lora_{side}", values) for side, values in zip("ab", stored, strict=True)]
    if problems:
        raise invalid_file(name, problems)
    return tensors, Stored("f16" if dtype == "<f2" else "f32", worst, where)
