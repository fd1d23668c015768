"""The example model, under the name by which it is documented."""

from __future__ import annotations

from llamafu.examples.model import example_model

__all__ = ["example_model"]
