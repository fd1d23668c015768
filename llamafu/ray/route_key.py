"""What of a request's body says where it should run."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from llamafu.ray.scoring import RouteKey

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llamafu.ray.state_hub import Directory

_PROMPTS = ("messages", "prompt", "input", "query", "system", "instructions", "tools")
"""Fields of bodies that a prompt is made of, in all protocols."""
_CHUNK = 256
"""Bytes of a prompt for each prefix: about the 64 tokens of a block of the engine's cache."""
_MOST_CHUNKS = 256
"""Prefixes of one request: what follows is not looked at."""
_LARGEST = 256 * 1024
"""Bytes of a body that is read for its key: reading a larger one would hold up every other request."""


def route_key(content: bytes, directory: Directory) -> RouteKey:
    """Return the key of a request; an empty one for a body that is no JSON object, or names what is not there.

    What is wrong with the body, the replica says.
    """
    if not content or len(content) > _LARGEST:
        return RouteKey()
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return RouteKey()
    scales = _scales(body, directory) if isinstance(body, dict) else None
    if scales is None:
        return RouteKey()
    adapters = {name: directory.adapters[name] for name in scales}
    state = sorted((digest, scales[name]) for name, (digest, _) in adapters.items() if scales[name])
    ranks = {digest: rank for name, (digest, rank) in adapters.items() if scales[name]}
    return RouteKey(ranks, _prefixes(repr(state).encode(), body))


def _scales(body: Mapping[str, Any], directory: Directory) -> dict[str, float] | None:
    """Return scale by adapter; None for what cannot be read, or is not there."""
    lora, model = body.get("lora"), body.get("model")
    named: dict[Any, Any]
    if isinstance(lora, dict):
        named = lora
    elif isinstance(lora, list):
        if not all(isinstance(each, dict) for each in lora):
            return None
        named = {each.get("name"): each.get("scale", 1.0) for each in lora}
    elif lora is None and isinstance(model, str) and (model in directory.adapters or model in directory.mixes):
        named = {model: 1.0}
    else:
        named = dict(directory.active) if lora is None else {}
    found: dict[str, float] = {}
    for name, scale in named.items():
        if not isinstance(name, str) or not isinstance(scale, int | float):
            return None
        for adapter, share in directory.mixes.get(name, {name: 1.0}).items():
            if adapter not in directory.adapters:
                return None
            found[adapter] = found.get(adapter, 0.0) + scale * share
    return found


def _prefixes(state: bytes, body: Mapping[str, Any]) -> tuple[bytes, ...]:
    """Return digests of ever longer beginnings of a prompt: each is of the one before it and the next chunk.

    Messages are taken one after another, so that a chat's next turn begins with the prefixes of this one.
    """
    parts = [body[name] for name in ("system", "instructions", "tools") if body.get(name)]
    for name in _PROMPTS[:4]:
        value = body.get(name)
        parts += value if isinstance(value, list) else [] if value is None else [value]
    text = "\n".join(part if isinstance(part, str) else json.dumps(part, ensure_ascii=False) for part in parts)
    data = text.encode("utf-8", "surrogatepass")
    found: list[bytes] = []
    last = state
    for start in range(0, min(len(data) // _CHUNK, _MOST_CHUNKS) * _CHUNK, _CHUNK):
        last = hashlib.blake2b(last + data[start : start + _CHUNK], digest_size=8).digest()
        found.append(last)
    return tuple(found)
