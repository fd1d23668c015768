"""Which files of a repository a reference means."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal, NamedTuple

from llamafu._util.adapter_files import CONFIG, WEIGHTS
from llamafu._util.listing import listed
from llamafu._util.shard_names import shard_names
from llamafu.errors import ErrorCode, HubError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from llamafu.hub.reference import HubReference

Kind = Literal["model", "adapter", "projector"]

_SUFFIX = ".gguf"
_PROJECTOR, _IMATRIX = "mmproj", "imatrix"
"""Parts of the names of GGUF files that are no models."""
_PREFERRED: dict[Kind, tuple[str, ...]] = {
    "model": ("Q4_K_M", "Q8_0"),
    "adapter": ("F16",),
    "projector": ("F16", "BF16"),
}
"""The quantisations that are taken first where a reference names none; of models, llama.cpp's."""
_LABEL = re.compile(
    r"(?<![A-Z0-9])(?:(?:UD-)?(?:I?Q|TQ)[0-9](?:_[A-Z0-9]+)*|BF16|FP?16|FP?32|MXFP4(?:_MOE)?|NVFP4)(?![A-Z0-9_])", re.IGNORECASE
)


class Chosen(NamedTuple):
    """Files of a repository to fetch, and which of them, or which folder, is what the reference means ("" for the root)."""

    files: tuple[str, ...]
    place: str


def choose(kind: Kind, reference: HubReference, names: Collection[str]) -> Chosen:
    """Return what `reference` means among the files `names` of its repository; `HubError` where nothing or too much fits."""
    if reference.path is not None:
        return _at_path(kind, reference, reference.path, names)
    files = _candidates(kind, names)
    if reference.quantisation is not None:
        return _only(kind, reference, _with_quantisation(files, reference.quantisation), files, names)
    if kind == "adapter":
        if len(files) != 1 and (folder := _peft_folder(reference, "", names)) is not None:
            return folder
        found = files if len(files) == 1 else _with_quantisation(files, *_PREFERRED[kind]) or files
        return _only(kind, reference, found, files, names)
    for quantisation in _PREFERRED[kind]:
        if found := _with_quantisation(files, quantisation):
            return _all_parts(reference, found[0], names)
    return _only(kind, reference, files[:1], files, names)


def _at_path(kind: Kind, reference: HubReference, path: str, names: Collection[str]) -> Chosen:
    if path in names:
        return _all_parts(reference, path, names)
    if kind == "adapter" and (folder := _peft_folder(reference, path, names)) is not None:
        return folder
    inside = sorted(name for name in names if name.startswith(f"{path}/"))
    there = inside or _candidates(kind, names) or sorted(names)
    what = f"{path} is a folder without {CONFIG}" if inside and kind == "adapter" else f"there is no file {path}"
    raise _missing(reference, f"{what} (there are: {listed(there)})")


def _only(kind: Kind, reference: HubReference, found: Sequence[str], files: Sequence[str], names: Collection[str]) -> Chosen:
    """Return the one file that was found among `files`, with all of its parts."""
    if len(found) == 1:
        return _all_parts(reference, found[0], names)
    if found:
        message = f"{reference}: {len(found)} files may be meant ({listed(found)}); name one by its path, hf:OWNER/REPO/PATH"
        raise HubError(message, code=ErrorCode.INVALID_PARAM)
    if files:
        labels = sorted({label[0] if (label := _LABEL.search(name)) else name for name in files})
        raise _missing(reference, f"no {kind} has the quantisation {reference.quantisation} (there are: {listed(labels)})")
    needed = f"no {_SUFFIX} file and no {CONFIG}" if kind == "adapter" else f"no {_SUFFIX} file of a {kind}"
    raise _missing(reference, f"{needed} is in this repository (files: {listed(sorted(names))})")


def _candidates(kind: Kind, names: Collection[str]) -> list[str]:
    """Return the GGUF files that may be of a kind by their names, sorted; of split ones the first parts."""
    files = [name for name in sorted(names) if name.endswith(_SUFFIX) and shard_names(name)[0] == name]
    files = [name for name in files if (_PROJECTOR in _last(name)) == (kind == "projector")]
    return [name for name in files if _IMATRIX not in _last(name)]


def _last(name: str) -> str:
    return name.rpartition("/")[2].lower()


def _with_quantisation(files: Sequence[str], quantisation: str) -> list[str]:
    """Return the files whose names have a quantisation in them, not as part of a longer one: Q4_K is not Q4_K_M's."""
    whole = re.compile(rf"(?<![A-Za-z0-9]){re.escape(quantisation)}(?![A-Za-z0-9_])", re.IGNORECASE)
    return [name for name in files if whole.search(name)]


def _all_parts(reference: HubReference, name: str, names: Collection[str]) -> Chosen:
    """Return a file with all parts of the model that it is one of."""
    parts = shard_names(name)
    parts = parts if name in parts else [name]
    if missing := [part for part in parts if part not in names]:
        raise _missing(reference, f"{name} is one of {len(parts)} parts, and {listed(missing)} is not there")
    return Chosen(tuple(parts), name)


def _peft_folder(reference: HubReference, folder: str, names: Collection[str]) -> Chosen | None:
    """Return the two files of the adapter in a folder of the repository; None where no configuration is in it."""
    prefix = f"{folder}/" if folder else ""
    if f"{prefix}{CONFIG}" not in names:
        return None
    weights = next((each for each in WEIGHTS if f"{prefix}{each}" in names), None)
    if weights is None:
        raise _missing(reference, f"beside {prefix}{CONFIG} there is none of {', '.join(WEIGHTS)}")
    return Chosen((f"{prefix}{CONFIG}", f"{prefix}{weights}"), folder)


def _missing(reference: HubReference, what: str) -> HubError:
    return HubError(f"{reference}: {what}", code=ErrorCode.FILE_NOT_FOUND)
