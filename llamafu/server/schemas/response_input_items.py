"""The items of a request's input to the Responses API, for its description; `response_input.py` reads them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from llamafu.server.schemas.field_types import Name
from llamafu.server.schemas.media_parts import AudioPart


class InputPart(BaseModel):
    """A part of a text."""

    type: Literal["input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text"]
    text: str | None = None
    refusal: str | None = None


class InputImage(BaseModel):
    """An image as a data URL."""

    type: Literal["input_image"]
    image_url: str
    detail: str | None = None


class InputMessage(BaseModel):
    """A message."""

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[InputPart | InputImage | AudioPart] | None


class InputCall(BaseModel):
    """A call that an earlier answer made."""

    type: Literal["function_call"]
    call_id: Name
    namespace: Name | None = None
    name: Name
    arguments: str


class InputCustomCall(BaseModel):
    """A call of a tool whose input is a text."""

    type: Literal["custom_tool_call"]
    call_id: Name
    name: Name
    input: str


class InputCallOutput(BaseModel):
    """What a called function gave."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: Name
    output: str | list[InputPart]


class InputReasoning(BaseModel):
    """The reasoning of an earlier answer."""

    type: Literal["reasoning"]
    content: list[InputPart] | None = None
    summary: list[InputPart] | None = None


InputItems = Annotated[list[InputMessage | InputCall | InputCustomCall | InputCallOutput | InputReasoning], Field(min_length=1)]
