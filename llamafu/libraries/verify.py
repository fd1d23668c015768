"""Verify a libllama with the probe, in a child process, and cache the result.

The key of the cache covers the content of the library file, the ggml files beside it, the header that describes it, this
processor and the modules of the probe: when one of them changes, the library is verified anew. Refusals are not cached.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llamafu._native.abi import families
from llamafu._util.kept_results import KeptResult, file_states
from llamafu._util.system import hardware
from llamafu.errors import AbiMismatchError, LibraryNotFoundError, LlamafuError

_TIMEOUT = 60.0
_HERE = Path(__file__).resolve().parent
_NATIVE = _HERE.parent / "_native"
_PROBE_FOLDERS = (_HERE, _HERE / "proof", _NATIVE, _NATIVE / "abi", _NATIVE / "graph", _HERE.parent / "_util" / "system")
"""The folders whose modules probe a library."""


@dataclass(frozen=True, slots=True)
class VerifiedLibrary:
    """A libllama that may be loaded into this process with `library.open_library(path, family)`.

    `devices` are (name, description, kind, memory in bytes); `system` is the library's own line of CPU features;
    `frees_adapters` is False on builds whose adapter free does nothing, None where that cannot be told;
    `digest` is the SHA-256 of the file.
    """

    path: Path
    family: str
    version: str
    devices: tuple[tuple[str, str, str, int], ...]
    system: str
    frees_adapters: bool | None
    digest: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a file may not be loaded, and what to do."""

    path: Path
    cause: str
    mend: str

    def error(self, origin: str = "") -> LlamafuError:
        """Return the exception to raise; `origin` says who named this path."""
        kind = AbiMismatchError if self.path.is_file() else LibraryNotFoundError
        where = f"{self.path} ({origin})" if origin else str(self.path)
        return kind(f"cannot use {where}: {self.cause}; {self.mend}")


def verify_library(path: Path) -> VerifiedLibrary | Refusal:
    """Return what is known of the libllama at `path`, from the cache or from a child process (about 0.3 s), or a refusal."""
    path = path.resolve()
    install = "point at a libllama, or get one: `llamafu lib install`"
    if path.is_dir():
        return Refusal(path, "there is no libllama in this folder, nor in its lib, bin or build/bin", install)
    try:
        digest = _digest(path)
    except FileNotFoundError:
        return Refusal(path, "there is no such file", install)
    except OSError as error:
        return Refusal(path, f"it cannot be read ({error.strerror})", install)
    kept = KeptResult.of("abi", _facts(path, digest))
    if (known := _known(kept, path, digest)) is not None:
        return known
    answer = _probe(path)
    if not answer["ok"]:
        return Refusal(path, answer["cause"], answer["mend"])
    verified = _from_answer(answer, path, digest)
    kept.write({name: value for name, value in asdict(verified).items() if name not in {"path", "digest"}})
    return verified


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _facts(path: Path, digest: str) -> list[str]:
    """Return everything that the result depends on."""
    # The variable itself counts too: a header that it names is the only family that is tried, one that is found is the first.
    facts = [digest, str(path), os.environ.get("LLAMAFU_HEADER", ""), *sorted(hardware.cpu_flags())]
    header = families.header_beside(path)
    if header is not None:
        places = (header.parent, header.parent.parent / "ggml" / "include")
        read = [header, *(place / name for place in places for name in ("ggml.h", "ggml-backend.h"))]
        facts += [str(header), *(_digest(file) for file in read if file.is_file())]
    ggml = (entry for place in (path.parent, path.parent.parent / "bin") for entry in _entries(place) if "ggml" in entry.name)
    probe = (entry for place in _PROBE_FOLDERS for entry in _entries(place))
    return [*facts, *sorted(file_states(Path(entry) for entry in (*ggml, *probe) if entry.is_file()))]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _known(kept: KeptResult, path: Path, digest: str) -> VerifiedLibrary | None:
    try:
        return _from_answer(kept.read() or {}, path, digest)
    except (ValueError, KeyError, TypeError):  # absent, or damaged: then the library is probed again
        return None


def _from_answer(answer: dict[str, Any], path: Path, digest: str) -> VerifiedLibrary:
    family, version, system, frees = (answer[name] for name in ("family", "version", "system", "frees_adapters"))
    if not (isinstance(family, str) and isinstance(version, str) and isinstance(system, str) and frees in {True, False, None}):
        message = "a field has the wrong type"
        raise TypeError(message)
    devices = tuple((str(name), str(about), str(kind), int(total)) for name, about, kind, total in answer["devices"])
    return VerifiedLibrary(path, family, version, devices, system, frees, digest)


def _probe(path: Path) -> dict[str, Any]:
    """Run the probe; when it crashes while it uses a family, run it again without that family."""
    skipped: list[str] = []
    while True:
        answer, tried, death = _run_probe(path, skipped)
        if answer is not None:
            if skipped and not answer["ok"] and "crashed" not in answer["cause"]:
                answer["cause"] += f"; and it crashed while in use with {', '.join(skipped)}"
            return answer
        if tried is None or tried in skipped:
            mend = "use another build: `llamafu lib install`, or compile one here: `llamafu lib build`"
            return {"ok": False, "cause": death, "mend": mend}
        skipped.append(tried)


def _run_probe(path: Path, skipped: list[str]) -> tuple[dict[str, Any] | None, str | None, str]:
    """Run the probe once; return its answer, or the family that was in use when it crashed and how it ended."""
    import subprocess

    from llamafu._util import child_process
    from llamafu._util.system import processes

    try:
        done = child_process.run("llamafu.libraries.probe", str(path), *skipped, timeout=_TIMEOUT)
    except subprocess.TimeoutExpired:
        return None, None, f"it did not answer within {_TIMEOUT:.0f} s and was stopped"
    lines = done.stdout.decode("utf-8", "surrogateescape").splitlines()
    if done.returncode == 0 and lines and lines[-1].startswith("{"):
        answer: dict[str, Any] = json.loads(lines[-1])
        return answer, None, ""
    trials = [line.removeprefix("trying ") for line in lines if line.startswith("trying ")]
    if not processes.crashed(done.returncode):  # a Python error, not a crash: skipping a family would not help
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["nothing"]
        ours = re.sub(r"^llamafu\.errors\.\w+: ", "", said[0])
        return None, None, ours if ours != said[0] else f"the probe failed and said: {said[0]}"
    return None, (trials[-1] if trials else None), f"it crashed on loading ({processes.ending(done.returncode)})"
