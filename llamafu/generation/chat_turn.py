"""One answer of a chat before it is generated: its prompt, the options that it is made with, and how it is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llamafu.errors import MultimodalError
from llamafu.generation.chat_options import split_options
from llamafu.generation.chat_template import render, tokens_of
from llamafu.generation.media.parts import MediaParts
from llamafu.generation.media.prompt import MediaPrompt, media_prompt
from llamafu.generation.options import UNLIMITED_REASONING, Options
from llamafu.generation.sampling import grammar_source
from llamafu.generation.tools.answer_format import AnswerFormat
from llamafu.generation.tools.answer_grammar import CallRules, answer_grammar
from llamafu.generation.tools.family import GENERIC, UNKNOWN, family_of
from llamafu.generation.tools.reasoning_marks import reasoning_of
from llamafu.generation.tools.tool import callable_tools, is_forced

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llamafu._native.model import Model
    from llamafu.generation.chat_options import ChatArguments
    from llamafu.generation.chat_template import RenderedChat
    from llamafu.generation.media.encoder import MediaEncoder
    from llamafu.generation.options import OptionArguments
    from llamafu.generation.tools.reasoning_marks import ReasoningMarks


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """A prompt, the options of the generation, and the format of the answer, None for text alone."""

    prompt: list[int] | MediaPrompt
    options: OptionArguments
    answer_format: AnswerFormat | None


def prepare(
    model: Model, messages: Sequence[Mapping[str, Any]], arguments: ChatArguments, encoder: MediaEncoder | None = None
) -> ChatTurn:
    """Make the prompt of a chat, and the grammar of its answer where calls are held to their form.

    `encoder` encodes the media among its messages; None refuses them.
    With a grammar, regex or choices of the caller's the whole answer is text. Raises what `render` raises, TypeError and
    ValueError for options, and GrammarError for the schema of a tool that cannot be held to.
    """
    chat, options = split_options(arguments)
    checked = Options.of(options)
    source = grammar_source(checked)
    form, schema = source or ("json_schema", None)
    if form != "json_schema" and is_forced(chat.tool_choice):
        message = f"{form} and tool_choice={chat.tool_choice!r} were both given, which both say what the answer is; give one"
        raise ValueError(message)
    if checked.media:
        message = "media belong into the messages of a chat, each as a part of the content: {'type': 'image', 'image': ...}"
        raise MultimodalError(message)
    media = None if encoder is None else MediaParts()
    rendered = render(model, messages, chat, thinks=checked.reasoning_budget != 0, media=media)
    prompt: list[int] | MediaPrompt
    if encoder is not None and media:
        prompt = media_prompt(model, media.split(rendered.text), encoder)
    else:
        prompt = tokens_of(model, rendered.text)
    found = _format_of(model, rendered, messages[-1])
    if form != "json_schema" or found is None or found.marks_of_reasoning is None:
        options = {**options, "reasoning_budget": UNLIMITED_REASONING}  # nothing of the answer is reasoning
    if form != "json_schema" or found is None:
        return ChatTurn(prompt, options, None)
    rules = CallRules(choice=chat.tool_choice, parallel=chat.parallel_tool_calls, held=rendered.is_generic)
    grammar = answer_grammar(found, rendered.tools, rules, schema)
    if grammar is not None:
        options = {**options, "json_schema": None, "grammar": grammar}
    return ChatTurn(prompt, options, found)


def _format_of(model: Model, rendered: RenderedChat, last: Mapping[str, Any]) -> AnswerFormat | None:
    family = GENERIC if rendered.is_generic else family_of(rendered.template)
    if family is None and rendered.tools:
        family = UNKNOWN
    form = family.form if family is not None and (rendered.tools or family.form.is_always_read) else None
    reasoning = reasoning_of(rendered.template)
    if form is None and reasoning is None:
        return None
    marks = [*(form.marks + form.inner_marks if form is not None else ())]
    marks += [reasoning.opening, reasoning.closing, *reasoning.silent] if reasoning is not None else []
    return AnswerFormat(
        form=form,
        tools=callable_tools(rendered.tools),
        id_length=family.id_length if family is not None else 0,
        reasoning=reasoning,
        is_thinking=reasoning is not None and _is_thinking(rendered.text, last, reasoning),
        spelled=_control_tokens(model, marks),
    )


def _is_thinking(prompt: str, last: Mapping[str, Any], marks: ReasoningMarks) -> bool:
    """Whether a prompt ends inside the reasoning: its last words open it, or the answer that is continued does."""
    if prompt.rstrip().endswith(marks.opening):
        return True
    said = last.get("content")
    if last.get("role") != "assistant" or not isinstance(said, str) or not prompt.endswith(said):
        return False
    return said.rfind(marks.opening) > said.rfind(marks.closing)


def _control_tokens(model: Model, marks: Sequence[str]) -> dict[int, bytes]:
    """Return the tokens that are one of `marks` and write nothing, each with its mark."""
    found = ((model.single_token(mark), mark) for mark in marks)
    return {token: mark.encode() for token, mark in found if token is not None and not model.token_bytes(token)}
