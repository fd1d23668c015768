"""Fetching images that messages name by URL, where the server was told to: within limits, from public addresses only."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from llamafu.generation.media.parts import url_of
from llamafu.server.schemas.media_parts import has_media
from llamafu.service.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MOST_BYTES = 16 << 20
MOST_SECONDS = 10.0
"""For all of one image, redirects included."""
MOST_REDIRECTS = 3
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_OK = 200
_CHUNK = 1 << 16


def with_fetched(messages: Sequence[Mapping[str, Any]], *, allowed: bool) -> list[Mapping[str, Any]]:
    """Return messages whose images are here: those that are named by URL fetched, if that is allowed. Blocks.

    Raises InvalidRequestError, with the part's path, for what is not allowed or cannot be fetched.
    """
    found: list[Mapping[str, Any]] = []
    for i, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, list) and has_media(content):
            parts = [_fetched(part, f"messages[{i}].content[{k}]", allowed=allowed) for k, part in enumerate(content)]
            found.append({**message, "content": parts})
        else:
            found.append(message)
    return found


def _fetched(part: Any, where: str, *, allowed: bool) -> Any:
    if not isinstance(part, dict) or part.get("type") != "image_url":
        return part
    url = url_of(part)
    if urlsplit(url).scheme not in {"http", "https"}:
        return part
    if not allowed:
        message = f"{where}: this server fetches no images; send the image as a data URL, or start it with --fetch-media"
        raise InvalidRequestError(message)
    try:
        return {"type": "image", "image": fetch(url)}
    except (OSError, ValueError, http.client.HTTPException) as error:
        message = f"{where}: the image cannot be fetched: {error}; send it as a data URL"
        raise InvalidRequestError(message) from error


def fetch(url: str) -> bytes:
    """Return what is at a URL. Raises ValueError for one that is not allowed, OSError, `http.client.HTTPException`."""
    deadline = time.monotonic() + MOST_SECONDS
    for _ in range(MOST_REDIRECTS + 1):
        answer = _get(url, deadline)
        if isinstance(answer, bytes):
            return answer
        url = urljoin(url, answer)
    message = f"it redirects more than {MOST_REDIRECTS} times"
    raise ValueError(message)


def _get(url: str, deadline: float) -> bytes | str:
    """Return what is at a URL, or where it redirects to."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        message = f"{url[:100]!r} is neither http nor https"
        raise ValueError(message)
    secure = parts.scheme == "https"
    connection = _connected(parts.hostname, parts.port or (443 if secure else 80), deadline, secure=secure)
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path, headers={"Accept": "image/*", "User-Agent": "llamafu"})
        response = connection.getresponse()
        if response.status in _REDIRECTS and (target := response.getheader("Location")):
            return target
        if response.status != _OK:
            message = f"the answer has the status {response.status}"
            raise ValueError(message)
        return _body(response, deadline)
    finally:
        connection.close()


def _connected(host: str, port: int, deadline: float, *, secure: bool) -> http.client.HTTPConnection:
    """Connect to a public address of a host: to the very address that was looked at, since names may change meanwhile."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]) for entry in found]
    for address in addresses:
        if not is_public(address):
            message = f"{host} is at {address}, which is no public address"
            raise ValueError(message)
    raw = socket.create_connection((addresses[0], port), timeout=_left(deadline))
    connection: http.client.HTTPConnection = http.client.HTTPConnection(host, port)
    connection.sock = ssl.create_default_context().wrap_socket(raw, server_hostname=host) if secure else raw
    return connection


def is_public(address: str) -> bool:
    """Whether an address is reachable for everybody: not this machine, its network, or one of a special use."""
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_global and not found.is_multicast


def _body(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """Return the body, read in pieces so that neither its size nor its time pass the limits."""
    content = bytearray()
    while piece := response.read1(_CHUNK):
        content += piece
        if len(content) > MOST_BYTES:
            message = f"it has more than {MOST_BYTES:,} bytes"
            raise ValueError(message)
        _left(deadline)
    return bytes(content)


def _left(deadline: float) -> float:
    """Return the seconds that are left; TimeoutError where there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        message = f"it took more than {MOST_SECONDS:g} seconds"
        raise TimeoutError(message)
    return left
