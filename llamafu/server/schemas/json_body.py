"""Bodies as JSON: read at once, within what one call may take."""

from __future__ import annotations

from typing import Any

import pydantic_core

from llamafu._util.collector import collector_off
from llamafu.service.errors import InvalidRequestError

MOST_BRACKETS = 250_000
"""Lists and objects in a body, and brackets in its texts, as far as [ and { open them; each takes a microsecond that nothing
can interrupt."""


def read_json(content: bytes) -> Any:
    """Read a body as JSON in UTF-8, without NaN, infinities and halves of characters. `InvalidRequestError`."""
    if (count := content.count(b"[") + content.count(b"{")) > MOST_BRACKETS:
        message = f"the body has {count:,} of the characters [ and {{, of at most {MOST_BRACKETS:,}; send less at a time"
        raise InvalidRequestError(message)
    try:
        with collector_off():  # nothing of it is garbage yet, and looking takes five times as long as reading
            return pydantic_core.from_json(content, allow_inf_nan=False)
    except ValueError as error:
        message = f"the body is not JSON: {error}"
        raise InvalidRequestError(message) from None
