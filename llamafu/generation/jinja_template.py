"""Running a chat template, an untrusted Jinja program: in a sandbox, with limits of time and size."""

from __future__ import annotations

import copy
import datetime as dt
import functools
import json
import re
import threading
import time
from typing import TYPE_CHECKING, Any, cast

from llamafu.errors import ErrorCode, LlamafuError, TemplateLimitError

if TYPE_CHECKING:
    from collections.abc import Callable

    from jinja2.nodes import Node
    from jinja2.parser import Parser

    Program = Callable[..., str]

SECONDS = 2.0
"""Time limit of one run. Chat templates take milliseconds."""
_MOST = 2**25
"""The most characters of a string, or elements of a list, in a template."""
_WIDEST = 10**6
"""The largest number that may be passed to a string method or a padding filter."""
_BITS = 10_000
"""Bits of the largest whole number that a template may compute."""
_FILLING = ("center", "indent", "slice", "batch", "wordwrap", "truncate")
_CHANGING = ("append", "pop")
"""Methods of lists that templates may call, as llama.cpp lets them; transformers lets them call none that changes a value."""
_WIDE_FORMAT = re.compile(r"%[^a-zA-Z%]*(\*|\d{7})")


class TemplateRefusalError(LlamafuError):
    """The template raised: it does not take these messages, or not in this form."""

    code = ErrorCode.INVALID_PARAM


@functools.lru_cache(maxsize=8)
def compiled(template: str) -> Program:
    """Compile a chat template in the environment that model authors write for (transformers' conventions).

    The result takes the variables by name. Every failure, while compiling or running, is a `LlamafuError`; a template
    that runs for more than `SECONDS` or makes too large a value is a `TemplateLimitError`. Any thread.
    """
    environment, limits = _environment()
    may_change = any(f".{method}(" in template for method in _CHANGING)
    try:
        with limits:
            tree = environment.parse(template)
            _watch_loops(tree)
            program = environment.from_string(tree)
    except TemplateLimitError:
        raise
    except Exception as error:
        message = f"the model's chat template cannot be compiled: {_told(error)}; use complete() with a prompt of your own"
        raise LlamafuError(message, code=ErrorCode.INVALID_PARAM) from error

    def run(**values: Any) -> str:
        try:
            if may_change:
                values = copy.deepcopy(values)  # what is changed is the template's own
            with limits:
                pieces, size = [], 0
                for piece in program.generate(**values):
                    pieces.append(piece)
                    size += len(piece)
                    limits.check_size(size)
                return "".join(pieces)
        except TemplateLimitError:
            raise
        except Exception as error:  # an untrusted program may raise anything
            message = f"the model's chat template refuses these messages: {_told(error)}"
            raise TemplateRefusalError(message) from error

    return run


def _told(error: Exception) -> str:
    import jinja2

    told = str(error) if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {error}"
    return " ".join(told.split())


class _Limits(threading.local):
    """The limits of the run of this thread."""

    deadline = 0.0

    def __enter__(self) -> None:
        self.deadline = time.monotonic() + SECONDS

    def __exit__(self, *_: object) -> None:
        pass

    def check_time(self) -> None:
        """Raise TemplateLimitError after the deadline."""
        if time.monotonic() > self.deadline:
            message = f"the model's chat template ran for more than {SECONDS:g} s and was ended; give another as chat_template"
            raise TemplateLimitError(message)

    def check_size(self, size: int) -> None:
        """Raise TemplateLimitError for a value of `size` characters or elements that is too large."""
        if size > _MOST:
            message = f"the model's chat template makes a value of {size} characters or elements, of at most {_MOST}"
            raise TemplateLimitError(message)

    def check_number(self, bits: float) -> None:
        """Raise TemplateLimitError for a whole number of too many bits."""
        if bits > _BITS:
            message = f"the model's chat template computes a number of more than {_BITS} bits"
            raise TemplateLimitError(message)

    def check_widths(self, values: tuple[object, ...]) -> None:
        """Raise TemplateLimitError for an unreasonable width."""
        for value in values:
            if isinstance(value, int) and value > _WIDEST:
                message = f"the model's chat template asks for a width of {value}, of at most {_WIDEST}"
                raise TemplateLimitError(message)

    def check_operation(self, operator: str, left: object, right: object) -> None:
        """Raise TemplateLimitError for an operation whose result would be too large, since it cannot be interrupted."""
        whole = isinstance(left, int) and isinstance(right, int)
        if operator == "**" and whole:
            self.check_number(cast("int", left).bit_length() * cast("int", right))
        elif operator == "*" and whole:
            self.check_number(cast("int", left).bit_length() + cast("int", right).bit_length())
        elif operator == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(one, str | list | tuple) and isinstance(other, int):
                    self.check_size(len(one) * other)
        elif operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            self.check_size(len(left) + len(right))
        elif operator == "%" and isinstance(left, str) and _WIDE_FORMAT.search(left):
            message = f"the model's chat template asks for too wide a format, {left[:40]!r}"
            raise TemplateLimitError(message)


