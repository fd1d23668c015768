"""The mixing desk: one page, whole in itself, that a browser may load nothing else for."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources
from typing import TYPE_CHECKING

from starlette.responses import Response

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from llamafu.server.exchange import Exchange


class Desk:
    """A handler that serves the page."""

    def __init__(self) -> None:
        self._page = resources.files("llamafu.server").joinpath("desk.html").read_text("utf-8")
        # Only this very script and these styles run, and they speak to this server alone: a file name or an answer that
        # found its way into the page could do nothing.
        script, style = (_hash(self._page, tag) for tag in ("script", "style"))
        self._policy = (
            f"default-src 'none'; script-src '{script}'; style-src '{style}'; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )

    async def page(self, exchange: Exchange) -> ASGIApp:  # noqa: ARG002 - a handler
        """`GET /`."""
        headers = {"Content-Security-Policy": self._policy, "Cache-Control": "no-cache"}
        return Response(self._page, media_type="text/html", headers=headers)


def _hash(page: str, tag: str) -> str:
    [content] = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"
