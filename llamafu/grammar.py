"""JSON Schemas as GBNF, under the name by which it is documented."""

from __future__ import annotations

from llamafu.generation.grammar import schema_to_gbnf

__all__ = ["schema_to_gbnf"]
