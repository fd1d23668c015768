"""Requests as people send them: seeded prompts of very different lengths, answers too, adapters drawn for each."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from _conditions import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

Adapters = Literal["distinct", "same", "base"]

PROMPT_WORDS = 40, 600
ANSWER_TOKENS = 16, 128
REQUESTS = {4: 20, 8: 40, 16: 80}
"""Requests of a round, by the number of slots and adapters."""
SYSTEM_WORDS, TURN_WORDS, TURNS = 220, (10, 60), 4
"""A conversation: 220 words are about 300 tokens that all conversations begin with."""


@dataclass(frozen=True)
class Asked:
    """One request of the load."""

    prompt: str
    tokens: int
    """Length of the answer; the end of the text is ignored."""
    adapter: int | None


@dataclass(frozen=True)
class Conversation:
    """One person: a system prompt that all share, and turns of which each waits for the answer before."""

    system: str
    turns: tuple[str, ...]
    tokens: tuple[int, ...]
    adapter: int | None


def sample() -> list[str]:
    """Words of the text that the package brings for calibration: fiction, technical, legal, code."""
    return (ROOT / "llamafu" / "baking" / "calibration_sample.txt").read_text("utf-8").split()


def chooser(adapters: Adapters, count: int) -> Callable[[random.Random], int | None]:
    """Return how a request's adapter is drawn: each of `count` alike, always the first, or none."""
    choices: dict[Adapters, Callable[[random.Random], int | None]] = {
        "distinct": lambda dice: dice.randrange(count),
        "same": lambda _: 0,
        "base": lambda _: None,
    }
    return choices[adapters]


def requests(seed: int, slots: int, adapters: Adapters) -> list[Asked]:
    """Draw a round: lengths of prompts and answers evenly between their limits, every prompt a text of its own."""
    dice, words, choose = random.Random(seed), sample(), chooser(adapters, slots)  # noqa: S311 - a load, no secret
    drawn = []
    for number in range(REQUESTS[slots]):
        length = dice.randint(*PROMPT_WORDS)
        start = dice.randrange(len(words) - length)
        prompt = f"{seed}.{number} {' '.join(words[start : start + length])}"
        drawn.append(Asked(prompt, dice.randint(*ANSWER_TOKENS), choose(dice)))
    return drawn


def conversations(seed: int, slots: int, adapters: Adapters) -> list[Conversation]:
    """Draw as many conversations as there are slots; their system prompt is one and the same."""
    dice, words, choose = random.Random(seed), sample(), chooser(adapters, slots)  # noqa: S311 - a load, no secret
    system = " ".join(words[:SYSTEM_WORDS])
    drawn = []
    for number in range(slots):
        turns = []
        for turn in range(TURNS):
            length = dice.randint(*TURN_WORDS)
            start = dice.randrange(len(words) - length)
            turns.append(f"{seed}.{number}.{turn} {' '.join(words[start : start + length])}")
        drawn.append(
            Conversation(system, tuple(turns), tuple(dice.randint(*ANSWER_TOKENS) for _ in range(TURNS)), choose(dice))
        )
    return drawn


def arrivals(seed: int, count: int, per_second: float) -> list[float]:
    """Draw when requests of an open loop come, in seconds from its start: a Poisson process."""
    dice, now, times = random.Random(seed), 0.0, []  # noqa: S311 - a load, no secret
    for _ in range(count):
        now += dice.expovariate(per_second)
        times.append(now)
    return times
