"""The patterns of PEFT's `rank_pattern` and `alpha_pattern`, matched in linear time.

PEFT gives them to Python's `re`, whose backtracking can take exponential time (`(a+)+b`). Here a pattern becomes a
nondeterministic finite automaton, which looks at every character once. It accepts characters, `.`, classes, groups,
alternatives, repetitions, `^` and `$`, with the meaning that `re` gives them. Anything else is refused.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from llamafu.adapters.peft.pattern_automaton import PatternAutomaton
from llamafu.adapters.peft.pattern_parser import PatternParser

if TYPE_CHECKING:
    from collections.abc import Callable

_LONGEST = 1000  # characters
_PLAIN = re.compile(r"[\w.^$-]*")


class NamePattern:
    """One pattern with PEFT's meaning: it matches from the beginning of a module's full name, or from a dot, to its end."""

    def __init__(self, pattern: str) -> None:
        """Compile `pattern`; raises ValueError, saying why, for one that is malformed or uses other features of `re`."""
        if len(pattern) > _LONGEST:
            message = f"it has {len(pattern)} characters, at most {_LONGEST} are read"
            raise ValueError(message)
        whole = rf"(.*\.)?({pattern})$"
        self._match: Callable[[str], object]
        self.size = 1
        """The cost of matching it, as a number of states."""
        if _PLAIN.fullmatch(pattern):
            # Without repetitions and alternatives `re` does not backtrack, and it is faster.
            self._match = re.compile(whole).match
        else:
            machine = PatternAutomaton(PatternParser(whole).parse())
            self._match, self.size = machine.match, machine.size

    def matches(self, module: str) -> bool:
        """Whether it matches the module with this full name, `model.layers.0.self_attn.q_proj`."""
        return bool(self._match(module))
