"""Measuring and comparing adapters: norms, similarities, plots."""
