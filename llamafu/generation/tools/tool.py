"""A function that an answer may call, and the choice of which it may or must."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llamafu.errors import GrammarError
from llamafu.generation.grammar.keywords import check

_LISTING = frozenset(
    {"type", "properties", "required", "additionalProperties", "title", "description", "$schema", "$defs", "definitions"}
)
"""Keywords of parameters that are no more than a list of arguments."""
CHOICES = ("auto", "none", "required")
LEGAL_CHOICE = (
    "'auto', 'none', 'required' or {'type': 'function', 'function': {'name': ...}} with the name of one of the tools; "
    "{'type': 'allowed_tools', 'allowed_tools': {'mode': 'auto', 'tools': [...]}} allows several"
)
_MODES = ("auto", "required")


@dataclass(frozen=True, slots=True)
class Tool:
    """A function: its name, the JSON Schema of its arguments, an object's, and whether they are held to that in any case.

    `place` is where it stands among the tools, for messages.
    """

    name: str
    parameters: dict[str, Any] = field(hash=False)
    strict: bool
    place: int

    def with_object(self) -> Tool:
        """Return the tool with arguments that are an object and nothing else; GrammarError where they cannot be one."""
        kinds = self.parameters["type"]
        if kinds == "object":
            return self
        if not isinstance(kinds, list) or "object" not in kinds:
            message = f"JSON schema: #/type is {reprlib.repr(kinds)}, but the arguments of a call are an object; give 'object'"
            raise GrammarError(message)
        return replace(self, parameters={**self.parameters, "type": "object"})

    def listed_properties(self) -> dict[str, Any]:
        """Return the schemas of the arguments by name; GrammarError where the parameters say more than these."""
        check(self.parameters, "#")
        beyond = sorted(set(self.parameters) - _LISTING)
        found = self.properties()
        unlisted = [key for key in self.parameters.get("required", ()) if key not in found]
        if beyond or unlisted:
            message = (
                f"this model writes each argument by itself, where {', '.join(beyond or map(repr, unlisted))} cannot be held; "
                "list the arguments in properties"
            )
            raise GrammarError(message)
        return found

    def properties(self) -> dict[str, Any]:
        """Return the schemas of the arguments by name, as far as they are listed."""
        found = self.parameters.get("properties")
        return found if isinstance(found, dict) else {}


def callable_tools(tools: Sequence[Mapping[str, Any]]) -> dict[str, Tool]:
    """Return the tools that have a name, by it; of several with one name the first. Without parameters there are none."""
    found: dict[str, Tool] = {}
    for place, given in enumerate(tools):
        function = given.get("function", given)
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or not name or name in found:
            continue
        parameters = function.get("parameters", {"type": "object", "additionalProperties": False})
        schema = {"type": "object", **parameters} if isinstance(parameters, Mapping) else {"type": "object"}
        found[name] = Tool(name, schema, function.get("strict") is True or given.get("strict") is True, place)
    return found


def count_of(name: str, text: str) -> int:
    """Return how often a text has a tool's name, as it is or as JSON writes it."""
    return text.count(name) or text.count(json.dumps(name, ensure_ascii=False)[1:-1])


def named_function(choice: object) -> str | None:
    """Return the function that a choice names; None where it is one of the words, or nothing legal."""
    if not isinstance(choice, Mapping) or choice.get("type") != "function":
        return None
    function = choice.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if isinstance(name, str) and name else None


def allowed_functions(choice: object) -> tuple[str, ...] | None:
    """Return the functions that may be called by a choice of several; None where it is another choice, or nothing legal."""
    allowed = choice.get("allowed_tools") if isinstance(choice, Mapping) and choice.get("type") == "allowed_tools" else None
    if not isinstance(allowed, Mapping) or allowed.get("mode") not in _MODES or not isinstance(allowed.get("tools"), list):
        return None
    names = [named_function(tool) for tool in allowed["tools"]]
    return tuple(name for name in names if name is not None) if names and None not in names else None


def callable_names(choice: object) -> tuple[str, ...] | None:
    """Return the functions that a choice lets an answer call, None for all of them."""
    name = named_function(choice)
    return allowed_functions(choice) if name is None else (name,)


def is_forced(choice: str | Mapping[str, Any]) -> bool:
    """Whether a legal choice says that the answer has to be a call."""
    if allowed_functions(choice) is not None and isinstance(choice, Mapping):
        return bool(choice["allowed_tools"]["mode"] == "required")
    return choice not in ("auto", "none")


def is_choice(choice: object) -> bool:
    """Whether a choice has a legal form."""
    return (isinstance(choice, str) and choice in CHOICES) or callable_names(choice) is not None


def choice_problem(choice: str | Mapping[str, Any], tools: Sequence[Mapping[str, Any]]) -> str | None:
    """Return what is wrong with a choice among these tools, None where nothing is."""
    if not is_choice(choice):
        return f"tool_choice is {reprlib.repr(choice)}; give {LEGAL_CHOICE}"
    names = list(callable_tools(tools))
    for name in callable_names(choice) or ():
        if name not in names:
            there = ", ".join(map(repr, names)) or "none with a name"
            return f"tool_choice names {name!r}, which is none of the tools ({there}); name one of them"
    if choice == "required" and not names:
        return "tool_choice is 'required', but there is no tool with a name; give tools, or leave tool_choice out"
    return None
