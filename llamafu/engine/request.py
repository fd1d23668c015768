"""One request to an engine: a prompt and its options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llamafu._util.arguments import check_whole, whole_number
from llamafu.generation.options import Options
from llamafu.generation.sampling_options import MOST

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llamafu.generation.media.prompt import MediaPrompt
    from llamafu.generation.tools.answer_format import AnswerFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(Options):
    """A prompt with the options of `complete`.

    `prompt` is text, token ids, or what a chat with media was made into (`Engine.request_of_chat`). `priority`: a higher one is
    started first. `timeout`: seconds after which the request is ended with `finish_reason` "cancelled", with what there is by
    then; None is no limit. `answer_format` says how the answer of a chat is parted into text, reasoning and calls; None: all of
    it is text. `prompt_logprobs`: report the log probabilities of the prompt's tokens, with so many alternatives beside each;
    None is off. It computes the whole prompt, also what is cached of it. `report_tokens`: streamed pieces have their tokens.
    """

    prompt: str | Sequence[int] | MediaPrompt
    priority: int = 0
    timeout: float | None = None
    answer_format: AnswerFormat | None = None
    prompt_logprobs: int | None = None
    report_tokens: bool = False

    def __post_init__(self) -> None:
        Options.__post_init__(self)
        if isinstance(self.prompt, bytes) or (not isinstance(self.prompt, str) and not hasattr(self.prompt, "__len__")):
            message = f"prompt is {type(self.prompt).__name__}; give a str or a sequence of token ids"
            raise TypeError(message)
        if self.prompt_logprobs is not None:
            object.__setattr__(self, "prompt_logprobs", check_whole("prompt_logprobs", self.prompt_logprobs, low=0, high=MOST))
        if (priority := whole_number(self.priority)) is None:
            message = f"priority={self.priority!r} is not a whole number"
            raise TypeError(message)
        object.__setattr__(self, "priority", priority)
        is_number = isinstance(self.timeout, int | float) and not isinstance(self.timeout, bool)
        if self.timeout is not None and not (is_number and self.timeout > 0):
            message = f"timeout={self.timeout!r} is not a number of seconds above 0"
            raise ValueError(message)
