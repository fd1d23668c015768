"""Content parts of a chat's messages that are images or sounds."""

from __future__ import annotations

import reprlib
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from llamafu.errors import ErrorCode, LlamafuError, MultimodalError
from llamafu.generation.media.medium import Medium, content_of_data_url, decoded_base64, read_medium
from llamafu.generation.media.prompt import MARKER

if TYPE_CHECKING:
    from collections.abc import Mapping

MEDIA_PARTS = ("image_url", "input_audio", "image", "audio")
"""Types of content parts that are media: OpenAI's two, and two for Python, which take whatever `media` of `complete` takes."""


class PartReader(Protocol):
    """Takes the parts of a message that are no text."""

    def text_of(self, part: Mapping[str, Any], where: str, problems: list[str]) -> str:
        """Return what stands for a part in the text of its message; what is wrong with it goes to `problems`."""


class MediaParts:
    """Reads the media of messages, and writes a mark into the text where each stands.

    The marks are drawn for each chat: no text of a user has one.
    """

    def __init__(self) -> None:
        self._mark = secrets.token_hex(8)
        self._media: list[Medium] = []

    def __bool__(self) -> bool:
        """Return whether there are any."""
        return bool(self._media)

    def text_of(self, part: Mapping[str, Any], where: str, problems: list[str]) -> str:
        """Read a part; return its mark."""
        try:
            self._media.append(replace(_medium(part), where=where))
        except (MultimodalError, TypeError, OSError) as error:
            problems.append(f"{where}: {error}")
            return ""
        return self._marked(len(self._media) - 1)

    def split(self, text: str) -> list[str | Medium]:
        """Return the texts and media of a rendered chat in order; `LlamafuError` where the template drops or repeats one."""
        parts: list[str | Medium] = []
        for index, medium in enumerate(self._media):
            before, mark, after = text.partition(self._marked(index))
            if not mark or self._marked(index) in after:
                told = "shows twice" if mark else "leaves out, or moves,"
                message = (
                    f"{medium.where}: this model's chat template {told} a part of this message; give it in one of role 'user'"
                )
                raise LlamafuError(message, code=ErrorCode.INVALID_PARAM)
            parts += [before, medium]
            text = after
        return [*parts, text]

    def shown(self, text: str) -> str:
        """Return a rendered chat as it may be shown: with the marker of `complete` for each medium."""
        for index in range(len(self._media)):
            text = text.replace(self._marked(index), MARKER)
        return text

    def _marked(self, index: int) -> str:
        return f"<__media_{self._mark}_{index}__>"


class NoMedia:
    """Refuses media: the model was opened without a projector."""

    def text_of(self, part: Mapping[str, Any], where: str, problems: list[str]) -> str:
        """Refuse a part."""
        problems.append(
            f"{where}.type is {reprlib.repr(part['type'])}; this model takes text parts only, since it was opened without a "
            "projector (mmproj_path)"
        )
        return ""


def url_of(part: Mapping[str, Any]) -> str:
    """Return the URL of an `image_url` part, which is a string or an object with one; TypeError."""
    given = part.get("image_url")
    url = given.get("url") if isinstance(given, dict) else given
    if not isinstance(url, str):
        message = f"image_url is {reprlib.repr(given)}; give {{'url': 'data:image/png;base64,...'}}"
        raise TypeError(message)
    return url


def sound_of(part: Mapping[str, Any]) -> str:
    """Return the data of an `input_audio` part, in base64; TypeError."""
    given = part.get("input_audio")
    data = given.get("data") if isinstance(given, dict) else None
    if not isinstance(data, str):
        message = f"input_audio is {reprlib.repr(given)}; give {{'data': the file in base64, 'format': 'wav' or 'mp3'}}"
        raise TypeError(message)
    return data


def _medium(part: Mapping[str, Any]) -> Medium:
    """Read the medium of one part, and check that it is of the kind that the part says."""
    kind = part["type"]
    if kind == "image_url":
        medium = read_medium(content_of_data_url(url_of(part)))
    elif kind == "input_audio":
        medium = read_medium(decoded_base64(sound_of(part)))
    else:
        if kind not in part:
            message = f"a part of type {kind!r} has no {kind!r}; give what it is: a path, bytes, or an image"
            raise TypeError(message)
        medium = read_medium(part[kind])
    wanted = "image" if kind in {"image_url", "image"} else "audio"
    if medium.kind != wanted:
        message = f"this is {_NAMES[medium.kind]}, in a part for {_NAMES[wanted]}; give a part of the other type"
        raise MultimodalError(message)
    return medium


_NAMES = {"image": "an image", "audio": "a sound"}
