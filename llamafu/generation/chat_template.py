"""From chat messages to a prompt, by the model's own template."""

from __future__ import annotations

import importlib.util
import re
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llamafu.errors import ErrorCode, LlamafuError, TemplateLimitError
from llamafu.generation.chat_options import ChatOptions
from llamafu.generation.chat_prompt import ChatPrompt, NoPlaceError, wants_parts
from llamafu.generation.jinja_template import TemplateRefusalError, compiled
from llamafu.generation.messages import read_messages, read_tools
from llamafu.generation.tools.family import family_of
from llamafu.generation.tools.generic import told_in_messages
from llamafu.generation.tools.tool import callable_tools, count_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llamafu._native.model import Model
    from llamafu.generation.media.parts import PartReader

_MEND = "install jinja2 (`pip install 'llamafu[chat]'`) to run the model's own template"

_THINKING = "enable_thinking"
"""The variable by which templates switch reasoning off."""
_FOR_TOOLS = "tokenizer.chat_template.tool_use"
"""Metadata key of a second template that some models have, for chats with tools."""
_DEVELOPER = re.compile(r"""(['"])developer\1""")
"""The role, as a template that knows it compares a message's with it."""
_REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplateWarning(UserWarning):
    """The prompt was made by libllama's version of a known template, which may leave out details of the model's own."""


@dataclass(frozen=True, slots=True)
class RenderedChat:
    """A chat's prompt, up to where the answer begins; `template` made it.

    `tools` are those that the answer may call; `is_generic`: they were told in a message, the template has no place for them.
    """

    text: str
    template: str
    tools: list[dict[str, Any]]
    is_generic: bool = False


def render(
    model: Model,
    messages: Sequence[Mapping[str, Any]],
    options: ChatOptions | None = None,
    *,
    thinks: bool = True,
    media: PartReader | None = None,
) -> RenderedChat:
    """Make the prompt for `messages`. Without `thinks`, a template that can is told to let the model not think.

    `media` reads the images and sounds among them; None refuses them.

    The model's template is a Jinja program. With jinja2 (the extra `chat`) it is run in a sandbox; without it,
    libllama formats the templates that it recognises, with a `ChatTemplateWarning`. Raises TypeError or ValueError
    for illegal messages, with the path of every problem, and `LlamafuError` where the template rejects them.
    """
    options = options or ChatOptions()
    problems: list[str] = []
    read = read_messages(messages, problems, media)
    tools = read_tools((options.tools if options.tool_choice != "none" else None) or (), problems)
    if problems:
        raise (ValueError if isinstance(messages, list | tuple) and not messages else TypeError)("; ".join(problems))
    template = _template_of(model, options, tools)
    read = [_in_words_of(template, message) for message in read]
    if importlib.util.find_spec("jinja2") is None:
        _refuse_without_jinja(read, options)
        text = ChatPrompt(lambda **values: _by_libllama(model, template, values), {}, options).of(read, ())
        warnings.warn(
            f"the chat prompt was made by libllama's rendition of a known template; {_MEND}", ChatTemplateWarning, stacklevel=5
        )
        rendered = RenderedChat(text, template, tools)
    else:
        program = compiled(template)
        specials = {"bos_token": model.spelled(model.bos), "eos_token": model.spelled(model.eos)}
        unthinking = {} if thinks or _THINKING not in template else {_THINKING: False}
        variables = {"documents": None, **specials, **unthinking, **(options.chat_template_kwargs or {})}
        prompt = ChatPrompt(program, variables, options, parts=wants_parts(program))
        rendered = _with_tools(prompt, read, RenderedChat("", template, tools), is_generic_legal=options.generic_tools)
    if not rendered.text.strip():
        message = "the model's chat template makes an empty prompt of these messages; give messages that say something"
        raise LlamafuError(message, code=ErrorCode.INVALID_PARAM)
    return rendered


