"""Merging adapters into one, by every method."""
