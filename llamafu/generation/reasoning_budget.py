"""The budget of one answer's reasoning: which tokens end it once it is used up."""

from __future__ import annotations

from codecs import utf_8_decode
from typing import TYPE_CHECKING

from llamafu.errors import UnsupportedError
from llamafu.generation.options import UNLIMITED_REASONING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llamafu._native.model import Model
    from llamafu.generation.options import Options
    from llamafu.generation.tools.answer_format import AnswerFormat
    from llamafu.generation.tools.reasoning_marks import ReasoningMarks


class ReasoningBudget:
    """Counts the tokens between the marks of one answer's reasoning; `due` ends it after `limit` of them. One thread at a time.

    A character or a closing mark that the model has begun is finished first, for a few tokens at most. `is_inside`: the
    prompt ends inside the reasoning. `closings`: the tokens that end it, for the first time and for each later one, the last
    entry for those after it too. `spell` returns the bytes that a token writes, marks included.
    """

    def __init__(
        self,
        limit: int,
        marks: ReasoningMarks,
        *,
        is_inside: bool,
        closings: Sequence[Sequence[int]],
        spell: Callable[[int], bytes],
    ) -> None:
        self._left = limit
        self._opening, self._closing = marks.opening.encode(), marks.closing.encode()
        self._recurs = marks.recurs
        self._is_inside = is_inside
        self._closings = list(closings)
        self._spell = spell
        self._place = 0  # in the tokens that end it
        self._unread = b""  # what was written since the last mark
        self._is_over = False

    @property
    def due(self) -> int | None:
        """The token that has to come next; None where the model chooses."""
        if self._place == 0:
            may_wait = self._left > -len(self._closing) and self._is_unfinished
            if not self._is_inside or self._left > 0 or may_wait:
                return None
        return self._closings[0][self._place]

    def append(self, token: int) -> None:
        """Take the newest token of the answer, whether it was due or not."""
        if self._is_over:
            return
        if token == self.due:
            self._place += 1
            if self._place == len(self._closings[0]):
                if len(self._closings) > 1:
                    del self._closings[0]
                self._close()
            return
        self._place = 0
        self._unread += self._spell(token)
        if self._is_inside:
            self._left -= 1
            if self._closing in self._unread:
                self._close()
            self._unread = self._unread[-len(self._closing) :]
        else:
            self._look_for_opening()

    def _look_for_opening(self) -> None:
        """Reasoning that does not recur is what the answer begins with, as whoever reads the answer takes it."""
        before, opening, after = self._unread.partition(self._opening)
        if opening and (self._recurs or not before.strip()):
            self._is_inside, self._unread = True, after
        elif self._recurs:
            self._unread = self._unread[-len(self._opening) :]
        else:
            self._is_over = not self._opening.startswith(self._unread.lstrip())

    def _close(self) -> None:
        self._is_inside, self._place, self._unread = False, 0, b""
        self._is_over = not self._recurs

    @property
    def _is_unfinished(self) -> bool:
        """Whether what was written ends inside a character, or in the beginning of a closing mark."""
        text, mark = self._unread, self._closing
        _, whole = utf_8_decode(text, "replace", False)  # noqa: FBT003 - a C function without keywords
        return whole < len(text) or any(text.endswith(mark[:length]) for length in range(1, len(mark)))


def reasoning_budget(model: Model, options: Options, answer_format: AnswerFormat | None) -> ReasoningBudget | None:
    """Return the budget of one generation, None where it has none; UnsupportedError where no marks of reasoning are known."""
    if options.reasoning_budget == UNLIMITED_REASONING:
        return None
    marks = None if answer_format is None else answer_format.marks_of_reasoning
    if answer_format is None or marks is None:
        message = (
            f"reasoning_budget={options.reasoning_budget}: the marks of reasoning are known by a chat's template; "
            "use a chat, or leave it at -1"
        )
        raise UnsupportedError(message)
    spelled = answer_format.spelled
    return ReasoningBudget(
        options.reasoning_budget,
        marks,
        is_inside=answer_format.is_thinking,
        closings=[model.tokenize(marks.closing + resume, add_special=False, parse_special=True) for resume in marks.resumes],
        spell=lambda token: spelled.get(token) or model.token_bytes(token),
    )
