"""The tokens that calibration reads: of a text file, or of a sample and text that the model generates."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llamafu._native.context import Context
from llamafu._native.context_options import ContextOptions
from llamafu.errors import LlamafuError
from llamafu.generation import chat_template

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from llamafu._native.adapter import Adapter
    from llamafu._native.model import Model

AUTO = "auto"
"""In place of a file: `_SAMPLE`, and text that the model generates."""

_SAMPLE = Path(__file__).with_name("calibration_sample.txt")  # English of many kinds, and some code, written for this

FEWEST_TOKENS = 512
"""That a calibration text must have."""
WINDOW = 256
"""Tokens of one window, the unit in which a text is cut, chosen and measured."""
_MOST_TOKENS = 1 << 16  # more of a text gains little
_MOST_GENERATED = 180  # tokens after each prompt
_ROUNDS = 2  # of answers to every question
_QUESTIONS = (
    "What is the capital of France?",
    "How do plants grow?",
    "Tell me a story about a king.",
    "What is the best way to save money?",
    "Explain gravity to a child.",
    "Write a letter to a friend.",
    "How do I bake a cake?",
    "What happened in the year 1969?",
    "Describe your favourite place.",
    "Why is exercise good for you?",
    "What does a doctor do?",
    "Name three animals that live in Africa.",
    "How can I sleep better?",
    "What is a computer?",
    "Give me a recipe for soup.",
    "Who wrote Hamlet?",
    "How far is the moon?",
    "What should I read next?",
    "Explain what a river is.",
    "Tell me something funny.",
    "How is paper made?",
    "What is the weather like in winter?",
    "Why do people travel?",
    "How do I write a good essay?",
    "Write a function that adds two numbers.",
    "What are vitamins?",
    "How does the heart work?",
    "Give me ideas for a party.",
    "Summarise how a war begins.",
    "What is 12 times 14?",
    "Tell me about the planets.",
    "How do I learn a language?",
    "What is a contract?",
    "Translate 'good morning' into Spanish.",
    "Describe a castle.",
    "How do clocks work?",
)
_OPENINGS = (
    "The",
    "In",
    "It was",
    "A",
    "When",
    "There is",
    "She said",
    "He had never",
    "The town of",
    "The history of",
    "In 1987,",
    "Born in",
    "The first",
    "According to",
    "Scientists",
    "The government",
    "The company",
    "The team",
    "Once upon a time",
    "Chapter 1\n\n",
    '"I do not know,"',
    "The old man",
    "My dear",
    "We",
    "You can",
    "To install",
    "If",
    "This function",
    "The following",
    "Note that",
    "For example,",
    "def ",
    "class ",
    "# Introduction\n\n",
    "1.",
    "The purpose of",
)


def read_text(source: str | os.PathLike[str]) -> str | None:
    """Read the calibration text at `source`; None for `AUTO`. ValueError if it is no UTF-8, OSError if it cannot be read."""
    if source == AUTO:
        return None
    try:
        return Path(source).read_text("utf-8")
    except UnicodeDecodeError as error:
        message = f"the calibration text {source} is no UTF-8 (byte {error.start}); give a text file, or {AUTO!r}"
        raise ValueError(message) from error


def text_windows(model: Model, text: str) -> list[list[int]]:
    """Tokenize a text and cut it into windows, of a long one 256 evenly spaced ones. Raises ValueError if it is too short."""
    tokens = model.tokenize(text, add_special=True, parse_special=True)
    if len(tokens) < FEWEST_TOKENS:
        message = f"the calibration text has {len(tokens)} tokens; give at least {FEWEST_TOKENS}, better 10,000, or {AUTO!r}"
        raise ValueError(message)
    windows = [tokens[first : first + WINDOW] for first in range(0, len(tokens), WINDOW)]
    most = _MOST_TOKENS // WINDOW
    return windows if len(windows) <= most else evenly_spaced(windows, most)


def generated_windows(model: Model, adapters: Mapping[Adapter, float], n_threads: int) -> list[list[int]]:
    """Return windows that the model generates at temperature 1, and those of the sample.

    It answers questions with the adapters on, in chats where it has a template, and continues openings of plain text without
    them. So the text is in whatever language the model is for.
    """
    try:
        asked = [chat_template.tokenize(model, [{"role": "user", "content": question}]) for question in _QUESTIONS]
    except LlamafuError:  # no template, or one that cannot be used: then without chats
        asked = _tokenized(model, _QUESTIONS)
    generated: list[list[int]] = []
    for seed in range(_ROUNDS):
        generated += _continued(model, adapters, asked, seed, n_threads)
    generated += _continued(model, {}, _tokenized(model, _OPENINGS), _ROUNDS, n_threads)
    return generated + text_windows(model, _SAMPLE.read_text("utf-8"))


def packed(windows: Sequence[list[int]], most: int, n_tokens: int) -> list[list[int]]:
    """Join windows to at most `most` texts of one length and `n_tokens` in all; of too many, evenly spaced ones are taken.

    Each text begins with a window of its own, in order, so that chats are read from their beginning; the windows left over
    fill the texts up.
    """
    wanted = max(1, n_tokens // WINDOW)
    windows = evenly_spaced(windows, wanted) if len(windows) > wanted else windows
    size = sum(map(len, windows))
    length = WINDOW * -(-size // (WINDOW * most))
    count = max(1, size // length)
    rest = iter([token for window in windows[count:] for token in window])
    texts = [[*window, *islice(rest, length - len(window))] for window in windows[:count]]
    return [text for text in texts if len(text) == len(texts[0])]


def evenly_spaced(windows: Sequence[list[int]], count: int) -> list[list[int]]:
    """Choose `count` windows at equal distances."""
    return [windows[i * len(windows) // count] for i in range(count)]


def _tokenized(model: Model, texts: Iterable[str]) -> list[list[int]]:
    return [model.tokenize(text, add_special=True, parse_special=True) for text in texts]


def _continued(
    model: Model, adapters: Mapping[Adapter, float], starts: Sequence[list[int]], seed: int, n_threads: int
) -> list[list[int]]:
    """Generate a continuation of every text, all in one batch, until each ends or has the most tokens."""
    texts = [start[: WINDOW - _MOST_GENERATED] for start in starts]
    options = ContextOptions(n_ctx=len(texts) * WINDOW, n_batch=WINDOW, n_threads=n_threads, n_seq_max=len(texts), unified=True)
    context = Context(model, options)
    try:
        context.set_adapters(adapters)
        _continue(context, texts, seed)
    finally:
        context.close()
    return texts


def _continue(context: Context, texts: list[list[int]], seed: int) -> None:
    random = np.random.default_rng(seed)
    logits: dict[int, Any] = {}
    for number, text in enumerate(texts):
        outputs = [False] * (len(text) - 1) + [True]
        _demand(context, context.compute(text, range(len(text)), [number] * len(text), outputs))
        logits[number] = context.output_rows(1)[0].astype(np.float64)
    for _ in range(_MOST_GENERATED):
        chosen = {number: _sampled(row, random) for number, row in logits.items()}
        going = [number for number, token in chosen.items() if not context.model.is_end(token)]
        for number, token in chosen.items():
            texts[number].append(token)
        if not going:
            break
        tokens, places = [chosen[number] for number in going], [len(texts[number]) - 1 for number in going]
        _demand(context, context.compute(tokens, places, going, [True] * len(going)))
        logits = dict(zip(going, context.output_rows(len(going)).astype(np.float64), strict=True))


def _demand(context: Context, code: int) -> None:
    if code:
        raise context.failure(code, "the calibration text could not be written")


def _sampled(logits: NDArray[np.float64], random: np.random.Generator) -> int:
    weights = np.cumsum(np.exp(logits - logits.max()))
    return int(np.searchsorted(weights, random.random() * weights[-1], side="right"))
