"""vLLM's ways to say what the whole answer has to be."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from llamafu.server.schemas.base import ObjectBody
from llamafu.server.schemas.content import Texts

JsonSchema = dict[str, Any] | str
"""A JSON Schema, or the text of one."""


class StructuredOutputs(ObjectBody):
    """One of several forms of an answer, vLLM's field `structured_outputs`."""

    json_schema: JsonSchema | None = Field(None, alias="json")
    json_object: bool | None = None
    regex: str | None = None
    choice: Texts | None = None
    grammar: str | None = None

    def forms(self) -> dict[str, Any]:
        """Return the same as options of a generation, those that are given."""
        schema = {"type": "object"} if self.json_object else self.json_schema
        found = {"json_schema": schema, "regex": self.regex, "choices": self.choice, "grammar": self.grammar}
        return {name: value for name, value in found.items() if value is not None}
