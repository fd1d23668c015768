"""The example adapters, under the name by which they are documented."""

from __future__ import annotations

from llamafu.examples.adapters import example_adapters

__all__ = ["example_adapters"]
