"""References to files on the Hugging Face hub: `hf:OWNER/REPO[@REVISION][:QUANTISATION | /PATH]`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self
from urllib.parse import quote, unquote

from llamafu.errors import ErrorCode, HubError

PREFIX = "hf:"
FORM = "hf:OWNER/REPO, with @REVISION behind it if need be, and then :QUANTISATION or /PATH/IN/REPO"
_LONGEST = 1024
_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_REFERENCE = re.compile(
    rf"(?P<repo>{_NAME}/{_NAME})"
    r"(?:@(?P<revision>refs/(?:pr|convert)/[^/:@]+|[^/:@]+))?"
    r"(?::(?P<quantisation>[A-Za-z0-9][A-Za-z0-9_.-]*)|/(?P<path>.+))?"
)
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*")
_REVISION_LAST = re.compile(r"(?::[A-Za-z0-9_.-]+|/.+\.gguf)@")


@dataclass(frozen=True, slots=True)
class HubReference:
    """A repository on the hub, and what of it is meant: a quantisation, a file or folder, or else what is usual.

    repo: owner and name, with a slash between them.
    revision: a branch, tag or commit; None for the main branch.
    quantisation: a part of the names of GGUF files, such as Q4_K_M, in any case; None where `path` is given or neither is.
    path: a file or folder in the repository.
    """

    repo: str
    revision: str | None = None
    quantisation: str | None = None
    path: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a reference; slashes of a revision are written `%2F`, except in `refs/pr/N`. `HubError` for any other text."""
        match = _REFERENCE.fullmatch(text.removeprefix(PREFIX)) if text.startswith(PREFIX) and len(text) <= _LONGEST else None
        if match is None:
            hint = "; the revision stands right behind the repository" if _REVISION_LAST.search(text) else ""
            raise _bad(text, f"it is not {FORM}{hint}")
        found = match.groupdict()
        if (problem := _repository_problem(found["repo"])) is not None:
            raise _bad(text, problem)
        revision, path = found["revision"], found["path"]
        if revision is not None:
            revision = unquote(revision)
            if not _REVISION.fullmatch(revision) or ".." in revision:
                raise _bad(text, f"{revision!r} is no branch, tag or commit")
        if path is not None and not (path.isprintable() and "\\" not in path and not {"", ".", ".."} & set(path.split("/"))):
            raise _bad(text, f"{path!r} is no path in a repository: give parts with one / between them")
        if path is not None and _REVISION_LAST.search(f"/{path}"):
            raise _bad(text, "the revision stands right behind the repository, as in hf:owner/repo@main/file.gguf")
        return cls(found["repo"], revision, found["quantisation"], path)

    @classmethod
    def with_or_without_prefix(cls, text: str) -> Self:
        """Read a reference, or one without `hf:` where nothing else can be meant."""
        return cls.parse(text if text.startswith(PREFIX) else f"{PREFIX}{text}")

    def __str__(self) -> str:
        """The text that `parse` reads."""
        revision = "" if self.revision is None else f"@{quote(self.revision, safe='+')}"
        quantisation = "" if self.quantisation is None else f":{self.quantisation}"
        return f"{PREFIX}{self.repo}{revision}{quantisation}{'' if self.path is None else f'/{self.path}'}"


def _repository_problem(repo: str) -> str | None:
    """Return what the hub does not allow in a repository's name."""
    if "--" in repo or ".." in repo:
        return f"{repo!r} is no repository: its name has -- or .. in it"
    return f"{repo!r} is no repository: leave out .git" if repo.endswith(".git") else None


def _bad(text: str, why: str) -> HubError:
    return HubError(f"{text[:200]!r} is no reference to the Hugging Face hub: {why}", code=ErrorCode.INVALID_PARAM)
