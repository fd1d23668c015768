"""Images and sounds in the messages of bodies: which forms are taken, before anything of them is decoded."""

from __future__ import annotations

import reprlib
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from llamafu.generation.media.parts import MEDIA_PARTS, sound_of, url_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SERVED = ("image_url", "input_audio")
MOST_MEDIA = 64
"""In all messages of a request."""


class ImageUrl(BaseModel):
    """An image as a data URL; with `--fetch-media` as another URL, too."""

    url: str
    detail: str | None = None


class InputAudio(BaseModel):
    """A WAV, FLAC or MP3 file in base64."""

    data: str
    format: str | None = None


class ImagePart(BaseModel):
    """An image as a part of a message."""

    type: Literal["image_url"]
    image_url: ImageUrl | str


class AudioPart(BaseModel):
    """A sound as a part of a message."""

    type: Literal["input_audio"]
    input_audio: InputAudio


class CheckedMedia:
    """Checks the parts of a body's messages that are media; the engine reads them. `unread`: fields that nobody reads."""

    def __init__(self) -> None:
        self.unread: list[str] = []
        self._count = 0

    def text_of(self, part: Mapping[str, Any], where: str, problems: list[str]) -> str:
        """Note what is wrong with a part. Nothing stands for it here: `with_media` puts it back."""
        kind = part["type"]
        self._count += 1
        if self._count == MOST_MEDIA + 1:
            problems.append(f"{where} is one image or sound more than the {MOST_MEDIA} that a request may have")
        try:
            if kind == "image_url":
                url_of(part)
                detail = part["image_url"].get("detail") if isinstance(part["image_url"], dict) else None
                self.unread += [] if detail in (None, "auto") else [f"{where}.image_url.detail"]
            elif kind == "input_audio":
                sound_of(part)
            else:
                problems.append(f"{where}.type is {reprlib.repr(kind)}; give one of {', '.join(map(repr, _SERVED))}")
        except TypeError as error:
            problems.append(f"{where}: {error}")
        return ""


def with_media(read: list[dict[str, Any]], given: Sequence[Any]) -> list[dict[str, Any]]:
    """Return messages that were read, with the contents that were given where they have media, for the engine to read."""
    return [
        {**message, "content": raw["content"]} if has_media(raw.get("content")) else message
        for message, raw in zip(read, given, strict=True)
    ]


def has_media(content: object) -> bool:
    """Whether a message's content has a part that is an image or a sound."""
    return isinstance(content, list) and any(isinstance(part, dict) and part.get("type") in MEDIA_PARTS for part in content)


def content_of(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """Return the content of a message: a text, or its parts where there are media among them."""
    return parts if has_media(parts) else "\n".join(part["text"] for part in parts)


def parts_of(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a message's content as parts."""
    return content if isinstance(content, list) else [{"type": "text", "text": content}]
