"""What goes into a model's matrices while it reads a text with its adapters on: what a calibrated `bake` rounds by."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llamafu import chat
from llamafu._native.adapter import Adapter
from llamafu._native.context import Context, ContextOptions
from llamafu._native.inputs import Inputs
from llamafu._native.model import Model
from llamafu.adapters.ggml_type import BLOCKS
from llamafu.adapters.grid import RANGES
from llamafu.adapters.info import is_expert
from llamafu.errors import ErrorCode, LibraryNotFoundError, LlamafuError, LoraError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from llamafu._native.library import Library
    from llamafu.adapters.baked import Recipe
    from llamafu.adapters.file import AdapterFile
    from llamafu.adapters.ggml_type import GGMLType
    from llamafu.adapters.shard import Shard

AUTO = "auto"
"""In place of a file: text that the model writes itself, with the adapters on."""

FEWEST_TOKENS = 512
_MOST_TOKENS = 1 << 16  # more of a text gains little
_WINDOW = 256  # tokens that are read at once
_ROOM = 1 << 30  # bytes of moments that are kept at once
_DOUBLE = 8  # bytes
_HALVES = 2  # of the text, window by window
_LONGEST_ANSWER = 160
_SEED = 0
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
)
_FREE = 24  # texts that begin with nothing


def read_text(source: str | os.PathLike[str]) -> str | None:
    """Read a calibration text, None for `AUTO`; raises ValueError if it is no UTF-8, OSError if it cannot be read."""
    if source == AUTO:
        return None
    try:
        return Path(source).read_text("utf-8")
    except UnicodeDecodeError as error:
        message = f"the calibration text {source} is no UTF-8 (byte {error.start}); give a text file, or {AUTO!r}"
        raise ValueError(message) from error


@contextmanager
def calibrated(
    recipe: Recipe, shards: Sequence[Shard], library: Library | None, text: str | None, on_progress: Callable[[float], None]
) -> Iterator[tuple[Recipe, Callable[[float], None]]]:
    """Give a recipe that rounds by calibration, and the half of `on_progress` that is left for the writing.

    `text` None lets the model write it. Raises LoraError for a tensor that cannot be calibrated, LibraryNotFoundError.
    """
    if library is None:
        message = "calibration runs the model, and no libllama is in use; get one with `llamafu lib install`"
        raise LibraryNotFoundError(message)
    sizes = _sizes(shards, recipe.kinds)
    if not sizes:
        yield recipe, on_progress
        return
    halves = [0.0, 0.0]

    def told(half: int, share: float) -> None:
        halves[half] = share
        on_progress(sum(halves) / 2)

    n_threads = recipe.n_threads
    path, uses = shards[0].path, recipe.uses
    found = Calibration(library, path, uses, sizes, text=text, n_threads=n_threads, on_progress=lambda share: told(0, share))
    try:
        yield recipe._replace(moments=found.moments), lambda share: told(1, share)
    finally:
        found.close()


def _sizes(shards: Sequence[Shard], kinds: Mapping[str, GGMLType]) -> dict[str, int]:
    """Return how many inputs each matrix has that is to be calibrated, in the files' order."""
    sizes: dict[str, int] = {}
    problems: dict[str, list[str]] = {}
    for entry in (entry for shard in shards for entry in shard.container.tensors.values() if entry.name in kinds):
        kind = kinds[entry.name]
        if kind in RANGES and not is_expert(entry.name):
            sizes[entry.name] = entry.shape[0]
        elif kind in RANGES:
            problems.setdefault(_UNSEEN, []).append(entry.name)
        elif BLOCKS[kind][0] > 1:
            types = ", ".join(known.name for known in RANGES)
            why = f"its type {kind.name} cannot be calibrated, only {types} can; choose the dtype 'f16' instead"
            problems.setdefault(why, []).append(entry.name)
    if problems:
        message = "; ".join(f"{_listed(names)}: {why}" for why, names in problems.items())
        raise LoraError(message, code=ErrorCode.INVALID_PARAM)
    return sizes


_UNSEEN = (
    "no plain matrix product uses it (as with stacks of experts and token embeddings), so it has no inputs to calibrate with; "
    "bake without calibration"
)


