"""The options of `bake`, checked. Imports nothing heavy, for the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

Dtype = Literal["auto", "keep", "f32", "f16", "bf16", "q8_0"]
"""What becomes of the changed tensors' types: a type that keeps the change, the one they have, or the one named."""
DTYPES: tuple[Dtype, ...] = get_args(Dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class BakeOptions:
    """The options of `bake`, which describes them; raises ValueError for one that is out of bounds or contradicts another."""

    dtype: str = "auto"
    calibration: str | os.PathLike[str] | None = None
    least_kept: float = 0.0
    overwrite: bool = True
    library: str | os.PathLike[str] | None = None
    n_threads: int | None = None
    on_progress: Callable[[float], None] | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            message = f"the dtype is {self.dtype!r}; there are {', '.join(DTYPES)}"
            raise ValueError(message)
        if self.n_threads is not None and self.n_threads < 1:
            message = f"n_threads is {self.n_threads}; it must be at least 1"
            raise ValueError(message)
        if self.calibration is not None and self.dtype not in ("auto", "keep"):
            message = f"the dtype is {self.dtype!r}, and calibration keeps the types; leave one of them out"
            raise ValueError(message)
