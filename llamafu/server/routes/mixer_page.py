"""The mixing desk: a page with its styles and scripts, all from this server and nothing from elsewhere."""

from __future__ import annotations

from importlib import resources
from pathlib import PurePath
from string import Template
from typing import TYPE_CHECKING

from starlette.responses import Response

from llamafu.service.errors import NotFoundError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from llamafu.server.http.endpoint import AuthedRequest

_PAGE = "desk.html"
_KINDS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
# Only the files of this folder run, they speak to this server alone, and no text becomes markup (trusted types): an adapter's
# name or an answer that found its way into the page could do nothing.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "require-trusted-types-for 'script'; trusted-types 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}


class MixerPage:
    """Handlers that serve the page; its faders go as far as `scale_range`."""

    def __init__(self, scale_range: tuple[float, float]) -> None:
        low, high = scale_range
        texts = {each.name: each.read_text("utf-8") for each in resources.files("llamafu.server").joinpath("page").iterdir()}
        self._page = Template(texts.pop(_PAGE)).substitute(low=low, high=high)
        self._files = texts

    async def page(self, request: AuthedRequest[None]) -> ASGIApp:  # noqa: ARG002 - a handler
        """`GET /`."""
        return Response(self._page, media_type="text/html", headers=_HEADERS)

    async def file(self, request: AuthedRequest[None]) -> ASGIApp:
        """`GET /desk/{file}`: what the page is made of."""
        name = request.http.path_params["file"]
        if name not in self._files:
            message = f"the mixing desk has no file {name!r}"
            raise NotFoundError(message)
        return Response(self._files[name], media_type=_KINDS[PurePath(name).suffix], headers=_HEADERS)
