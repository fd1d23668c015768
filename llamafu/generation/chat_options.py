"""How messages become a prompt: the options that chats have beside those of every generation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from llamafu._util.signatures import show_options
from llamafu.generation.messages import read_tools
from llamafu.generation.option_spec import OptionSpec, about, list_options, specs_of
from llamafu.generation.options import OPTION_SPECS, OptionArguments, refuse_unknown
from llamafu.generation.tools.tool import choice_problem

_F = TypeVar("_F", bound=Callable[..., Any])
_OURS = ("messages", "tools", "bos_token", "eos_token", "add_generation_prompt", "continue_final_message")
"""Variables of a template that are not given as `chat_template_kwargs`."""


class ChatArguments(OptionArguments, total=False):
    """The keyword arguments of `chat`, for type checkers; `ChatOptions` says what those mean that `Options` does not."""

    tools: Sequence[Mapping[str, Any]] | None
    tool_choice: str | Mapping[str, Any]
    parallel_tool_calls: bool
    generic_tools: bool
    chat_template: str | None
    chat_template_kwargs: Mapping[str, Any] | None
    add_generation_prompt: bool | None
    continue_final_message: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """Checked options of one chat. Raises TypeError, and ValueError for tools that are not there, or the last two both True.

    Without the last two, the last message decides: an assistant's is continued, after any other an answer begins.
    """

    tools: Sequence[Mapping[str, Any]] | None = field(
        default=None,
        metadata=about("functions in OpenAI's form that the answer may call", flag=False),
    )
    tool_choice: str | Mapping[str, Any] = field(
        default="auto",
        metadata=about(
            '"auto", "none", "required", {"type": "function", "function": {"name": ...}}, or "allowed_tools" with several; '
            "a grammar holds the answer to all but the first two",
            flag=False,
        ),
    )
    parallel_tool_calls: bool = field(
        default=True, metadata=about("False: a grammar holds the answer to one call at most", flag=False)
    )
    generic_tools: bool = field(
        default=True,
        metadata=about(
            "tools are told in a system message where the template has no place for them; False makes that an error",
            flag=False,
        ),
    )
    chat_template: str | None = field(default=None, metadata=about("a Jinja template in place of the model's own", flag=False))
    chat_template_kwargs: Mapping[str, Any] | None = field(
        default=None,
        metadata=about(
            'more variables for the template, such as {"enable_thinking": False}; '
            "one that the template does not read has no effect",
            flag=False,
        ),
    )
    add_generation_prompt: bool | None = field(
        default=None, metadata=about("True begins a new answer, False does not", flag=False)
    )
    continue_final_message: bool | None = field(
        default=None, metadata=about("True goes on with the last message, an assistant's; False closes it", flag=False)
    )

    def __post_init__(self) -> None:
        problems: list[str] = []
        if self.tools is not None:
            read_tools(self.tools, problems)
        if self.chat_template is not None and not isinstance(self.chat_template, str):
            problems.append(f"chat_template is {type(self.chat_template).__name__}; give the text of a Jinja template")
        problems += _problems_of_variables({} if self.chat_template_kwargs is None else self.chat_template_kwargs)
        for name in ("parallel_tool_calls", "generic_tools"):
            if not isinstance(getattr(self, name), bool):
                problems.append(f"{name} is {getattr(self, name)!r}; give True or False")
        for name in ("add_generation_prompt", "continue_final_message"):
            if not isinstance(getattr(self, name), bool | None):
                problems.append(f"{name} is {getattr(self, name)!r}; give True, False or None")
        if problems:
            raise TypeError("; ".join(problems))
        if (problem := choice_problem(self.tool_choice, self.tools or ())) is not None:
            raise ValueError(problem)
        if self.add_generation_prompt and self.continue_final_message:
            message = (
                "add_generation_prompt begins a new answer and continue_final_message the last one's rest; give one of them"
            )
            raise ValueError(message)


def _problems_of_variables(given: object) -> list[str]:
    """Return what is wrong with a template's variables."""
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        return [f"chat_template_kwargs is {given!r}; give a mapping of the template's variables by name"]
    return [
        f"chat_template_kwargs.{name} is what the chat itself gives to its template; take it out of there"
        for name in _OURS
        if name in given
    ]


CHAT_OPTION_SPECS: tuple[OptionSpec, ...] = specs_of(ChatOptions)
"""Every option of chats alone, in the order of its declaration."""
ChatOptions.__doc__ = list_options(ChatOptions.__doc__, CHAT_OPTION_SPECS)


def split_options(arguments: ChatArguments) -> tuple[ChatOptions, OptionArguments]:
    """Part the arguments of a chat; an unknown one is a `TypeError` that names the nearest and all legal ones."""
    own = [spec.name for spec in CHAT_OPTION_SPECS]
    refuse_unknown(arguments, [*(spec.name for spec in OPTION_SPECS), *own])
    others: OptionArguments = {name: value for name, value in arguments.items() if name not in own}  # type: ignore[assignment] # what is left are those of Options
    return ChatOptions(**{name: value for name, value in arguments.items() if name in own}), others  # type: ignore[arg-type] # as above


def takes_chat_options(function: _F) -> _F:
    """Show every option of a chat, with its default, in the signature of a function that takes `**options`."""
    return show_options(function, (*CHAT_OPTION_SPECS, *OPTION_SPECS))
