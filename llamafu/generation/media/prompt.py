"""Prompts with media: tokens, and rows of embeddings at their places among them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llamafu._native.media.projector import MediaRows
from llamafu.errors import ContextOverflowError, MultimodalError
from llamafu.generation.media.medium import read_medium

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llamafu._native.context import Context
    from llamafu._native.model import Model
    from llamafu.generation.media.encoder import MediaEncoder, Pieces
    from llamafu.generation.media.medium import Medium

MARKER = "<__media__>"
"""Stands for a medium in the prompt of `complete`."""
_ORDINAL, _ROW = 40, 24
"""Bits below the content and below the piece in the number of a row."""


@dataclass(frozen=True, slots=True)
class MediaSpan:
    """Rows of embeddings that stand in a prompt from index `start` on."""

    start: int
    rows: MediaRows

    @property
    def end(self) -> int:
        """One past the last index."""
        return self.start + len(self.rows)


@dataclass(frozen=True, slots=True)
class MediaPrompt:
    """A prompt's tokens, with a negative number in the place of each row of a medium: the same for the same row and content.

    So prompts with equal numbers have equal keys and values, and caches of prefixes need to know nothing of media.
    """

    tokens: list[int]
    spans: tuple[MediaSpan, ...]

    def __len__(self) -> int:
        """Return how many tokens and rows there are."""
        return len(self.tokens)


def text_tokens(tokens: Sequence[int]) -> list[int]:
    """Return the tokens of a prompt without the rows of media."""
    return [token for token in tokens if token >= 0]


def counted(length: int, spans: Sequence[MediaSpan]) -> str:
    """Say how long a prompt is, in words for a message."""
    media = sum(len(span.rows) for span in spans)
    return f"{length} tokens, {media} of them of media" if media else f"{length} tokens"


def check_spans(spans: Sequence[MediaSpan], context: Context) -> None:
    """Raise ContextOverflowError for rows that have to be decoded in one call, and are too many for one."""
    most = max((len(span.rows) for span in spans if not span.rows.causal), default=0)
    if most > context.n_ubatch:
        message = (
            f"an image takes {most} rows at once, but a batch holds {context.n_ubatch}; open the model with n_batch={most}"
        )
        raise ContextOverflowError(message)


def split_at_markers(prompt: str, media: Sequence[Medium]) -> list[str | Medium]:
    """Return the texts and media of a prompt in order; `MultimodalError` where there are not as many markers as media."""
    texts = prompt.split(MARKER)
    if len(texts) - 1 != len(media):
        message = (
            f"the prompt has {len(texts) - 1} markers {MARKER!r} for {len(media)} media; write one where each medium belongs"
        )
        raise MultimodalError(message)
    parts: list[str | Medium] = [texts[0]]
    for medium, text in zip(media, texts[1:], strict=True):
        parts += [medium, text]
    return parts


def prompt_with_media(model: Model, prompt: str, media: Sequence[object], encoder: MediaEncoder | None) -> MediaPrompt:
    """Read and encode what `media` of `complete` holds, and put each at its marker in the prompt.

    Raises MultimodalError, with the place in `media`, TypeError for what is no medium, OSError.
    """
    if encoder is None:
        message = f"media has {len(media)} entries, but the model was opened without a projector; open it with mmproj_path"
        raise MultimodalError(message)
    found = []
    for index, given in enumerate(media):
        try:
            found.append(replace(read_medium(given), where=f"media[{index}]"))
        except (MultimodalError, TypeError) as error:
            message = f"media[{index}]: {error}"
            raise type(error)(message) from error
    return media_prompt(model, split_at_markers(prompt, found), encoder)


def media_prompt(model: Model, parts: Sequence[str | Medium], encoder: MediaEncoder) -> MediaPrompt:
    """Encode the media among `parts`, and put them between the tokens of the texts; a beginning of BOS gets no second one."""
    first = parts[0] if isinstance(parts[0], str) else ""
    bos = model.adds_bos and not first.startswith(model.spelled(model.bos))
    tokens: list[int] = [model.bos] if bos else []
    spans: list[MediaSpan] = []
    for part in parts:
        if isinstance(part, str):
            tokens += model.tokenize(part, add_special=False, parse_special=True) if part else []
            continue
        content = int.from_bytes(part.digest[:16], "big")
        for ordinal, piece in enumerate(_encoded(part, encoder)):
            if not isinstance(piece, MediaRows):
                tokens += piece
                continue
            spans.append(MediaSpan(len(tokens), piece))
            base = content << (_ORDINAL + _ROW) | ordinal << _ROW
            tokens += [-1 - (base | row) for row in range(len(piece))]
    return MediaPrompt(tokens, tuple(spans))


def _encoded(medium: Medium, encoder: MediaEncoder) -> Pieces:
    try:
        return encoder.encode(medium)
    except MultimodalError as error:
        message = f"{medium.where}: {error}"
        raise MultimodalError(message) from error
