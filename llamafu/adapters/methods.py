"""The ways to combine adapters, and the options that each takes: light, for the command line."""

from __future__ import annotations

METHODS: dict[str, frozenset[str]] = {
    "cat": frozenset(),
    "linear": frozenset(),
    "svd": frozenset({"rank"}),
    "ties": frozenset({"density"}),
    "dare_linear": frozenset({"density", "seed"}),
    "dare_ties": frozenset({"density", "seed"}),
    "magnitude_prune": frozenset({"density"}),
}
"""The options by method; `density` is required where it is legal."""
