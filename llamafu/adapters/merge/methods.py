"""The ways to combine adapters, and the options that each takes: light, for the command line."""

from __future__ import annotations

_RANKS = 1 << 31
_SEEDS = 1 << 64

METHODS: dict[str, frozenset[str]] = {
    "cat": frozenset(),
    "linear": frozenset(),
    "svd": frozenset({"rank"}),
    "ties": frozenset({"density"}),
    "ties_svd": frozenset({"density", "rank"}),
    "dare_linear": frozenset({"density", "seed"}),
    "dare_ties": frozenset({"density", "seed"}),
    "dare_linear_svd": frozenset({"density", "rank", "seed"}),
    "dare_ties_svd": frozenset({"density", "rank", "seed"}),
    "magnitude_prune": frozenset({"density"}),
    "magnitude_prune_svd": frozenset({"density", "rank"}),
}
"""The options by method; `density` is required where it is legal."""


def keeps_ranks_apart(method: str) -> bool:
    """Whether `method` adds A to A and B to B, for which the ranks must be equal."""
    return method != "cat" and not method.endswith("svd")


def check_options(method: str, *, rank: int | None, density: float | None, seed: int | None) -> None:
    """Raise ValueError for an unknown method, and for options that it does not take, lacks, or that are out of bounds."""
    if method not in METHODS:
        message = f"there is no method {method!r}; there are {', '.join(METHODS)}"
        raise ValueError(message)
    legal = METHODS[method]
    for name, value in {"rank": rank, "density": density, "seed": seed}.items():
        if value is not None and name not in legal:
            users = ", ".join(other for other, takes in METHODS.items() if name in takes)
            message = f"{name}={value!r} does nothing in the method {method!r}; it is for {users}"
            raise ValueError(message)
    if rank is not None and not 1 <= rank < _RANKS:
        message = f"the rank is {rank}; it must be at least 1 and below 2**31"
        raise ValueError(message)
    if seed is not None and not 0 <= seed < _SEEDS:
        message = f"the seed is {seed}; it must be at least 0 and below 2**64"
        raise ValueError(message)
    if "density" in legal and (density is None or not 0 < density <= 1):
        message = f"the density is {density}; the method {method!r} needs one above 0 and at most 1, such as 0.5"
        raise ValueError(message)
