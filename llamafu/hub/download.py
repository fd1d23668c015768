"""Fetching files with the huggingface_hub package: its cache, tokens, endpoint and offline mode are the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from llamafu._version import __version__
from llamafu.errors import ErrorCode, HubError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from llamafu.hub.choice import Chosen
    from llamafu.hub.reference import HubReference

_T = TypeVar("_T")
_REFUSED, _BUSY, _FAILED = (401, 403), 429, 500
"""HTTP statuses: of refusals, of too many requests, and from which on the server failed."""


def fetch(reference: HubReference, choose: Callable[[Collection[str]], Chosen]) -> Path:
    """Return where the files are that `choose` takes of a repository's, after fetching those that the cache lacks.

    `choose` gets the names of all files. Without a connection it gets those that are in the cache. Raises `HubError`.
    """
    repository = _Repository(reference)
    try:
        names = repository.names()
    except _UnreachableError as error:
        return _from_cache(repository, choose, str(error))
    chosen = choose(names)
    try:
        found = [repository.fetch(name) for name in chosen.files]
    except _UnreachableError as error:
        message = f"{reference}: {_told_files(chosen)} cannot be fetched: {error}; what is there is kept for the next try"
        raise HubError(message) from error
    roots = {path.parents[name.count("/")] for name, path in zip(chosen.files, found, strict=True)}
    if len(roots) > 1:  # commits have folders of their own
        message = f"{reference} was changed while it was being fetched; try again"
        raise HubError(message)
    return roots.pop() / chosen.place


class _UnreachableError(Exception):
    """The hub does not answer; the cache may have what is wanted."""


def _from_cache(repository: _Repository, choose: Callable[[Collection[str]], Chosen], why: str) -> Path:
    folder = repository.cached_folder()
    if folder is None:
        message = f"{repository.reference} is not in the hub's cache, and cannot be fetched: {why}"
        raise HubError(message)
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    try:
        return folder / choose(names).place
    except HubError as error:
        message = f"{error}; that is what the hub's cache has, and nothing can be fetched: {why}"
        raise HubError(message, code=error.code) from error


def _told_files(chosen: Chosen) -> str:
    """Return what is fetched, for a message: the first file, and how many more there are."""
    more = f" and {len(chosen.files) - 1} more" if len(chosen.files) > 1 else ""
    return f"{chosen.files[0]}{more}"


class _Repository:
    """One repository at one revision, as the package knows it."""

    def __init__(self, reference: HubReference) -> None:
        try:
            import huggingface_hub
            from huggingface_hub import constants, errors
        except ImportError as error:
            message = f'{reference} needs the package huggingface_hub; install the extra: pip install "llamafu[hub]"'
            raise HubError(message) from error
        self.reference = reference
        self._errors = errors
        self._timeout = constants.HF_HUB_ETAG_TIMEOUT
        self._api = huggingface_hub.HfApi(library_name="llamafu", library_version=__version__)

    def names(self) -> list[str]:
        """Return the names of all files."""
        repo, revision = self.reference.repo, self.reference.revision
        info = self._asked(lambda: self._api.model_info(repo, revision=revision, timeout=self._timeout))
        return [each.rfilename for each in info.siblings or ()]

    def fetch(self, name: str) -> Path:
        """Return where a file is in the cache, after fetching it if need be."""
        repo, revision = self.reference.repo, self.reference.revision
        return Path(self._asked(lambda: self._api.hf_hub_download(repo, name, revision=revision)))

    def cached_folder(self) -> Path | None:
        """Return the folder of the cache that holds this revision's files, or some of them; None where there is none."""
        repo, revision = self.reference.repo, self.reference.revision
        try:
            return Path(self._api.snapshot_download(repo, revision=revision, local_files_only=True))
        except self._errors.LocalEntryNotFoundError as error:  # since 2.0 also where some files are there
            folder = getattr(error, "snapshot_path", None)
            return None if folder is None else Path(folder)

    def _asked(self, question: Callable[[], _T]) -> _T:
        """Return the answer to a question; `_UnreachableError` where there is none, `HubError` for a refusal."""
        try:
            return question()
        except Exception as error:
            # Which library speaks HTTP, and thus the errors of connections, changes with the package's major versions.
            if (told := self._told(error)) is not None:
                raise told from error
            raise

    def _told(self, error: Exception) -> Exception | None:
        """Return what an exception of the package means; None for one that means nothing known."""
        errors, endpoint = self._errors, self._api.endpoint
        if isinstance(error, errors.OfflineModeIsEnabled):
            return _UnreachableError("HF_HUB_OFFLINE is set")
        if isinstance(error, errors.LocalEntryNotFoundError):  # before HfHubHTTPError, which it was until 1.0
            return _UnreachableError(f"{endpoint} cannot be reached")
        if isinstance(error, errors.HfHubHTTPError):
            return self._of_answer(error)
        if isinstance(error, errors.HFValidationError):
            return self._refusal(f"the hub's package refuses it: {error}", ErrorCode.INVALID_PARAM)
        if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError | TimeoutError):
            return self._refusal(f"the hub's cache cannot be written: {error.strerror}; HF_HOME names another place")
        is_transport = isinstance(error, (OSError, *errors.HfHubHTTPError.__bases__))  # the HTTP library's own errors
        return _UnreachableError(f"{endpoint} cannot be reached") if is_transport else None

    def _of_answer(self, error: Any) -> Exception:
        """Return what an answer of the hub means that is an error."""
        errors, repo = self._errors, self.reference.repo
        status = getattr(error.response, "status_code", 0)
        if status == _BUSY or status >= _FAILED:
            return _UnreachableError(f"{self._api.endpoint} answers with the status {status}")
        code = ErrorCode.FILE_NOT_FOUND
        if isinstance(error, errors.GatedRepoError):
            code = ErrorCode.HUB_FAILED
            page = f"{self._api.endpoint}/{repo}"
            why = f"it is gated: ask for access at {page}, and give a token in HF_TOKEN or by `hf auth login`"
        elif isinstance(error, errors.RepositoryNotFoundError):
            why = "the hub has no such model, or it is private and the token (HF_TOKEN, `hf auth login`) does not open it"
        elif isinstance(error, errors.RevisionNotFoundError):
            why = f"{repo} has no branch, tag or commit {self.reference.revision or 'main'!r}"
        elif status in _REFUSED:
            code = ErrorCode.HUB_FAILED
            why = f"the hub refuses the token (status {status}); see HF_TOKEN and `hf auth whoami`"
        else:
            why = f"the hub answers with the status {status}"
        return self._refusal(why, code)

    def _refusal(self, why: str, code: ErrorCode = ErrorCode.HUB_FAILED) -> HubError:
        return HubError(f"{self.reference}: {why}", code=code)
