"""One chat's prompt: which forms a template accepts is found by trial runs; what it would silently drop is refused."""

from __future__ import annotations

import functools
import json
import re
from typing import TYPE_CHECKING, Any

from llamafu.errors import ErrorCode, LlamafuError, TemplateLimitError
from llamafu.generation.messages import arguments_of
from llamafu.generation.tools.tool import count_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from llamafu.generation.chat_options import ChatOptions

    Messages = list[dict[str, Any]]

_KEY, _WORD = "qzkeyqz", "qzwordqz"
"""Placeholders for contents in trial runs; no template changes or truncates them."""
_SPOILED = re.compile(rf"""'{_KEY}'\s*:|\\"{_KEY}""")
"""Arguments as Python writes a dict, or as JSON inside JSON: the template was given a form that it is not written for."""


class NoPlaceError(LlamafuError):
    """The template leaves out tools, calls of them or their results."""

    code = ErrorCode.INVALID_PARAM


@functools.lru_cache(maxsize=8)
def wants_parts(program: Callable[..., str]) -> bool:
    """Whether a template shows contents that are lists of parts, and drops plain strings."""
    for content in (_WORD, _part(_WORD)):
        message = {"role": "user", "content": content}
        try:
            shown = program(messages=[message], tools=None, add_generation_prompt=True, bos_token="", eos_token="")
        except TemplateLimitError:
            raise
        except LlamafuError:
            continue
        if _WORD in shown:
            return content != _WORD
    return False


class ChatPrompt:
    """Makes prompts with one template, `run`. One thread.

    `variables` are passed to it beside the messages. `parts`: it expects contents as lists of parts.
    """

    def __init__(
        self, run: Callable[..., str], variables: Mapping[str, Any], options: ChatOptions, *, parts: bool = False
    ) -> None:
        self._run = run
        self._variables = variables
        self._options = options
        self._parts = parts

    def of(self, messages: Messages, tools: Sequence[Mapping[str, Any]]) -> str:
        """Return the prompt; `LlamafuError` where the template raises, `NoPlaceError` where it would drop tools or calls."""
        continues = self._continues(messages)
        if self._parts:
            messages = [{**message, "content": _part(message["content"])} for message in messages]
        messages = self._with_arguments(messages, tools)
        prompt = self._ended(messages, tools, continues=continues)
        if tools and self._leaves_out(tools, prompt, lambda: self._ended(messages, (), continues=continues)):
            message = (
                "tools: this model's chat template has no place for them, so the model would not hear of them; "
                "allow the generic form (generic_tools), leave them out, or take a model that was trained with tools"
            )
            raise NoPlaceError(message)
        return prompt

    def _continues(self, messages: Messages) -> bool:
        """Whether the last message is to be continued."""
        last, at = messages[-1], f"messages[{len(messages) - 1}]"
        wanted = self._options.continue_final_message
        can = last["role"] == "assistant" and not last.get("tool_calls")
        if wanted and not can:
            told = f"{at} calls tools" if last["role"] == "assistant" else f"{at} has the role {last['role']!r}"
            message = (
                f"continue_final_message goes on with an assistant's text, but {told}; leave it out, or end with such a text"
            )
            raise LlamafuError(message, code=ErrorCode.INVALID_PARAM)
        return can and wanted is not False and not self._options.add_generation_prompt

    def _shown(self, messages: Messages, tools: Sequence[Mapping[str, Any]] = (), *, begin: bool = False) -> str:
        return self._run(messages=messages, tools=list(tools) or None, add_generation_prompt=begin, **self._variables)

    def _tried(self, messages: Messages, tools: Sequence[Mapping[str, Any]]) -> str | None:
        """Return what a template shows; None when it raises."""
        try:
            return self._shown(messages, tools)
        except TemplateLimitError:
            raise
        except LlamafuError:
            return None

    def _ended(self, messages: Messages, tools: Sequence[Mapping[str, Any]], *, continues: bool) -> str:
        """Return the prompt up to where the model continues."""
        if not continues:
            return self._shown(messages, tools, begin=self._options.add_generation_prompt is not False)
        *before, last = messages
        content = last["content"] if isinstance(last["content"], str) else last["content"][0]["text"]
        marked = [*before, _saying(last, content + _WORD)]
        try:
            shown = self._shown(marked, tools)
        except TemplateLimitError:
            raise
        except LlamafuError:
            if not before:
                raise
            shown = ""
        if _WORD in shown:
            return shown[: shown.rindex(_WORD)]
        return self._shown(before, tools, begin=True) + content  # a template that drops a last message of the assistant

    def _leaves_out(self, tools: Sequence[Mapping[str, Any]], prompt: str, without: Callable[[], str]) -> bool:
        """Whether a prompt with tools lacks the name of some tool, compared with one without tools."""
        try:
            plain = without()
        except TemplateLimitError:
            raise
        except LlamafuError:
            return False  # the template only works with tools
        functions = [tool.get("function", tool) for tool in tools]
        names = [function.get("name") for function in functions if isinstance(function, dict)]
        asked = [name for name in names if isinstance(name, str) and name.isascii()]
        return prompt == plain or any(count_of(name, prompt) <= count_of(name, plain) for name in asked)

    def _with_arguments(self, messages: Messages, tools: Sequence[Mapping[str, Any]]) -> Messages:
        """Write the arguments of tool calls in the form that the template expects; refuse a template that drops calls.

        Where it accepts both they are objects, the form that template authors test with.
        """
        calls = [call for message in messages for call in message.get("tool_calls", ())]
        if not calls and all(message["role"] not in {"tool", "function"} for message in messages):
            return messages
        as_text, as_object = (self._rank(_trial(messages, as_text=text), tools) for text in (True, False))
        best = max(as_text, as_object)
        if best == 0:
            where = next(i for i, one in enumerate(messages) if one.get("tool_calls") or one["role"] in {"tool", "function"})
            what = "tool_calls" if messages[where].get("tool_calls") else "content"
            message = (
                f"messages[{where}].{what}: this model's chat template has no place for calls of tools and what they gave; "
                "allow the generic form (generic_tools), leave them out, or say it as text"
            )
            raise NoPlaceError(message)
        if best < 0:
            return messages  # the real run will raise the template's own error
        readable = all(arguments_of(call) is not None for call in calls)
        return _with_form(messages, as_text=as_object < best or (as_text == best and not readable))

    def _rank(self, messages: Messages, tools: Sequence[Mapping[str, Any]]) -> int:
        """Rank how a template shows a trial: -1 it raises, 0 parts are missing, 1 arguments are garbled, 2 all is shown."""
        shown = self._tried(messages, tools)
        if shown is None:
            return -1
        count = sum(len(one.get("tool_calls", ())) + (one["role"] in {"tool", "function"}) for one in messages)
        if not all(f"{_WORD}{i}z" in shown for i in range(count)):
            return 0
        return 1 if _SPOILED.search(shown) else 2


