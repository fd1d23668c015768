"""Adapter files that clients send."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from typing import TYPE_CHECKING

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from llamafu.server.schemas.answers import LoraCardAnswer
from llamafu.service.errors import InvalidRequestError
from llamafu.service.local import LocalLoraService

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.types import Message, Receive

    from llamafu.server.http.endpoint import AuthedRequest
    from llamafu.server.protocols import ServedEngine
    from llamafu.server.storage.catalog import Catalog

_FORM = 64 * 1024
"""Bytes that the form may have beside the file."""
_SUFFIX = ".gguf"
_PAUSE = 60.0
"""Seconds between two chunks of an upload."""


class UploadRoute:
    """A handler over one engine; a file may have `limit` bytes."""

    def __init__(self, engine: ServedEngine, catalog: Catalog, *, limit: int) -> None:
        self._service = LocalLoraService(engine)
        self._catalog = catalog
        self._limit = limit

    async def upload(self, request: AuthedRequest[None]) -> LoraCardAnswer:
        """`POST /v1/lora/upload`: multipart, with `file` and, if it is not to be the file's name, `name`."""
        limited = _Limited(request.http.receive, self._limit + _FORM)
        multipart = Request(request.http.scope, limited)
        kind = multipart.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "multipart/form-data":
            message = f"content-type is {kind!r}; send multipart/form-data with a field 'file'"
            raise InvalidRequestError(message)
        try:
            form = await multipart.form(max_files=1, max_fields=1)
        except HTTPException as error:
            message = f"the form cannot be read: {error.detail}"
            raise InvalidRequestError(message, status=413 if limited.exceeded else 400) from None
        with contextlib.ExitStack() as stack:
            for item in form.values():
                if isinstance(item, UploadFile):
                    stack.callback(item.file.close)
            file, name = form.get("file"), form.get("name")
            others = sorted({*form} - {"file", "name"})
            if not isinstance(file, UploadFile) or not isinstance(name, str | None) or others:
                message = f"the form has {', '.join(map(repr, form)) or 'nothing'}; it takes a file 'file' and a text 'name'"
                raise InvalidRequestError(message)
            wanted = name or (file.filename or "").removesuffix(_SUFFIX)

            def write(path: Path) -> None:
                with path.open("wb") as target:
                    shutil.copyfileobj(file.file, target, 1024 * 1024)

            await asyncio.to_thread(self._catalog.receive, wanted, write)
        card = next(card for card in self._service.list().data if card.id == wanted)
        return LoraCardAnswer(**card.to_json())


class _Limited:
    """Passes ASGI messages on until the body has more than `limit` bytes, or ends early.

    It raises the form parser's own exception, so that the parser closes its files.
    """

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self._size = 0
        self.exceeded = False

    async def __call__(self) -> Message:
        try:
            async with asyncio.timeout(_PAUSE):
                message = await self._receive()
        except TimeoutError:
            told = f"nothing came for {_PAUSE:g} s"
            raise MultiPartException(told) from None
        self._size += len(message.get("body", b""))
        self.exceeded = self._size > self._limit
        if self.exceeded:
            told = f"the upload has more than {self._limit} bytes, which is the limit here"
            raise MultiPartException(told)
        if message["type"] == "http.disconnect":
            told = "the connection ended in the middle"
            raise MultiPartException(told)
        return message
