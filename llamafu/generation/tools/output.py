"""What an answer has been read to be, and what of it was not handed out yet."""

from __future__ import annotations

import secrets
import string

from llamafu.generation.completion import Piece
from llamafu.generation.tool_call import ToolCall, ToolCallDelta

_ALPHABET = string.ascii_letters + string.digits


class Output:
    """Collects text, reasoning and calls, and trims white space where marks were.

    White space is dropped around reasoning and before a call; it is therefore held until what follows is known. One thread.
    `id_length`: characters of a call's id where a template asks for a number of letters and digits, else 0.
    """

    def __init__(self, *, id_length: int) -> None:
        self._id_length = id_length
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[tuple[str, str, list[str]]] = []
        self._space = ""
        self._thought_space = ""
        self._trims = False  # white space at the beginning of the text is that after reasoning or a call
        self._sent = [0, 0]
        self._deltas: list[ToolCallDelta] = []
        self.is_reasoning = False
        """Whether reasoning has begun that did not end."""

    def text(self, text: str) -> None:
        """Append text of the answer."""
        kept = text.rstrip()
        if kept and not self._text and self._trims:
            kept, self._space = kept.lstrip(), ""
        if kept:
            self._text.append(self._space + kept)
            self._space = ""
        self._space += text[len(text.rstrip()) :]

    def reasoning(self, text: str) -> None:
        """Append text of the reasoning."""
        self.is_reasoning = True
        kept = text.rstrip()
        if kept and not self._reasoning:
            kept, self._thought_space = kept.lstrip(), ""
        if kept:
            self._reasoning.append(self._thought_space + kept)
            self._thought_space = ""
        self._thought_space += text[len(text.rstrip()) :]

    def end_reasoning(self) -> None:
        """Drop the white space at the end of the reasoning, and what follows it."""
        self._thought_space = ""
        self._trims = True
        self.is_reasoning = False

    def begin_call(self, name: str) -> None:
        """Begin a call; text before it loses the white space at its end."""
        self._space = ""
        self._trims = True
        index, id_ = len(self._calls), self._new_id()
        self._calls.append((id_, name, []))
        self._deltas.append(ToolCallDelta(index, id_, name))

    def arguments(self, text: str) -> None:
        """Append to the arguments of the last call."""
        self._calls[-1][2].append(text)
        self._deltas.append(ToolCallDelta(len(self._calls) - 1, arguments=text))

    def end(self) -> None:
        """Release the white space at the end of a text that no call follows."""
        if self._space and not self._calls and (self._text or not self._trims):
            self._text.append(self._space)
        self._space = ""

    def take(self) -> str:
        """Return what has come since the last time: a `Piece` where it is more than text."""
        text, reasoning = "".join(self._text[self._sent[0] :]), "".join(self._reasoning[self._sent[1] :])
        self._sent = [len(self._text), len(self._reasoning)]
        deltas, self._deltas = tuple(self._deltas), []
        return Piece(text, reasoning=reasoning, tool_calls=deltas) if reasoning or deltas else text

    @property
    def whole_text(self) -> str:
        """All text."""
        return "".join(self._text)

    @property
    def whole_reasoning(self) -> str:
        """All reasoning."""
        return "".join(self._reasoning)

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """All calls."""
        return tuple(ToolCall(id_, name, "".join(parts)) for id_, name, parts in self._calls)

    def _new_id(self) -> str:
        if self._id_length:
            return "".join(secrets.choice(_ALPHABET) for _ in range(self._id_length))
        return f"call_{secrets.token_hex(12)}"
