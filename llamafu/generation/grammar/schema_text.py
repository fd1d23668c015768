"""JSON Schemas as text and back; what is no JSON is a GrammarError."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llamafu.errors import GrammarError

if TYPE_CHECKING:
    from collections.abc import Iterator


def read_schema(schema: dict[str, Any] | str) -> Any:
    """Return a schema as JSON has it; GrammarError where it is none."""
    with _json_errors():
        return json.loads(schema if isinstance(schema, str) else schema_text(schema))


def schema_text(schema: dict[str, Any]) -> str:
    """Return a schema as JSON text; GrammarError where it is none."""
    with _json_errors():
        return json.dumps(schema)


@contextmanager
def _json_errors() -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, RecursionError) as error:
        message = f"JSON schema: not JSON: {error}"
        raise GrammarError(message) from error
