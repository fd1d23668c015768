"""Prompts of several forms as token ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamafu.generation.media.prompt import MediaPrompt
from llamafu.service.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llamafu.engine.request import Request
    from llamafu.generation.infill import InfillText
    from llamafu.server.protocols import ServedEngine
    from llamafu.server.schemas.mixed_prompts import MixedPrompt


def prompt_tokens(engine: ServedEngine, request: Request) -> Sequence[int]:
    """Return the token ids of a request's prompt; in the place of a row of a medium is -1."""
    prompt = request.prompt
    if isinstance(prompt, MediaPrompt):
        return [max(token, -1) for token in prompt.tokens]
    return engine.tokenize(prompt) if isinstance(prompt, str) else prompt


def mixed_tokens(engine: ServedEngine, parts: MixedPrompt, *, add_special: bool, parse_special: bool) -> list[int]:
    """Return the tokens of texts and token ids that follow each other; a BOS goes before a text that comes first."""
    tokens: list[int] = []
    for index, part in enumerate(parts):
        if isinstance(part, str):
            tokens += engine.tokenize(part, add_special=add_special and index == 0, parse_special=parse_special)
        else:
            tokens.append(part)
    return tokens


def demand_infill(engine: ServedEngine) -> None:
    """Raise `InvalidRequestError` where the model was not made for filling in."""
    if missing := engine.model_facts.infill_tokens.missing:
        what = f"its vocabulary marks no {', no '.join(missing)}"
        message = f"this model cannot fill in the middle of a text: {what}; serve one that was trained to, or ask /completion"
        raise InvalidRequestError(message)


def infill_tokens(engine: ServedEngine, text: InfillText, max_tokens: int) -> list[int]:
    """Return the prompt of a text that is to be filled in, as far as the context has room beside `max_tokens`.

    An eighth of the context is kept for an answer without a limit of its own.
    """
    facts = engine.model_facts
    head = engine.tokenize("", add_special=True)
    answer = max_tokens if max_tokens >= 0 else facts.context_length // 8
    most = max(facts.context_length - len(head) - answer - 1, facts.context_length // 2)
    return [
        *head,
        *text.prompt(facts.infill_tokens, lambda part: engine.tokenize(part, add_special=False, parse_special=False), most),
    ]