def _saying(message: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Return the same message with another text, as a string or a list of parts as before."""
    return {**message, "content": text if isinstance(message["content"], str) else _part(text)}


def _part(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def _trial(messages: Messages, *, as_text: bool) -> Messages:
    """Return the same chat with a distinct placeholder for the arguments and the result of each call."""
    trial, count = [], 0
    for message in messages:
        made = message
        if calls := message.get("tool_calls"):
            arguments = [{_KEY: f"{_WORD}{count + i}z"} for i in range(len(calls))]
            count += len(calls)
            made = {
                **made,
                "tool_calls": [
                    _calling(call, json.dumps(given) if as_text else given)
                    for call, given in zip(calls, arguments, strict=True)
                ],
            }
        if message["role"] in {"tool", "function"}:
            made = _saying(made, f"{_WORD}{count}z")
            count += 1
        trial.append(made)
    return trial


def _with_form(messages: Messages, *, as_text: bool) -> Messages:
    """Return the same chat with the arguments of every call as JSON text, or as an object."""
    found = []
    for index, message in enumerate(messages):
        calls = []
        for number, call in enumerate(message.get("tool_calls", ())):
            given = call["function"]["arguments"]
            if as_text:
                calls.append(_calling(call, given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)))
            elif (arguments := arguments_of(call)) is not None:
                calls.append(_calling(call, arguments))
            else:
                text = (
                    f"messages[{index}].tool_calls[{number}].function.arguments is {given[:40]!r}, which is not the JSON of an "
                    "object; this model's chat template needs one"
                )
                raise LlamafuError(text, code=ErrorCode.INVALID_PARAM)
        found.append({**message, "tool_calls": calls} if calls else message)
    return found


def _calling(call: Mapping[str, Any], arguments: object) -> dict[str, Any]:
    return {**call, "function": {**call["function"], "arguments": arguments}}
