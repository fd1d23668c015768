"""Field types for the forms that text comes in: messages, stop strings, prompts, texts to embed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeGuard

from pydantic import BaseModel, BeforeValidator, Field, SkipValidation, ValidationInfo

from llamafu._util.json_values import kind_of, shown
from llamafu.generation.messages import MESSAGE_FIELDS, PART_FIELDS, read_messages
from llamafu.generation.tools.tool import LEGAL_CHOICE, is_choice
from llamafu.server.schemas.field_types import JsonSchemaOf, Legal, Name, TokenIds, must_be, refuse
from llamafu.server.schemas.media_parts import AudioPart, CheckedMedia, ImagePart, with_media

if TYPE_CHECKING:
    from llamafu.server.schemas.ignored_fields import IgnoredFields

MOST_MESSAGES = 3000
MOST_PARTS = 20_000
"""Parts of texts, and calls of tools, in all messages together."""
MOST_TOKENS = 1_000_000
"""Token ids in all prompts together."""
MOST_EMBEDDED = 2048
"""Texts of one request for embeddings."""
_STRING = "a string"
_TEXTS = "a string, or a list of strings"
_SOME_PROMPT = "at least one token id, or a string"
_PROMPTS = "a string, or token ids, or a list of strings, or a list of lists of token ids"


class ContentPart(BaseModel):
    """A part of the text of a message."""

    type: Literal["text", "refusal"]
    text: str | None = None
    refusal: str | None = None


class TextDocument(BaseModel):
    """A document by its text."""

    text: Name


class CalledFunction(BaseModel):
    """The function of a tool call, with its arguments as text or object."""

    name: Name
    arguments: str | dict[str, Any] | None = None


class MessageToolCall(BaseModel):
    """A tool call in an assistant's message."""

    id: str | None = None
    type: str | None = None
    function: CalledFunction


