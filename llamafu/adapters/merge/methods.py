"""The methods of combining adapters, as a table of their properties. Imports nothing heavy, for the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

_RANKS = 1 << 31
_SEEDS = 1 << 64


class MergeMethod(NamedTuple):
    """What one method does to each tensor."""

    sums: Literal["concatenated", "factors", "deltas"]
    """What is summed: B A by concatenating the factors, A with A and B with B, or whole matrices dW."""
    truncates: bool = False
    """Whether the sum is cut to a rank by an SVD."""
    prunes: Literal["magnitude", "random"] | None = None
    """Which values are kept before the sum, a share `density` of them: the largest, or random ones divided by the density."""
    elects_signs: bool = False
    """Whether values are averaged that have the sign of the sum, and the others dropped (TIES)."""

    @property
    def needs_equal_ranks(self) -> bool:
        """Whether all adapters must have the same rank in a tensor: A is added to A."""
        return self.sums == "factors"

    @property
    def options(self) -> frozenset[str]:
        """The options that it takes; `density` is required where it is taken."""
        taken = {"rank": self.truncates, "density": self.prunes is not None, "seed": self.prunes == "random"}
        return frozenset(name for name, is_taken in taken.items() if is_taken)


METHODS: dict[str, MergeMethod] = {
    "cat": MergeMethod("concatenated"),
    "linear": MergeMethod("factors"),
    "svd": MergeMethod("concatenated", truncates=True),
    "ties": MergeMethod("factors", prunes="magnitude", elects_signs=True),
    "ties_svd": MergeMethod("deltas", truncates=True, prunes="magnitude", elects_signs=True),
    "dare_linear": MergeMethod("factors", prunes="random"),
    "dare_ties": MergeMethod("factors", prunes="random", elects_signs=True),
    "dare_linear_svd": MergeMethod("deltas", truncates=True, prunes="random"),
    "dare_ties_svd": MergeMethod("deltas", truncates=True, prunes="random", elects_signs=True),
    "magnitude_prune": MergeMethod("factors", prunes="magnitude"),
    "magnitude_prune_svd": MergeMethod("deltas", truncates=True, prunes="magnitude"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeOptions:
    """The options of `merge_adapters`, which describes them.

    Raises ValueError for an unknown method, and for options that it does not take, lacks, or that are out of bounds.
    """

    method: str = "svd"
    rank: int | None = None
    density: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            message = f"there is no method {self.method!r}; there are {', '.join(METHODS)}"
            raise ValueError(message)
        legal = METHODS[self.method].options
        for name, value in {"rank": self.rank, "density": self.density, "seed": self.seed}.items():
            if value is not None and name not in legal:
                users = ", ".join(other for other, properties in METHODS.items() if name in properties.options)
                message = f"{name}={value!r} does nothing in the method {self.method!r}; it is for {users}"
                raise ValueError(message)
        if self.rank is not None and not 1 <= self.rank < _RANKS:
            message = f"the rank is {self.rank}; it must be at least 1 and below 2**31"
            raise ValueError(message)
        if self.seed is not None and not 0 <= self.seed < _SEEDS:
            message = f"the seed is {self.seed}; it must be at least 0 and below 2**64"
            raise ValueError(message)
        if "density" in legal and (self.density is None or not 0 < self.density <= 1):
            needed = "needs one above 0 and at most 1, such as 0.5"
            message = f"the density is {self.density}; the method {self.method!r} {needed}"
            raise ValueError(message)
