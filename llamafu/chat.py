"""Chat messages to a prompt, through the model's own template."""

from __future__ import annotations

import datetime as dt
import functools
import importlib.util
import json
import warnings
from typing import TYPE_CHECKING, Any

from llamafu.errors import ErrorCode, LlamafuError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jinja2.nodes import Node
    from jinja2.parser import Parser

    from llamafu._native.model import Model


class ChatTemplateWarning(UserWarning):
    """The prompt was made by libllama's rendition of a known template, which may leave out details of the model's own."""


def render(model: Model, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return the prompt for `messages`, up to where the assistant speaks. A template that knows no `tools` leaves them out.

    The model's template is a Jinja program. With jinja2 (the extra `chat`) it is run, in a sandbox; without it,
    libllama formats the templates that it recognises and a `ChatTemplateWarning` says so.
    """
    checked = [_check(i, message) for i, message in enumerate(messages)]
    if not checked:
        message = "messages is empty; give at least one, such as {'role': 'user', 'content': 'hi'}"
        raise ValueError(message)
    template = model.chat_template()
    if template is None:
        message = "this model has no chat template; use complete() with a prompt in the form that it was trained on"
        raise LlamafuError(message, code=ErrorCode.INVALID_PARAM)
    if importlib.util.find_spec("jinja2") is not None:
        return _compile(template)(
            messages=checked,
            tools=list(tools) or None,
            add_generation_prompt=True,
            bos_token=_spell(model, model.bos),
            eos_token=_spell(model, model.eos),
        )
    beyond = ["tools"] * bool(tools) + sorted({key for message in checked for key in message} - {"role", "content"})
    if beyond:
        message = (
            f"only the model's own template can show it: {', '.join(beyond)}; install jinja2 (`pip install 'llamafu[chat]'`)"
        )
        raise LlamafuError(message, code=ErrorCode.INVALID_PARAM)
    text = model.apply_known_template(template, [(message["role"], message["content"]) for message in checked])
    mend = "install jinja2 (`pip install 'llamafu[chat]'`) to run the model's own template"
    if text is None:
        message = f"libllama does not recognise this model's chat template; {mend}"
        raise LlamafuError(message, code=ErrorCode.INVALID_PARAM)
    warnings.warn(
        f"the chat prompt was made by libllama's rendition of a known template; {mend}", ChatTemplateWarning, stacklevel=5
    )
    return text


def tokenize(model: Model, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
    """Return the token ids of what `render` makes; a template that begins with BOS gets no second one."""
    prompt = render(model, messages, tools=tools)
    starts_with_bos = model.adds_bos and prompt.startswith(_spell(model, model.bos))
    return model.tokenize(prompt, add_special=not starts_with_bos, parse_special=True)


def _check(index: int, message: Mapping[str, Any]) -> dict[str, Any]:
    for key in ("role", "content"):
        if not isinstance(message.get(key), str):
            text = f"messages[{index}][{key!r}] is {message.get(key)!r}; every message needs a text as 'role' and as 'content'"
            raise TypeError(text)
    return dict(message)


def _spell(model: Model, token: int) -> str:
    return model.piece(token, special=True).decode("utf-8", "replace") if token >= 0 else ""


def _as_json(
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002 - templates may give it by place
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002 - as above
) -> str:
    """Write JSON as template authors expect it; jinja's own filter escapes for HTML, sorts, and takes `indent` alone."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@functools.lru_cache(maxsize=8)
def _compile(template: str) -> Callable[..., str]:
    """Compile a chat template in the environment that model authors write for (transformers' conventions)."""
    import jinja2
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks for training what the assistant says; here it is what it holds."""

        tags = {"generation"}  # noqa: RUF012 - as jinja declares it

        def parse(self, parser: Parser) -> list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(text: str) -> None:
        raise jinja2.TemplateError(text)

    extensions: list[str | type[Extension]] = ["jinja2.ext.loopcontrols", Generation]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = _as_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: dt.datetime.now(tz=dt.UTC).strftime(form)
    try:
        program = environment.from_string(template)
    except jinja2.TemplateError as error:
        message = f"the model's chat template cannot be compiled: {error}; use complete() with a prompt of your own"
        raise LlamafuError(message, code=ErrorCode.INVALID_PARAM) from error

    def run(**values: Any) -> str:
        try:
            return program.render(**values)
        except Exception as error:  # a program that others wrote met values that it was not made for: anything may come
            told = str(error) if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {error}"
            message = f"the model's chat template refuses these messages: {' '.join(told.split())}"
            raise LlamafuError(message, code=ErrorCode.INVALID_PARAM) from error

    return run