class ChatMessage(BaseModel):
    """One message of a chat."""

    role: Name
    content: str | list[ContentPart | ImagePart | AudioPart] | None = None
    name: str | None = None
    tool_calls: list[MessageToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class NamedFunction(BaseModel):
    """A function by its name."""

    name: Name


class NamedToolChoice(BaseModel):
    """The choice of one function, which the answer has to call."""

    type: Literal["function"]
    function: NamedFunction


class AllowedTools(BaseModel):
    """Some of the tools; with "required" the answer has to call one of them."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedToolChoice], Field(min_length=1)]


class AllowedToolsChoice(BaseModel):
    """The choice of several functions, the only ones that the answer may call."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _tool_choice(given: object) -> object:
    if not is_choice(given):
        raise must_be(LEGAL_CHOICE)
    return given


def _function_call(given: object) -> object:
    name = given.get("name") if isinstance(given, dict) else None
    if given not in ("auto", "none") and not (isinstance(name, str) and name):
        raise must_be("'auto', 'none' or {'name': ...} with the name of one of the functions")  # noqa: EM101, TRY003
    return {"name": name} if name else given


def _messages(given: object, info: ValidationInfo) -> object:
    """Read messages as the library does, and tell pydantic every problem. The validation context has `IgnoredFields`."""
    problems: list[str] = []
    if isinstance(given, list):
        bound(len(given), MOST_MESSAGES, "messages")
        held = [part for one in given if isinstance(one, dict) for part in (one.get("content"), one.get("tool_calls"))]
        bound(sum(len(part) for part in held if isinstance(part, list)), MOST_PARTS, "parts of texts and calls of tools")
    media = CheckedMedia()
    messages = read_messages(given, problems, media)
    if isinstance(given, list) and not problems:
        ignored: IgnoredFields = (info.context or {})["ignored"]
        problems += ignored.look_through(given, MESSAGE_FIELDS, PART_FIELDS)
        problems += ignored.note_all(media.unread)
    refuse(problems)
    return with_media(messages, given) if isinstance(given, list) else messages


def _list_of_texts(value: object, info: ValidationInfo) -> object:
    """Make one string a list of it."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list):
        raise must_be(_TEXTS)
    refuse([f"{info.field_name}[{i}] is {shown(text)}; give a string" for i, text in enumerate(texts) if not _is_text(text)])
    return texts


def _list_of_stops(value: object, info: ValidationInfo) -> object:
    """Leave out empty stop strings: they ask for nothing."""
    texts = _list_of_texts(value, info)
    return [text for text in texts if text != ""] if isinstance(texts, list) else texts


def _list_of_prompts(value: object, info: ValidationInfo) -> object:
    """Make one prompt, a string or its token ids, a list of it; the first element says what the others have to be."""
    if value == []:
        raise must_be(_SOME_PROMPT)
    if not isinstance(value, str | list):
        raise must_be(_PROMPTS)
    prompts = [value] if isinstance(value, str) or type(value[0]) is int else value
    name = str(info.field_name)
    bound(sum(len(one) for one in prompts if isinstance(one, list)), MOST_TOKENS, "token ids")
    if _is_text(prompts[0]):
        problems = [f"{name}[{i}] is {shown(one)}; give a string" for i, one in enumerate(prompts) if not _is_text(one)]
    else:
        named = [(name if prompts is not value else f"{name}[{i}]", one) for i, one in enumerate(prompts)]
        problems = [problem for where, one in named for problem in _stray_tokens(where, one)]
    refuse(problems)
    return prompts


def _stray_tokens(where: str, tokens: object) -> list[str]:
    """Return what is wrong with a list of token ids."""
    if not isinstance(tokens, list) or not tokens:
        return [f"{where} is {shown(tokens) if tokens else 'empty'}; give a list of token ids, at least one"]
    if set(map(type, tokens)) == {int} and min(tokens) >= 0:  # a look at each of a million takes a while
        return []
    return [
        f"{where}[{i}] is {shown(token)}; give a token id"
        for i, token in enumerate(tokens)
        if type(token) is not int or token < 0
    ]


def bound(count: int, most: int, what: str) -> None:
    """Raise a validator's error for more of something than a body may have."""
    if count > most:
        raise ValueError(f"give at most {most:,} {what}, not {count:,}")  # noqa: TRY003, EM102 - as above


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _text_or_messages(value: object, info: ValidationInfo) -> object:
    """Take a text as it is and a list as the messages of a chat."""
    if isinstance(value, list):
        return _messages(value, info)
    if not isinstance(value, str):
        raise must_be(_STRING)
    return value


def _texts_to_embed(given: object) -> object:
    """Make one text, a string or its token ids, a list of it."""
    texts = given if isinstance(given, list) and not _are_tokens(given) else [given]
    problems = []
    for i, text in enumerate(texts):
        if not ((isinstance(text, str) and text) or _are_tokens(text)):
            where = "input" if texts == [given] else f"input[{i}]"
            problems.append(f"{where} is {_or_empty(text)}; give {_EMBEDDABLE}")
            break
    if len(texts) > MOST_EMBEDDED:
        problems.append(f"input has {len(texts)} texts; give at most {MOST_EMBEDDED} at a time")
    if not texts:
        problems.append(f"input is an empty list; give {_EMBEDDABLE}")
    refuse(problems)
    return texts


def _documents_to_rank(given: object) -> object:
    """Take the text of each document, which may be an object with it."""
    if not isinstance(given, list) or not given:
        raise must_be(_RANKABLE)
    if len(given) > MOST_EMBEDDED:
        refuse([f"documents has {len(given)} texts; give at most {MOST_EMBEDDED} at a time"])
    texts = [each.get("text") if isinstance(each, dict) else each for each in given]
    refuse(
        [
            f"documents[{i}] is {_or_empty(given[i])}; give a string that is not empty, or an object with one as text"
            for i, text in enumerate(texts)
            if not isinstance(text, str) or not text
        ][:1]
    )
    return texts


def _are_tokens(item: object) -> TypeGuard[list[int]]:
    return isinstance(item, list) and bool(item) and all(type(token) is int for token in item)


def _or_empty(item: object) -> str:
    kind = kind_of(item)
    return kind.replace("a ", "an empty ", 1) if item in ("", []) else kind


def _token_ids(value: object) -> object:
    """Check that a list holds whole numbers; the engine says which of them are tokens."""
    if isinstance(value, list) and not all(type(token) is int for token in value):
        refuse(["tokens holds what is not a whole number; give token ids"])
    return value


_RANKABLE = "a list of strings that are not empty"
_EMBEDDABLE = "a string that is not empty, token ids, or a list of either"
_SomePrompts = Annotated[list[str], Field(min_length=1)] | Annotated[list[TokenIds], Field(min_length=1)]
_SomeTexts = Annotated[list[Name | TokenIds], Field(min_length=1)]
_SomeMessages = Annotated[list[ChatMessage], Field(min_length=1)]
# Items are checked by the functions alone: pydantic would look at each of a million token ids once more.
Texts = Annotated[list[str], BeforeValidator(_list_of_texts), JsonSchemaOf(str | list[str])]
StopTexts = Annotated[list[str], BeforeValidator(_list_of_stops), JsonSchemaOf(str | list[str])]
Prompts = Annotated[
    list[SkipValidation[str | list[int]]], BeforeValidator(_list_of_prompts), JsonSchemaOf(str | TokenIds | _SomePrompts)
]
ToolChoice = Annotated[
    SkipValidation[str | dict[str, Any]],
    BeforeValidator(_tool_choice),
    JsonSchemaOf(Literal["auto", "none", "required"] | NamedToolChoice | AllowedToolsChoice),
]
FunctionCall = Annotated[
    SkipValidation[str | dict[str, Any]],
    BeforeValidator(_function_call),
    JsonSchemaOf(Literal["auto", "none"] | NamedFunction),
]
Messages = Annotated[list[SkipValidation[dict[str, Any]]], BeforeValidator(_messages), JsonSchemaOf(_SomeMessages)]
TextOrMessages = Annotated[
    SkipValidation[str | list[dict[str, Any]]],
    BeforeValidator(_text_or_messages),
    JsonSchemaOf(str | _SomeMessages),
    Legal(_STRING),
]
TextsToEmbed = Annotated[
    list[SkipValidation[str | list[int]]],
    BeforeValidator(_texts_to_embed),
    JsonSchemaOf(Name | TokenIds | _SomeTexts),
    Legal(_EMBEDDABLE),
]
Documents = Annotated[
    list[SkipValidation[str]],
    BeforeValidator(_documents_to_rank),
    JsonSchemaOf(Annotated[list[Name | TextDocument], Field(min_length=1)]),
    Legal(_RANKABLE),
]
AnyTokens = Annotated[
    list[SkipValidation[int]], BeforeValidator(_token_ids), JsonSchemaOf(list[Annotated[int, Field(ge=0)]]), Legal("a list")
]
