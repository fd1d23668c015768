"""Sweeping: the same prompts at many scales and mixes of adapters, and how far each one moves the model."""

from llamafu.sweep.divergence import divergences
from llamafu.sweep.mixes import MOST_ANSWERS, label, mixes
from llamafu.sweep.page import page
from llamafu.sweep.run import Answer, Sweep, SweptAdapter, sweep

__all__ = ["MOST_ANSWERS", "Answer", "Sweep", "SweptAdapter", "divergences", "label", "mixes", "page", "sweep"]
