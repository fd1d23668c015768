"""`FunctionTools`: Python functions as the tools of a chat."""

from __future__ import annotations

import importlib.util
import inspect
import json
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from llamafu.errors import ErrorCode, LlamafuError
from llamafu.generation.json_text import read_json, write_json
from llamafu.generation.tools.function_schema import describe, mismatch

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable

    from llamafu.generation.tool_call import ToolCall

_LONGEST_TOLD = 200
"""Characters of arguments that a message quotes."""


class FunctionTools:
    """Functions that a model may call: `descriptions` goes into `chat(tools=...)`, `call` runs what the answer asks for.

    A function is described by its name, the types of its parameters, and its docstring: the first paragraph, and lines such as
    `city: where` or `:param city: where`. Types are str, int, float, bool, None, list, dict, Literal, Annotated with a text,
    and unions; a parameter without one takes any value. TypeError for a function that no model can call, ValueError for two of
    one name. Any thread may call `call`; the function runs on it.
    """

    def __init__(self, functions: Iterable[Callable[..., Any]]) -> None:
        self._functions: dict[str, Callable[..., Any]] = {}
        self.descriptions: list[dict[str, Any]] = []
        """The tools in OpenAI's form."""
        for function in functions:
            described = describe(function)
            name = described["function"]["name"]
            if name in self._functions:
                message = f"there are two functions with the name {name!r}; rename one of them"
                raise ValueError(message)
            self._functions[name] = function
            self.descriptions.append(described)

    @classmethod
    def of_file(cls, path: str | os.PathLike[str]) -> Self:
        """Run a Python file, and return the functions that it defines, but for those whose names begin with an underscore.

        FileNotFoundError where there is no file; `LlamafuError` for what the file raises, and for functions that are no tools.
        """
        path = Path(path)
        if not path.is_file():
            message = f"{path}: there is no such file; give a Python file with functions"
            raise FileNotFoundError(message)
        name = f"_llamafu_tools_{path.stem}"
        loader = SourceFileLoader(name, str(path))
        spec = importlib.util.spec_from_loader(name, loader)
        assert spec is not None  # noqa: S101 - it has a loader
        module = sys.modules[name] = importlib.util.module_from_spec(spec)  # where dataclasses of the file look for it
        try:
            loader.exec_module(module)
        except (Exception, SystemExit) as error:
            message = f"{path} does not run: {type(error).__name__}: {error}"
            raise LlamafuError(message, code=ErrorCode.INVALID_PARAM) from error
        public = [
            each
            for key, each in vars(module).items()
            if inspect.isfunction(each) and each.__module__ == name and not key.startswith("_")
        ]
        try:
            found = cls(public)
        except (TypeError, ValueError) as error:
            message = f"{path}: {error}"
            raise LlamafuError(message, code=ErrorCode.INVALID_PARAM) from error
        if not public:
            message = f"{path} defines no function that could be a tool; define one whose name begins with no underscore"
            raise LlamafuError(message, code=ErrorCode.INVALID_PARAM)
        return found

    def call(self, call: ToolCall) -> str:
        """Run the function that a model called; return the content of the message that tells it the result.

        A text is the result as it is, anything else becomes JSON. What is wrong with the call, and what the function raises,
        is a result too: a text that begins with "error: ", from which the model may learn.
        """
        try:
            return self._run(call)
        except _CallError as error:
            return f"error: {error}"
        except Exception as error:  # noqa: BLE001 - whatever a function raises is for the model
            return f"error: {type(error).__name__}: {error}"

    def _run(self, call: ToolCall) -> str:
        function = self._functions.get(call.name)
        if function is None:
            message = f"there is no tool {call.name!r} (tools: {', '.join(self._functions)})"
            raise _CallError(message)
        try:
            arguments = read_json(call.arguments.strip() or "{}")
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            message = f"the arguments {call.arguments[:_LONGEST_TOLD]!r} are not the JSON of an object"
            raise _CallError(message)
        self._check(call.name, arguments)
        result = function(**arguments)
        if isinstance(result, str):
            return result
        try:
            return write_json(result)
        except TypeError:  # what JSON has no form for
            return json.dumps(result, ensure_ascii=False, default=str)

    def _check(self, name: str, arguments: dict[str, Any]) -> None:
        """Raise `_CallError` with everything that is wrong with arguments."""
        described = next(each["function"] for each in self.descriptions if each["function"]["name"] == name)
        properties, required = described["parameters"]["properties"], described["parameters"]["required"]
        problems = [f"{each} is missing" for each in required if each not in arguments]
        for key, value in arguments.items():
            if key not in properties:
                problems.append(f"{key!r} is no argument (arguments: {', '.join(properties) or 'none'})")
            elif (problem := mismatch(value, properties[key], key)) is not None:
                problems.append(problem)
        if problems:
            raise _CallError("; ".join(problems))


class _CallError(Exception):
    """A call that cannot be run."""
