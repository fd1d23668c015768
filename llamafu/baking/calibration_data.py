"""The text that a calibrated `bake` reads: a file's, or a sample that comes with Llamafu and what the model writes itself."""

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
"""In place of a file: `_SAMPLE`, and text that the model writes itself."""

_SAMPLE = Path(__file__).with_name("calibration_sample.txt")  # English of many kinds, and some code, written for this

FEWEST_TOKENS = 512
WINDOW = 256  # tokens that are read at once
_MOST_TOKENS = 1 << 16  # more of a text gains little
_LONGEST = 180  # tokens that are written on
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
    """Read a calibration text, None for `AUTO`; raises ValueError if it is no UTF-8, OSError if it cannot be read."""
    if source == AUTO:
        return None
    try:
        return Path(source).read_text("utf-8")
    except UnicodeDecodeError as error:
        message = f"the calibration text {source} is no UTF-8 (byte {error.start}); give a text file, or {AUTO!r}"
        raise ValueError(message) from error


def read_windows(model: Model, text: str) -> list[list[int]]:
    """Cut a text into windows; of a long one, as many as are read, evenly spread. Raises ValueError if it is too short."""
    tokens = model.tokenize(text, add_special=True, parse_special=True)
    if len(tokens) < FEWEST_TOKENS:
        message = f"the calibration text has {len(tokens)} tokens; give at least {FEWEST_TOKENS}, better 10,000, or {AUTO!r}"
        raise ValueError(message)
    windows = [tokens[first : first + WINDOW] for first in range(0, len(tokens), WINDOW)]
    most = _MOST_TOKENS // WINDOW
    return windows if len(windows) <= most else spread(windows, most)


def own_windows(model: Model, adapters: Mapping[Adapter, float], n_threads: int) -> list[list[int]]:
    """Let the model write at temperature 1, and add the sample.

    It answers with the adapters on, and writes plain text as it is without them: nobody knows what language it is for.
    """
    try:
        asked = [chat_template.tokenize(model, [{"role": "user", "content": question}]) for question in _QUESTIONS]
    except LlamafuError:  # no template, or one that cannot be used: then without chats
        asked = _tokenized(model, _QUESTIONS)
    written: list[list[int]] = []
    for seed in range(_ROUNDS):
        written += _continued(model, adapters, asked, seed, n_threads)
    written += _continued(model, {}, _tokenized(model, _OPENINGS), _ROUNDS, n_threads)
    return written + read_windows(model, _SAMPLE.read_text("utf-8"))


def packed(windows: Sequence[list[int]], most: int, n_tokens: int) -> list[list[int]]:
    """Join windows to at most `most` texts of one length and `n_tokens` in all; of more, evenly spread ones.

    Each begins where a window does, the first ones where the first windows do: chats are then read from their beginning.
    """
    wanted = max(1, n_tokens // WINDOW)
    windows = spread(windows, wanted) if len(windows) > wanted else windows
    size = sum(map(len, windows))
    length = WINDOW * -(-size // (WINDOW * most))
    count = max(1, size // length)
    rest = iter([token for window in windows[count:] for token in window])
    texts = [[*window, *islice(rest, length - len(window))] for window in windows[:count]]
    return [text for text in texts if len(text) == len(texts[0])]


def spread(windows: Sequence[list[int]], count: int) -> list[list[int]]:
    """Choose `count` of the windows, evenly."""
    return [windows[i * len(windows) // count] for i in range(count)]


def _tokenized(model: Model, texts: Iterable[str]) -> list[list[int]]:
    return [model.tokenize(text, add_special=True, parse_special=True) for text in texts]


def _continued(
    model: Model, adapters: Mapping[Adapter, float], starts: Sequence[list[int]], seed: int, n_threads: int
) -> list[list[int]]:
    """Sample on from every text, side by side, until each ends or is long enough."""
    texts = [start[: WINDOW - _LONGEST] for start in starts]
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
    for _ in range(_LONGEST):
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