def _listed(names: Sequence[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more" if names[1:] else names[0]


class Calibration:
    """The inputs of a model's matrices `sizes` {name: inputs}, in the order in which they will be asked for.

    Opens the model a second time, by libllama on the CPU. Close it after use. One thread at a time.

    A pass over the text gathers the moments of as many matrices as fit into a gigabyte (at least one); the next pass
    follows when a further one is asked for, and forgets them. `on_progress` is told the share of all passes that is done.
    """

    def __init__(
        self,
        library: Library,
        path: Path,
        uses: Sequence[tuple[AdapterFile, float]],
        sizes: Mapping[str, int],
        *,
        text: str | None,
        n_threads: int,
        on_progress: Callable[[float], None],
    ) -> None:
        self._n_threads, self._on_progress = n_threads, on_progress
        self._groups = list(_groups(sizes))
        self._passed = 0
        self._inputs: Inputs | None = None
        self._model = Model(library, path)
        self._adapters: dict[Adapter, float] = {}
        try:
            for file, scale in uses:
                self._adapters[Adapter(self._model, file.content, label=file.path.name)] = scale
            self._windows = self._read(text) if text is not None else self._written()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Free the model. Idempotent."""
        for adapter in self._adapters:
            adapter.close()
        self._model.close()

    def moments(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the means of x x^T over the inputs x of the matrix in two halves of the text, [in, in].

        Raises LoraError if it has none.
        """
        while self._inputs is None or name not in self._groups[self._passed - 1]:
            self._inputs = None  # frees the memory first
            self._inputs = self._gathered(self._groups[self._passed])
            self._passed += 1
        return self._inputs.moment(name, 0), self._inputs.moment(name, 1)

    def _gathered(self, names: Sequence[str]) -> Inputs:
        inputs = Inputs(self._model.library, names)
        context = self._context(n_ctx=_WINDOW, hook=inputs)
        try:
            for number, window in enumerate(self._windows):
                context.clear()
                inputs.begin(number % _HALVES)
                context.decode(window, 0, all_logits=True)  # else the last layer computes one row only
                inputs.check()
                self._on_progress((self._passed + (number + 1) / len(self._windows)) / len(self._groups))
        finally:
            context.close()
        if missing := inputs.missing:
            message = f"{_listed(missing)}: {_UNSEEN}"
            raise LoraError(message, code=ErrorCode.INVALID_PARAM)
        return inputs

    def _context(self, *, n_ctx: int, sequences: int = 1, hook: Inputs | None = None) -> Context:
        options = ContextOptions(
            n_ctx=n_ctx, n_batch=min(n_ctx, _WINDOW), n_threads=self._n_threads, n_seq_max=sequences, unified=True
        )
        context = Context(self._model, options, hook=hook)
        context.set_adapters(self._adapters)
        return context

    def _read(self, text: str) -> list[list[int]]:
        """Cut a text into windows; of a long one, as many as are read, evenly spread."""
        tokens = self._model.tokenize(text.encode(), add_special=True, parse_special=True)
        if len(tokens) < FEWEST_TOKENS:
            message = (
                f"the calibration text has {len(tokens)} tokens; give at least {FEWEST_TOKENS}, better 10,000, or {AUTO!r}"
            )
            raise ValueError(message)
        windows = [tokens[first : first + _WINDOW] for first in range(0, len(tokens), _WINDOW)]
        most = _MOST_TOKENS // _WINDOW
        return windows if len(windows) <= most else [windows[i * len(windows) // most] for i in range(most)]

    def _written(self) -> list[list[int]]:
        """Let the model write, at temperature 1: answers to questions, and text that begins with nothing."""
        start = self._model.bos if self._model.bos >= 0 else self._model.eos
        texts = [[start]] * _FREE
        try:
            texts = [chat.tokenize(self._model, [{"role": "user", "content": question}]) for question in _QUESTIONS] + texts
        except LlamafuError:  # no template, or one that cannot be used: then without chats
            texts = [self._model.tokenize(q.encode(), add_special=True, parse_special=True) for q in _QUESTIONS] + texts
        context = self._context(n_ctx=len(texts) * _WINDOW, sequences=len(texts))
        try:
            return _continued(context, [text[: _WINDOW - _LONGEST_ANSWER] for text in texts])
        finally:
            context.close()


def _groups(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Divide the matrices, in their order, so that the moments of each group have room."""
    group: list[str] = []
    used = 0
    for name, size in sizes.items():
        needed = _HALVES * _DOUBLE * size * size
        if group and used + needed > _ROOM:
            yield group
            group, used = [], 0
        group.append(name)
        used += needed
    yield group


def _continued(context: Context, texts: list[list[int]]) -> list[list[int]]:
    """Sample on from every text, side by side, until each ends or is long enough."""
    random = np.random.default_rng(_SEED)
    model = context.model
    texts = [list(text) for text in texts]
    logits: dict[int, Any] = {}
    for number, text in enumerate(texts):
        outputs = [False] * (len(text) - 1) + [True]
        _demand(context, context.compute(text, range(len(text)), [number] * len(text), outputs))
        logits[number] = context.output_rows(1)[0].astype(np.float64)
    for _ in range(_LONGEST_ANSWER):
        chosen = {number: _sampled(row, random) for number, row in logits.items()}
        going = [number for number, token in chosen.items() if not model.is_end(token)]
        for number, token in chosen.items():
            texts[number].append(token)
        if not going:
            break
        tokens, places = [chosen[number] for number in going], [len(texts[number]) - 1 for number in going]
        _demand(context, context.compute(tokens, places, going, [True] * len(going)))
        logits = dict(zip(going, context.output_rows(len(going)).astype(np.float64), strict=True))
    return texts


def _demand(context: Context, code: int) -> None:
    if code:
        raise context.failure(code, "the calibration text could not be written")


def _sampled(logits: NDArray[np.float64], random: np.random.Generator) -> int:
    weights = np.cumsum(np.exp(logits - logits.max()))
    return int(np.searchsorted(weights, random.random() * weights[-1], side="right"))
