"""Request bodies of llama-server's own routes that generate."""

from __future__ import annotations

from pydantic import AliasChoices, Field

from llamafu.server.schemas.base import ObjectBody
from llamafu.server.schemas.content import Texts
from llamafu.server.schemas.field_types import Name
from llamafu.server.schemas.mixed_prompts import MixedPrompts
from llamafu.server.schemas.requests import MOST_CHOICES, MOST_LOGPROBS, GenerationBody, too_many_answers

MOST_FILES = 1000
"""Files around the one that is filled in."""


class LlamaBody(GenerationBody):
    """What llama-server's routes share that generate: the options of a generation, and what the answer tells."""

    n: int = Field(1, ge=1, le=MOST_CHOICES, validation_alias=AliasChoices("n", "n_cmpl"))
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS, validation_alias=AliasChoices("n_probs", "logprobs"))
    return_tokens: bool = False
    timings_per_token: bool = False
    n_indent: int = Field(0, ge=0)
    t_max_predict_ms: int = Field(0, ge=-1)
    response_fields: Texts = Field([], max_length=64)

    def alternatives(self) -> int | None:
        """Return `n_probs`, where it asks for any."""
        return self.logprobs or None

    @property
    def limits_lines(self) -> bool:
        """Whether the answer's lines may end it."""
        return self.n_indent > 0 or self.t_max_predict_ms > 0

    def contradictions(self) -> list[str]:
        """Return options that exclude each other."""
        found = super().contradictions()
        if self.limits_lines and self.n > 1:
            found.append(f"n is {self.n}, but n_indent and t_max_predict_ms end one answer at a time; leave them or n out")
        return found


class LlamaCompletionBody(LlamaBody):
    """`POST /completion`."""

    prompt: MixedPrompts = Field(max_length=MOST_CHOICES)

    def contradictions(self) -> list[str]:
        """Return options that exclude each other, and more answers than one request may ask for."""
        return [*super().contradictions(), *too_many_answers(len(self.prompt), self.n)]


class InfillFile(ObjectBody):
    """A file beside the one that is filled in."""

    text: str
    filename: Name = "tmp"


class InfillBody(LlamaBody):
    """`POST /infill`. `prompt` follows `input_prefix`: the beginning of the line that is written just now."""

    input_prefix: str
    input_suffix: str
    input_extra: list[InfillFile] = Field([], max_length=MOST_FILES)
    prompt: str = ""
