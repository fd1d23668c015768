"""The kinds of projectors as cases: which files belong together, media for them, and what their logits have to be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from helpers.media_made import as_decoded, picture, png, tone, wav
from helpers.media_reference import ProjectorReference
from helpers.reference import Reference

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from llamafu import Llamafu
    from llamafu.engine import Engine

    Adapters = Sequence[tuple[Path, float]]

MARKER = "<__media__>"
PROMPT = f"hello {MARKER} world"


@dataclass(frozen=True)
class MediaCase:
    """A projector `mmproj-KIND.gguf`, its language model and two adapters; `opening` and `closing`: texts around a medium."""

    kind: str
    model: str = "tiny.gguf"
    adapters: tuple[str, str] = ("a.gguf", "b.gguf")
    opening: str = ""
    closing: str = ""
    hears: bool = False

    def files(self, directory: Path) -> tuple[Path, Path]:
        """Return the language model and the projector among the fixtures."""
        return directory / self.model, directory / f"mmproj-{self.kind}.gguf"

    def raw(self, number: int = 0) -> np.ndarray:
        """Return pixels [rows, columns, 3], or samples; other ones for each number, but for 2 of the encoder's own size."""
        if self.hears:
            return as_decoded(tone(0.4 + 0.2 * number, hertz=300 + 220 * number))
        return picture(*((32, 32), (32, 32), (50, 40), (20, 90))[number], seed=number)

    def medium(self, number: int = 0) -> bytes:
        """Return the same as a file."""
        return wav(self.raw(number)) if self.hears else png(self.raw(number))


MEDIA_CASES = (
    MediaCase("llava"),
    MediaCase("gemma3", opening="<start_of_image>", closing="<end_of_image>"),
    MediaCase(
        "qwen2vl",
        model="tiny-qwen2vl.gguf",
        adapters=("qwen2vl-a.gguf", "qwen2vl-b.gguf"),
        opening="<|vision_start|>",
        closing="<|vision_end|>",
    ),
    MediaCase("ultravox", hears=True),
)


class MediaReference:
    """A language model and a projector, computed without libllama and libmtmd."""

    def __init__(self, directory: Path, case: MediaCase) -> None:
        """Read the case's fixtures of the folder."""
        model, projector = case.files(directory)
        self._case, self._model, self._projector = case, Reference(model), ProjectorReference(projector)
        self._seen: dict[bytes, np.ndarray] = {}  # a sound takes seconds

    def logits(
        self, llm: Llamafu, prompt: str, media: Sequence[np.ndarray], said: Sequence[int] = (), adapters: Adapters = ()
    ) -> np.ndarray:
        """Return the logits after the prompt and after each token of `said`; `llm` divides the text into tokens."""
        rows: list[np.ndarray] = []
        places: list[np.ndarray] = []
        both_ways: list[tuple[int, int]] = []
        place = 0

        def add(embeddings: np.ndarray, positions: np.ndarray) -> tuple[int, int]:
            start = sum(map(len, rows))
            rows.append(embeddings)
            places.append(positions)
            return start, start + len(embeddings)

        def add_tokens(tokens: Sequence[int]) -> int:
            add(self._model.weights["token_embd.weight"][list(tokens)], _line(place, len(tokens)))
            return place + len(tokens)

        for number, text in enumerate(prompt.split(MARKER)):
            if number:
                place = add_tokens(llm.tokenize(self._case.opening, add_special=False))
                medium = media[number - 1]
                embeddings = self._embeddings(medium)
                if self._case.hears:
                    positions, place = _line(place, len(embeddings)), place + len(embeddings)
                else:
                    positions, place = self._projector.positions(medium, place)
                span = add(embeddings, positions)
                both_ways += [span] if self._projector.both_ways else []
                place = add_tokens(llm.tokenize(self._case.closing, add_special=False))
            place = add_tokens(llm.tokenize(text, add_special=not number))
        place = add_tokens(said)
        stacked = np.concatenate(rows), np.concatenate(places)
        whole = self._model.logits_of(stacked[0], adapters, positions=stacked[1], both_ways=both_ways)
        return whole[-1 - len(said) :]

    def _embeddings(self, medium: np.ndarray) -> np.ndarray:
        key = medium.tobytes()
        if key not in self._seen:
            self._seen[key] = self._projector.hear(medium) if self._case.hears else self._projector.see(medium)
        return self._seen[key]


def say(
    llm: Llamafu | Engine, prompt: str, media: Sequence[Any], *, steps: int = 1, **options: Any
) -> tuple[np.ndarray, list[int]]:
    """Let the model say `steps` tokens, the likeliest each; return the logits of each, and the tokens."""
    rows: list[np.ndarray] = []

    def note(_tokens: np.ndarray, logits: np.ndarray) -> None:
        rows.append(logits.copy())

    options = {"max_tokens": steps, "temperature": 0, "ignore_eos": False, **options}
    completion = llm.complete(prompt, media=media, logits_processor=note, **options)
    return np.array(rows), list(completion.tokens)


def _line(first: int, count: int) -> np.ndarray:
    return np.arange(first, first + count)[:, None].repeat(3, axis=1)
