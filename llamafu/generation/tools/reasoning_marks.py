"""The marks of reasoning, and by which texts of a chat template they are known."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class ReasoningMarks:
    """What stands before and after the reasoning at the beginning of an answer.

    silent: marks around the text.
    sign: the text by which chat templates show that they know the marks, where that is neither of them.
    ends_at_calls: calls may come within the reasoning, and end it.
    recurs: reasoning may also come later in an answer, and several times.
    resumes: what stands between the closing mark and what follows, after the first reasoning and after each later one.
    """

    opening: str
    closing: str
    silent: tuple[str, ...] = ()
    sign: str = ""
    ends_at_calls: bool = False
    recurs: bool = False
    resumes: tuple[str, ...] = ("",)

    def stand_in(self, template: str) -> bool:
        """Whether a chat template knows the marks."""
        signs = [self.sign] if self.sign else [self.opening, self.closing]
        return any(sign in template for sign in signs)


_MARKS = (
    ReasoningMarks("[THINK]", "[/THINK]"),
    ReasoningMarks("<|START_THINKING|>", "<|END_THINKING|>", ("<|START_RESPONSE|>", "<|END_RESPONSE|>")),
    ReasoningMarks("<|channel>thought", "<channel|>"),
    ReasoningMarks("<|inner_prefix|>", "<|inner_suffix|>", ends_at_calls=True),
    ReasoningMarks("<seed:think>", "</seed:think>"),
    ReasoningMarks("<mm:think>", "</mm:think>"),
    ReasoningMarks("<think:opensource>", "</think:opensource>", sign="<think{}>"),
    ReasoningMarks("<think>", "</think>"),
)
_AROUND_TEXT = (("<response></response>", ("<response>", "</response>")), ("</answer>", ("<answer>", "</answer>")))
"""Of Granite's and of Hunyuan's templates a text that they have, and the marks that they want around the text.

Others have Granite's marks around what tools gave.
"""


def reasoning_of(template: str) -> ReasoningMarks | None:
    """Return the marks of the reasoning that a chat template knows, None where it knows none."""
    found = next((marks for marks in _MARKS if marks.stand_in(template)), None)
    around = next((marks for sign, marks in _AROUND_TEXT if sign in template), None)
    return found if found is None or around is None else replace(found, silent=around)