def _template_of(model: Model, options: ChatOptions, tools: Sequence[Mapping[str, Any]]) -> str:
    template = options.chat_template
    if template is None and tools:
        template = model.metadata(_FOR_TOOLS)
    if template is None:
        template = model.chat_template()
    if template is None:
        message = "this model has no chat template; use complete() with a prompt in the form that it was trained on"
        raise LlamafuError(message, code=ErrorCode.INVALID_PARAM)
    return template


def _in_words_of(template: str, message: dict[str, Any]) -> dict[str, Any]:
    """Return a message with OpenAI's newer names as an older template calls the same things.

    Reasoning has both names that templates read, as in transformers, and may come by any of the three that clients write.
    """
    if message["role"] == "developer" and not _DEVELOPER.search(template):
        message = {**message, "role": "system"}
    reasoning = next((message[name] for name in _REASONING if isinstance(message.get(name), str)), None)
    if reasoning is not None:
        message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
    return message


def _with_tools(
    prompt: ChatPrompt, messages: list[dict[str, Any]], chat: RenderedChat, *, is_generic_legal: bool
) -> RenderedChat:
    """Render a chat; where the template has no place for tools or their calls, with these as text, if that is legal.

    A template of no known family that raises is taken for one that has no place: many of these want roles to alternate.
    """
    try:
        return replace(chat, text=prompt.of(messages, chat.tools))
    except (NoPlaceError, TemplateRefusalError) as error:
        has_calls = any(message.get("tool_calls") or message["role"] in {"tool", "function"} for message in messages)
        is_legal = is_generic_legal and (chat.tools or has_calls)
        if not is_legal or not (isinstance(error, NoPlaceError) or family_of(chat.template) is None):
            raise
        refusal = error
    text = _told_as_text(prompt, messages, chat.tools)
    if text is None:
        raise refusal
    return replace(chat, text=text, is_generic=True)


def _told_as_text(prompt: ChatPrompt, messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]]) -> str | None:
    """Return a prompt that tells of tools in a message; None where the template raises or shows no such message."""
    names = list(callable_tools(tools))
    for to_system in (True, False):
        try:
            text = prompt.of(told_in_messages(messages, tools, to_system=to_system), ())
        except TemplateLimitError:
            raise
        except LlamafuError:
            continue
        if all(count_of(name, text) for name in names):
            return text
    return None


def tokenize(
    model: Model, messages: Sequence[Mapping[str, Any]], options: ChatOptions | None = None, *, thinks: bool = True
) -> list[int]:
    """Return the token ids of the prompt."""
    return tokens_of(model, render(model, messages, options, thinks=thinks).text)


def tokens_of(model: Model, prompt: str) -> list[int]:
    """Return the token ids of a rendered prompt; one that begins with BOS gets no second BOS."""
    starts_with_bos = model.adds_bos and prompt.startswith(model.spelled(model.bos))
    return model.tokenize(prompt, add_special=not starts_with_bos, parse_special=True)


def _refuse_without_jinja(messages: Sequence[Mapping[str, Any]], options: ChatOptions) -> None:
    beyond = ["tools"] * (bool(options.tools) and options.tool_choice != "none") + ["chat_template_kwargs"] * bool(
        options.chat_template_kwargs
    )
    beyond += sorted({key for message in messages for key in message} - {"role", "content"})
    if beyond:
        message = (
            f"only the model's own template can show it: {', '.join(beyond)}; install jinja2 (`pip install 'llamafu[chat]'`)"
        )
        raise LlamafuError(message, code=ErrorCode.INVALID_PARAM)


def _by_libllama(model: Model, template: str, values: Mapping[str, Any]) -> str:
    """Return the prompt that libllama itself makes of plain messages."""
    pairs = [(message["role"], message["content"]) for message in values["messages"]]
    text = model.apply_known_template(template, pairs, add_generation_prompt=values["add_generation_prompt"])
    if text is None:
        message = f"libllama does not recognise this model's chat template; {_MEND}"
        raise LlamafuError(message, code=ErrorCode.INVALID_PARAM)
    return text