def _environment() -> tuple[Any, _Limits]:
    import jinja2
    from jinja2.ext import Extension

    limits = _Limits()

    class Generation(Extension):
        """`{% generation %}`, which marks the assistant's text for training, is replaced by what it encloses."""

        tags = {"generation"}  # noqa: RUF012 - as jinja declares it

        def parse(self, parser: Parser) -> list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(text: str) -> None:
        raise jinja2.TemplateError(text)

    extensions: list[str | type[Extension]] = ["jinja2.ext.loopcontrols", Generation]
    environment = _sandbox(limits)(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    for name in _FILLING:
        environment.filters[name] = _narrow(environment.filters[name], limits)
    environment.filters["tojson"] = _as_json
    del environment.globals["lipsum"]  # it makes any amount of text
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = _now
    return environment, limits


def _sandbox(limits: _Limits) -> type[Any]:
    """Return jinja's sandbox with these limits in it."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Environment(ImmutableSandboxedEnvironment):
        """The sandbox, with the time limit checked at every call and every iteration of a loop."""

        intercepted_binops = frozenset({"*", "**", "+", "%"})

        def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
            limits.check_time()
            if isinstance(getattr(obj, "__self__", None), str):
                limits.check_widths((*args, *kwargs.values()))
            return super().call(context, obj, *args, **kwargs)

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            return (isinstance(obj, list) and attr in _CHANGING) or super().is_safe_attribute(obj, attr, value)

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            limits.check_operation(operator, left, right)
            return super().call_binop(context, operator, left, right)

        def turn(self) -> None:
            """Called at the start of every iteration of a loop: `call` checks the time."""

        def held(self, value: Any) -> Any:
            """Check the size of an assigned value: a string that grows in a loop grows by assignments."""
            if isinstance(value, str | list | tuple):
                limits.check_size(len(value))
            return value

    return Environment


def _now(form: str) -> str:
    """Return the local time; as in transformers, it names no zone."""
    return dt.datetime.now(tz=dt.UTC).astimezone().replace(tzinfo=None).strftime(form)


def _watch_loops(tree: Any) -> None:
    """Insert the check of time into every loop, and the check of size into every assignment."""
    from jinja2 import nodes

    def call(name: str, *arguments: Any) -> nodes.Call:
        return nodes.Call(nodes.EnvironmentAttribute(name), list(arguments), [], None, None)

    for loop in list(tree.find_all(nodes.For)):
        loop.body.insert(0, nodes.ExprStmt(call("turn")))
    for assignment in list(tree.find_all(nodes.Assign)):
        assignment.node = call("held", assignment.node)
    tree.set_environment(tree.environment)


def _narrow(function: Callable[..., Any], limits: _Limits) -> Callable[..., Any]:
    """Return the filter with its numbers checked by `check_widths`."""

    @functools.wraps(function)  # jinja's own marks, such as that it takes the environment, are attributes
    def narrow(*args: Any, **kwargs: Any) -> Any:
        limits.check_widths((*args, *kwargs.values()))
        return function(*args, **kwargs)

    return narrow


def _as_json(
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002 - templates may give it by place
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002 - as above
) -> str:
    """Write JSON as template authors expect it; jinja's own filter escapes for HTML, sorts, and takes `indent` alone."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
