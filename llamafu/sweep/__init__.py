"""Sweeps: answers to the same prompts under many mixes of adapters, and each mix's KL divergence from the base."""

from llamafu.sweep.divergence import divergences
from llamafu.sweep.mixes import MOST_ANSWERS, label, mixes
from llamafu.sweep.page import page
from llamafu.sweep.run import Answer, Sweep, SweptAdapter, sweep

__all__ = ["MOST_ANSWERS", "Answer", "Sweep", "SweptAdapter", "divergences", "label", "mixes", "page", "sweep"]
