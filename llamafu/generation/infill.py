"""Prompts for the middle of a text (FIM): the tokens that mark its parts, and where each part goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from llamafu.errors import TokenizeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llamafu._native.model import Model

_KEYS = {
    "prefix": ("fim_pre", "prefix"),
    "suffix": ("fim_suf", "suffix"),
    "middle": ("fim_mid", "middle"),
    "repository": ("fim_rep",),
    "file": ("fim_sep",),
}
"""The GGUF's words for each mark, in `tokenizer.ggml.*_token_id`; the second ones are older."""
_SPELLINGS = {
    "prefix": (
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<\uff5cfim▁begin\uff5c>",
        "<PRE>",
        "▁<PRE>",
        "<|code_prefix|>",
    ),
    "suffix": (
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<\uff5cfim▁hole\uff5c>",
        "<SUF>",
        "▁<SUF>",
        "<|code_suffix|>",
    ),
    "middle": ("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<\uff5cfim▁end\uff5c>", "<MID>", "▁<MID>", "<|code_middle|>"),
    "repository": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "file": ("<|file_sep|>",),
}
"""How they are spelled in vocabularies whose GGUF does not say: Qwen's, Granite's, DeepSeek's, CodeLlama's, GLM's."""
_SNIPPET = "\n\n--- snippet ---\n\n"
"""Before a file where the vocabulary has no mark for one."""
_PROJECT, _FILE = "myproject\n", "filename\n"
"""llama-server's names of the project and of the file that is edited: it is told neither."""
_PREFIX_SHARE = 3 / 4
"""Of the tokens for prefix and suffix, where both are longer than their share."""


@dataclass(frozen=True, slots=True)
class InfillTokens:
    """The ids of the tokens that mark the parts of such a prompt, None where a vocabulary has none."""

    prefix: int | None = None
    suffix: int | None = None
    middle: int | None = None
    repository: int | None = None
    file: int | None = None

    @classmethod
    def of(cls, model: Model) -> Self:
        """Find them in a vocabulary: by the GGUF's metadata, else by their spelling."""
        return cls(**{mark: _find(model, mark) for mark in _KEYS})

    @property
    def missing(self) -> tuple[str, ...]:
        """What a prompt takes and the vocabulary has not."""
        return tuple(name for name in ("prefix", "suffix", "middle") if getattr(self, name) is None)


@dataclass(frozen=True, slots=True)
class InfillText:
    """What an answer is to go into: the text before and after it, and (name, text) of files around it."""

    before: str
    after: str
    files: Sequence[tuple[str, str]] = ()

    def prompt(self, marks: InfillTokens, tokenize: Callable[[str], list[int]], most: int) -> list[int]:
        """Return at most `most` tokens, in llama-server's order, without a BOS; `marks` has to miss nothing.

        Where not all fits, the farthest from the gap is left out: first the files, then the beginning of the text before it
        and the end of the text after it.
        """
        assert marks.prefix is not None and marks.suffix is not None and marks.middle is not None  # noqa: S101, PT018
        before, after = tokenize(self.before), tokenize(self.after)
        room = max(most - 3, 0)
        share = int(room * _PREFIX_SHARE)
        taken_before = min(len(before), max(share, room - len(after)))
        taken_after = min(len(after), room - taken_before)
        files = self._files(marks, tokenize)
        taken_files = min(len(files), room - taken_before - taken_after)
        return [
            *files[len(files) - taken_files :],
            marks.prefix,
            *before[len(before) - taken_before :],
            marks.suffix,
            *after[:taken_after],
            marks.middle,
        ]

    def _files(self, marks: InfillTokens, tokenize: Callable[[str], list[int]]) -> list[int]:
        """Return the tokens of the files, and the mark of the edited one."""
        found = [] if marks.repository is None else [marks.repository, *tokenize(_PROJECT)]
        for name, text in self.files:
            head = tokenize(_SNIPPET) if marks.file is None else [marks.file, *tokenize(f"{name}\n")]
            found += [*head, *tokenize(text)]
        return found if marks.file is None else [*found, marks.file, *tokenize(_FILE)]


def _find(model: Model, mark: str) -> int | None:
    for key in _KEYS[mark]:
        told = model.metadata(f"tokenizer.ggml.{key}_token_id")
        if told is not None and told.isdecimal() and int(told) < model.n_vocab:
            return int(told)
    for text in _SPELLINGS[mark]:
        try:
            token = model.single_token(text)
        except TokenizeError:  # a vocabulary without these characters
            continue
        if token is not None:
            return token
    return None
