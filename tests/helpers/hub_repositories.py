"""Repositories of a hub that tests make up, as a server that the huggingface_hub package asks, or as that package itself."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import types
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from unittest import mock
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_a_member"  # noqa: S105 - nobody's


@dataclass
class Repository:
    """Contents of files by name, at each revision; for the package also paths, which are linked.

    `needs`: "" for everybody's, or "token" (private) or "access" (gated).
    """

    files: dict[str, bytes | Path]
    needs: str = ""
    others: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Files of further branches and tags."""

    def at(self, revision):
        """Return the commit and the files of a revision; None where there is none."""
        named = {"main": self.files, **self.others}
        commits = {self.commit(files): files for files in named.values()}
        files = named.get(revision, commits.get(revision))
        return None if files is None else (self.commit(files), files)

    @staticmethod
    def commit(files):
        return hashlib.sha1(repr(sorted(files.items())).encode(), usedforsecurity=False).hexdigest()


# -- as a server ---------------------------------------------------------------------------------------------------


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked.append(f"{self.command} {self.path}")
        path = urlsplit(self.path).path.strip("/")
        if self.server.status:
            self._answer(self.server.status, b"")
        elif path.startswith("api/models/"):
            owner, name, _, revision, *_ = [*path.removeprefix("api/models/").split("/", 3), "", ""]
            self._info(f"{owner}/{name}", unquote(revision) or "main", is_tree="/tree/" in path)
        else:
            owner, name, _, rest = path.split("/", 3)
            revision, _, file = rest.partition("/")
            self._file(f"{owner}/{name}", unquote(revision), unquote(file))

    do_HEAD = do_GET  # noqa: N815 - http.server's name

    def _found(self, repo, revision):
        """Return commit and files, or None after an answer that says why not."""
        repository = self.server.repositories.get(repo)
        is_member = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository.needs == "token" and not is_member):
            self._refuse(401, "RepoNotFound", "Repository not found")
        elif (found := repository.at(revision)) is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif repository.needs == "access" and not is_member and "/resolve/" in self.path:
            self._refuse(403, "GatedRepo", "Access to this model is restricted")
        else:
            return found
        return None

    def _info(self, repo, revision, *, is_tree):
        if (found := self._found(repo, revision)) is None:
            return
        commit, files = found
        if is_tree:
            told = [{"type": "file", "path": name, "size": len(data), "oid": _etag(data)} for name, data in files.items()]
        else:
            told = {"id": repo, "modelId": repo, "sha": commit, "private": False, "tags": [], "downloads": 0}
            told |= {"siblings": [{"rfilename": name} for name in files]}
        self._answer(200, json.dumps(told).encode(), {"Content-Type": "application/json"})

    def _file(self, repo, revision, name):
        if (found := self._found(repo, revision)) is None:
            return
        commit, files = found
        if name not in files:
            self._refuse(404, "EntryNotFound", "Entry not found")
            return
        headers = {"ETag": f'"{_etag(files[name])}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        self._answer(200, files[name], {**headers, "Content-Type": "application/octet-stream"})

    def _refuse(self, status, code, message):
        self._answer(status, b"", {"X-Error-Code": code, "X-Error-Message": message})

    def _answer(self, status, body, headers=None):
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments):
        pass


def _etag(data):
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


@contextmanager
def hub_server(repositories):
    """Serve repositories by name; `endpoint` is the address, `asked` lists the requests, a `status` that is set answers all."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.repositories, server.asked, server.status = repositories, [], 0
    server.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# -- as the package ------------------------------------------------------------------------------------------------


class HTTPError(Exception):
    """The base of what an HTTP library raises."""


class HfHubHTTPError(HTTPError, OSError):
    def __init__(self, status=404):
        super().__init__(f"status {status}")
        self.response = SimpleNamespace(status_code=status)


class RepositoryNotFoundError(HfHubHTTPError):
    pass


class GatedRepoError(RepositoryNotFoundError):
    pass


class RevisionNotFoundError(HfHubHTTPError):
    pass


class LocalEntryNotFoundError(FileNotFoundError):
    pass


class OfflineModeIsEnabled(ConnectionError):  # noqa: N818 - the package's name
    pass


class HFValidationError(ValueError):
    pass


class HubPackage:
    """What llamafu uses of huggingface_hub, over repositories in memory and a cache folder of the package's layout.

    `raises`: an exception in place of every answer. `token`: whether the caller is a member. `fetched` lists the files.
    """

    endpoint = "https://hub.test"

    def __init__(self, repositories, cache):
        self.repositories = repositories
        self.cache = cache
        self.raises = None
        self.token = False
        self.fetched = []

    def model_info(self, repo, *, revision, timeout):
        assert timeout > 0
        _, files = self._found(repo, revision)
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in files])

    def hf_hub_download(self, repo, name, *, revision):
        commit, files = self._found(repo, revision)
        if self.repositories[repo].needs == "access" and not self.token:
            raise GatedRepoError(403)
        path = self._folder(repo) / "snapshots" / commit / name
        if not path.exists():
            self.fetched.append(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(files[name], Path):
                path.symlink_to(files[name])
            else:
                path.write_bytes(files[name])
        reference = self._folder(repo) / "refs" / (revision or "main")
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(commit)
        return str(path)

    def snapshot_download(self, repo, *, revision, local_files_only):
        assert local_files_only
        reference = self._folder(repo) / "refs" / (revision or "main")
        if not reference.exists():
            raise LocalEntryNotFoundError
        return str(self._folder(repo) / "snapshots" / reference.read_text())

    def _folder(self, repo):
        return Path(self.cache) / f"models--{repo.replace('/', '--')}"

    def _found(self, repo, revision):
        if self.raises is not None:
            raise self.raises
        repository = self.repositories.get(repo)
        if repository is None or (repository.needs == "token" and not self.token):
            raise RepositoryNotFoundError(401)
        found = repository.at(revision or "main")
        if found is None:
            raise RevisionNotFoundError
        return found


ERRORS = (HfHubHTTPError, RepositoryNotFoundError, GatedRepoError, RevisionNotFoundError, LocalEntryNotFoundError)
ERRORS += (OfflineModeIsEnabled, HFValidationError)


@contextmanager
def hub_package(repositories, cache):
    """Put a `HubPackage` in the place of huggingface_hub."""
    api = HubPackage(repositories, cache)
    module, errors = types.ModuleType("huggingface_hub"), types.ModuleType("huggingface_hub.errors")
    module.constants = types.ModuleType("huggingface_hub.constants")
    module.constants.HF_HUB_ETAG_TIMEOUT = 10
    module.errors = errors
    for kind in ERRORS:
        setattr(errors, kind.__name__, kind)
    module.HfApi = lambda *, library_name, library_version: api
    names = {module.__name__: module, errors.__name__: errors, module.constants.__name__: module.constants}
    with mock.patch.dict(sys.modules, names):
        yield api
