"""From chat messages to a prompt, by the model's own template."""

from __future__ import annotations

import importlib.util
import warnings
from typing import TYPE_CHECKING, Any

from llamafu.errors import ErrorCode, LlamafuError
from llamafu.generation.chat_options import ChatOptions
from llamafu.generation.chat_prompt import ChatPrompt, wants_parts
from llamafu.generation.jinja_template import compiled
from llamafu.generation.messages import read_messages, read_tools

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llamafu._native.model import Model

_MEND = "install jinja2 (`pip install 'llamafu[chat]'`) to run the model's own template"

_FOR_TOOLS = "tokenizer.chat_template.tool_use"
"""Metadata key of a second template that some models have, for chats with tools."""


class ChatTemplateWarning(UserWarning):
    """The prompt was made by libllama's version of a known template, which may leave out details of the model's own."""


def render(model: Model, messages: Sequence[Mapping[str, Any]], options: ChatOptions | None = None) -> str:
    """Return the prompt for `messages`, up to where the assistant's answer begins.

    The model's template is a Jinja program. With jinja2 (the extra `chat`) it is run in a sandbox; without it,
    libllama formats the templates that it recognises, with a `ChatTemplateWarning`. Raises TypeError or ValueError
    for illegal messages, with the path of every problem, and `LlamafuError` where the template rejects them.
    """
    options = options or ChatOptions()
    problems: list[str] = []
    read = read_messages(messages, problems)
    tools = read_tools(options.tools or (), problems)
    if problems:
        raise (ValueError if isinstance(messages, list | tuple) and not messages else TypeError)("; ".join(problems))
    template = options.chat_template
    if template is None and tools:
        template = model.metadata(_FOR_TOOLS)
    if template is None:
        template = model.chat_template()
    if template is None:
        message = "this model has no chat template; use complete() with a prompt in the form that it was trained on"
        raise LlamafuError(message, code=ErrorCode.INVALID_PARAM)
    if "developer" not in template:  # OpenAI's newer name of the system role, which older templates do not know
        read = [{**message, "role": "system"} if message["role"] == "developer" else message for message in read]
    if importlib.util.find_spec("jinja2") is None:
        _refuse_without_jinja(read, options)
        text = ChatPrompt(lambda **values: _by_libllama(model, template, values), {}, options).of(read, ())
        warnings.warn(
            f"the chat prompt was made by libllama's rendition of a known template; {_MEND}", ChatTemplateWarning, stacklevel=5
        )
    else:
        program = compiled(template)
        specials = {"bos_token": _spell(model, model.bos), "eos_token": _spell(model, model.eos)}
        variables = {**specials, **(options.chat_template_kwargs or {})}
        text = ChatPrompt(program, variables, options, parts=wants_parts(program)).of(read, tools)
    if not text.strip():
        message = "the model's chat template makes an empty prompt of these messages; give messages that say something"
        raise LlamafuError(message, code=ErrorCode.INVALID_PARAM)
    return text


def tokenize(model: Model, messages: Sequence[Mapping[str, Any]], options: ChatOptions | None = None) -> list[int]:
    """Return the token ids of the prompt; one that begins with BOS gets no second BOS."""
    prompt = render(model, messages, options)
    starts_with_bos = model.adds_bos and prompt.startswith(_spell(model, model.bos))
    return model.tokenize(prompt, add_special=not starts_with_bos, parse_special=True)


def _spell(model: Model, token: int) -> str:
    return model.token_bytes(token, special=True).decode("utf-8", "replace") if token >= 0 else ""


def _refuse_without_jinja(messages: Sequence[Mapping[str, Any]], options: ChatOptions) -> None:
    beyond = ["tools"] * bool(options.tools) + ["chat_template_kwargs"] * bool(options.chat_template_kwargs)
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
