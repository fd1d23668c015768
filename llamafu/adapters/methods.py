"""The ways to combine adapters, and the options that each takes: light, for the command line."""

from __future__ import annotations

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
