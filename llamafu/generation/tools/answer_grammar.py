"""The grammar that holds an answer to the calls that were asked for."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llamafu.errors import GrammarError
from llamafu.generation.grammar import add_schema
from llamafu.generation.grammar.schema_text import read_schema
from llamafu.generation.tools.grammar_writer import GrammarWriter
from llamafu.generation.tools.tool import Tool, callable_names, callable_tools, is_forced, named_function

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llamafu.generation.tools.answer_format import AnswerFormat
    from llamafu.generation.tools.form import Form


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRules:
    """What the calls of an answer are held to.

    choice: as `tool_choice`.
    parallel: there may be several calls.
    held: calls are held to their form also where the choice is "auto".
    """

    choice: str | Mapping[str, Any] = "auto"
    parallel: bool = True
    held: bool = False

    @property
    def are_forced(self) -> bool:
        """Whether the answer has to be a call."""
        return is_forced(self.choice)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """All that a grammar follows from, hashable. `tools` is JSON of the functions that may be called."""

    form: Form | None
    tools: str
    is_forced: bool
    parallel: bool
    closing: str
    calls_in_reasoning: tuple[str, ...]
    tokens: tuple[tuple[str, int], ...]
    schema: str | None


def answer_grammar(
    answer_format: AnswerFormat, tools: Sequence[Mapping[str, Any]], rules: CallRules, schema: str | None
) -> str | None:
    """Return the GBNF that an answer has to follow, None where nothing has to hold it.

    `schema` is the JSON Schema, as text, of an answer that is no call. Raises GrammarError where a schema cannot be held to.
    """
    form, functions = answer_format.form, callable_tools(tools)
    calls = form is not None and bool(functions)
    allowed = callable_names(rules.choice)
    held = calls and (rules.are_forced or rules.held or not rules.parallel or schema is not None or allowed is not None
                      or any(tool.strict for tool in functions.values()))  # fmt: skip
    if not held and (schema is None or not answer_format.is_thinking):
        return None
    marks = answer_format.reasoning
    wanted = _Wanted(
        form if calls else None,
        json.dumps([tools[one.place] for one in functions.values() if allowed is None or one.name in allowed], default=str),
        rules.are_forced,
        rules.parallel and named_function(rules.choice) is None,
        marks.closing if marks is not None and answer_format.is_thinking else "",
        answer_format.calls_in_reasoning if calls else (),
        tuple((text.decode(), token) for token, text in answer_format.spelled.items()),
        schema,
    )
    return _grammar(wanted)


@functools.lru_cache(maxsize=8)  # each may be as large as a request
def _grammar(wanted: _Wanted) -> str:
    writer = GrammarWriter(dict(wanted.tokens), is_loose=not wanted.is_forced)
    form = wanted.form
    answers: list[str] = []
    if form is not None:
        calls = _calls(writer, form, list(callable_tools(json.loads(wanted.tools)).values()), parallel=wanted.parallel)
        answers.append(calls)
        if not wanted.is_forced and wanted.schema is None:
            plain = form.plain_rule(writer)
            joint = "" if form.after_text is None else f" ({' '.join(filter(None, [writer.text(form.after_text), calls]))})?"
            answers.append(plain + joint)
    if wanted.schema is not None and not wanted.is_forced:
        document = read_schema(wanted.schema)
        answers.append(add_schema(writer.rules, document, document, "#", "document"))
    answer = writer.rules.add("answer", " | ".join(answers))
    if wanted.closing:
        thinking = rf"{writer.without((wanted.closing, *wanted.calls_in_reasoning))} {writer.text(wanted.closing)} [ \n]{{0,4}}"
        if wanted.is_forced or wanted.schema is not None or (form is not None and form.after_text is None):
            answer = f"{thinking} {answer}"
        elif wanted.closing in dict(wanted.tokens):  # any other closing mark is plain text too
            answer = f"({thinking})? {answer}"
    writer.rules.define("root", answer)
    return writer.rules.text()


def _call(writer: GrammarWriter, form: Form, tool: Tool) -> str:
    try:
        try:
            return form.call_rule(writer, tool.with_object())
        except GrammarError:
            if tool.strict or not writer.is_loose:
                raise
            return form.loose_rule(writer, tool)
    except GrammarError as error:
        message = f"tools[{tool.place}].function.parameters: {error}"
        raise GrammarError(message) from error


def _calls(writer: GrammarWriter, form: Form, tools: Sequence[Tool], *, parallel: bool) -> str:
    """Return the rule of one call or more, with the form's marks around them."""
    call = writer.rules.add("call", " | ".join(_call(writer, form, tool) for tool in tools))
    head, tail = writer.text(form.head), writer.text(form.tail)
    one = writer.rules.add("marked-call", " ".join(filter(None, [head, call, tail]))) if form.wraps_each else call
    further = ""
    if parallel and form.between is not None:
        further = writer.rules.add("further-call", f"{writer.text(form.between)} {one}".strip()) + "*"
    parts = [one, further] if form.wraps_each else [head, one, further, tail]
    return writer.rules.add("calls", " ".join(filter(None, parts)))
