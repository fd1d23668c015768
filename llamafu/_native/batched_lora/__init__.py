"""Adapters for each row of one batch: the bank in memory, and the two ways to apply it in libllama's graph."""
