"""Reading GGUF adapters, with every property checked that libllama needs to load them and decode with them.

libllama's loader aborts on a wrongly typed `general.type` or `adapter.lora.alpha`, crashes on integer tensors, aborts at
the first decode on stacked tensors outside experts, accepts a NaN alpha and silently drops norm vectors. So every file
is read and checked here first, and libllama is given the bytes that were checked, which an `AdapterFile` holds.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import stat
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from llamafu._util.adapter_files import CONFIG
from llamafu.adapters.gguf.container import SUFFIX
from llamafu.adapters.gguf.reader import read_container
from llamafu.adapters.gguf.values import USABLE_TYPES, as_float32, not_finite
from llamafu.adapters.info import AdapterInfo, is_expert, is_flipped, summarise
from llamafu.adapters.invalid_file import invalid_file
from llamafu.errors import ErrorCode, LoraLoadError
from llamafu.hub.folder_name import folder_name
from llamafu.hub.local import local_adapter

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from llamafu.adapters.gguf.container import Container
    from llamafu.adapters.gguf.tensor_entry import TensorEntry
    from llamafu.adapters.info import TensorInfo

_SUFFIX_A, _SUFFIX_B = ".lora_a", ".lora_b"
_PEEK_ABOVE = 64 << 20  # bytes; of larger files the header is checked before the rest is read

_SOUND_LIMIT = 256
_sound: dict[str, tuple[AdapterInfo, dict[str, Pair]]] = {}
"""The results of the last checks of sound files, by digest. Dictionary operations are atomic, so any thread may check."""
_layouts: dict[tuple[object, ...], tuple[tuple[TensorInfo, ...], dict[str, Pair]]] = {}
"""The parts of these results that files of the same tensors share, by alpha and tensors."""


class AdapterFileNotFoundError(LoraLoadError, FileNotFoundError):
    """No adapter file at this path."""

    code = ErrorCode.FILE_NOT_FOUND


class Pair(NamedTuple):
    """The entries of the two factors of one base tensor's change, B A."""

    a: TensorEntry
    b: TensorEntry


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """A checked adapter: its bytes, and what is in them. Immutable, so any thread may use it."""

    path: Path
    content: bytes
    """The file as it was checked, and the bytes to load: the file on disk may have changed since."""
    info: AdapterInfo
    pairs: dict[str, Pair]
    """The factors by the name of the base tensor that they change."""

    @property
    def digest(self) -> str:
        """SHA-256 of the content, in hexadecimal, by which adapters are compared everywhere."""
        return self.info.digest

    def matrix(self, entry: TensorEntry) -> NDArray[np.float32]:
        """Return one factor as a new float32 array: A is (rank, in), B is (out, rank).

        Stacks of experts have a dimension in front; for token embeddings A is (vocabulary, rank).
        """
        return as_float32(self.content, entry)


def inspect_adapter(path: str | os.PathLike[str]) -> AdapterInfo:
    """Read and check the adapter at `path`, and return its facts. Raises what `read_adapter` raises."""
    return read_adapter(path).info


def read_adapter(path: str | os.PathLike[str]) -> AdapterFile:
    """Read and check the adapter at `path`, a GGUF file, or a reference to one on the Hugging Face hub (`hf:owner/repo`).

    Raises:
        HubError: the reference leads to no adapter, or it cannot be fetched.
        AdapterFileNotFoundError: nothing is there (a LoraLoadError and a FileNotFoundError).
        LoraLoadError: the file cannot be read.
        InvalidAdapterFileError: it is no sound adapter; `.problems` has everything that is wrong.

    """
    path = local_adapter(path)
    return check_adapter(_read(path), path)


def default_name(path: Path) -> str:
    """An adapter's name when none is given: a file's without `.gguf`, or what `folder_name` says, whatever dots are in it."""
    return path.stem if path.suffix == SUFFIX and not path.is_dir() else folder_name(path)


def check_adapter(content: bytes, path: Path) -> AdapterFile:
    """Check the adapter file `content`, which came from `path`; raises InvalidAdapterFileError like `read_adapter`.

    The results of the last 256 sound files are cached by digest.
    """
    digest = hashlib.sha256(content).hexdigest()
    if (known := _sound.get(digest)) is not None:
        return AdapterFile(path, content, *known)
    container = read_container(content, name=str(path))
    _refuse_others(container, path)
    problems = _metadata_problems(container)
    pairs: dict[str, Pair] = {}
    for name, factors in _by_target(container, problems).items():
        if len(factors) == len(Pair._fields):
            pair = pairs[name] = Pair(factors[_SUFFIX_A], factors[_SUFFIX_B])
            if problem := _pair_problem(name, pair):
                problems.append(problem)
        else:
            present, missing = (_SUFFIX_A, _SUFFIX_B) if _SUFFIX_A in factors else (_SUFFIX_B, _SUFFIX_A)
            problems.append(f"{name + present!r} has no partner {name + missing!r}")
    entries = [entry for pair in pairs.values() for entry in pair]
    unusable = [entry for entry in entries if _type_name(entry) not in USABLE_TYPES]
    problems += [
        f"tensor {entry.name!r} is of type {_type_name(entry)}; adapters may hold {', '.join(sorted(USABLE_TYPES))}"
        for entry in unusable
    ]
    usable = [entry for entry in entries if _type_name(entry) in USABLE_TYPES]
    problems += [f"tensor {entry.name!r} holds NaN or infinite values" for entry in not_finite(content, usable)]
    if problems:
        raise invalid_file(str(path), problems)
    info, pairs = _interned(summarise(container.metadata, pairs, digest), pairs)
    if len(_sound) >= _SOUND_LIMIT:
        _sound.pop(next(iter(_sound)), None)
    _sound[digest] = (info, pairs)
    return AdapterFile(path, content, info, pairs)


def _interned(info: AdapterInfo, pairs: dict[str, Pair]) -> tuple[AdapterInfo, dict[str, Pair]]:
    """Share the tensor lists of files with the same alpha and tensors: they are most of the cache's memory."""
    layout = (info.alpha, *pairs.items())
    known = _layouts.get(layout)
    if known is None:
        if len(_layouts) >= _SOUND_LIMIT:
            _layouts.pop(next(iter(_layouts)), None)
        known = _layouts[layout] = (info.tensors, pairs)
    return replace(info, tensors=known[0]), known[1]


def _read(path: Path) -> bytes:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise invalid_file(str(path), [_folder_problem(path)])
        if not stat.S_ISREG(status.st_mode):
            raise invalid_file(str(path), ["a device, pipe or socket; give a GGUF adapter file"])
        # Not blocking: if a pipe replaces the file at this moment, opening it must not wait for a writer.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        with open(os.open(path, flags), "rb", buffering=0) as file:  # noqa: PTH123 - Path.open takes no descriptor
            if status.st_size > _PEEK_ABOVE:
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                    _refuse_others(read_container(view, name=str(path), whole=False), path)
            return file.readall()
    except (FileNotFoundError, NotADirectoryError) as error:
        message = f"{path}: there is no such adapter file"
        raise AdapterFileNotFoundError(message) from error
    except OSError as error:
        message = f"{path}: the adapter file cannot be read: {error.strerror}"
        raise LoraLoadError(message, code=ErrorCode.FILE_READ_FAILED) from error


def _folder_problem(path: Path) -> str:
    if (path / CONFIG).exists():
        return (
            "a folder with a PEFT adapter, which needs its base model: load it with Llamafu, or convert it first "
            "(`llamafu convert`); commands take it with --base MODEL"
        )
    if weights := sorted(each.name for each in path.glob("adapter*.*") if each.suffix in {".safetensors", ".bin"}):
        return f"a folder with {weights[0]} and without adapter_config.json, which PEFT's save_pretrained writes beside it"
    return "a folder; give a GGUF adapter file"


def _refuse_others(container: Container, path: Path) -> None:
    """Refuse a GGUF file of another kind with one problem, instead of one for each of its tensors."""
    if (what := other_kind(container)) is not None:
        why = f"no adapter but {what}: an adapter has the general.type 'adapter' and tensors ending in .lora_a and .lora_b"
        raise invalid_file(str(path), [why])


def other_kind(container: Container) -> str | None:
    """Return what a GGUF file is by its header, if it is no adapter; None if it is one."""
    kind = container.metadata.get("general.type", "untyped")
    if kind == "adapter" or any(name.endswith((_SUFFIX_A, _SUFFIX_B)) for name in container.tensors):
        return None
    architecture = container.metadata.get("general.architecture", "unknown architecture")
    return f"a base model or other GGUF file ({kind}, {architecture}, {len(container.tensors)} tensors)"


def _metadata_problems(container: Container) -> list[str]:
    problems = []
    for key, legal in (("general.type", "adapter"), ("adapter.type", "lora"), ("general.architecture", None)):
        kind = _kind(container, key)
        value = container.metadata.get(key)
        if kind is None:
            problems.append(f"metadata key {key!r} is missing" + (f"; it must be {legal!r}" if legal else ""))
        elif kind != "STRING":
            problems.append(f"metadata key {key!r} is of type {kind}; it must be a STRING" + (f", {legal!r}" if legal else ""))
        elif (legal and value != legal) or not value:
            problems.append(f"metadata key {key!r} is {value!r}; it must be {repr(legal) if legal else 'the name of one'}")
    key = "adapter.lora.alpha"
    kind = _kind(container, key)
    alpha = container.metadata.get(key)
    if kind not in (None, "FLOAT32"):
        problems.append(f"metadata key {key!r} is of type {kind}; it must be FLOAT32")
    elif isinstance(alpha, float) and not (math.isfinite(alpha) and alpha >= 0):
        # A negative alpha would reverse every scale's sign, which `scale_range` is meant to limit.
        problems.append(f"metadata key {key!r} is {alpha}; it must be finite and at least 0 (0 makes the strength 1)")
    key = "adapter.alora.invocation_tokens"
    kind = _kind(container, key)
    if kind not in (None, "ARRAY of UINT32"):
        problems.append(f"metadata key {key!r} is of type {kind}; it must be an ARRAY of UINT32")
    return problems


def _kind(container: Container, key: str) -> str | None:
    """Return the GGUF type of a metadata value; None where it is missing."""
    kind, element = container.metadata_types.get(key, (None, None))
    return kind if element is None else f"{kind} of {element}"


def _by_target(container: Container, problems: list[str]) -> Mapping[str, dict[str, TensorEntry]]:
    """Group the factors by base tensor and suffix; tensors that are no factors are added to `problems`."""
    targets: dict[str, dict[str, TensorEntry]] = {}
    for entry in container.tensors.values():
        target, suffix = entry.name[: -len(_SUFFIX_A)], entry.name[-len(_SUFFIX_A) :]
        if suffix not in (_SUFFIX_A, _SUFFIX_B):
            why = "; libllama would drop this norm vector in silence" if entry.name.endswith("_norm.weight") else ""
            problems.append(f"tensor {entry.name!r} is no LoRA factor: its name ends neither in .lora_a nor in .lora_b{why}")
        elif not target or _SUFFIX_A in target or _SUFFIX_B in target:
            problems.append(f"tensor {entry.name!r} names no base tensor before its suffix")
        else:
            targets.setdefault(target, {})[suffix] = entry
    if not container.tensors:
        problems.append("the file has no tensors")
    return targets


def _pair_problem(name: str, pair: Pair) -> str | None:
    a, b = pair.a.shape, pair.b.shape
    dimensions, where = (3, "for experts") if is_expert(name) else (2, "outside experts")
    if len(a) != dimensions or len(b) != dimensions:
        why = f"both must have {dimensions} dimensions {where}"
    elif a[2:] != b[2:]:
        why = f"they disagree about the number of experts, {a[2]} and {b[2]}"
    elif is_flipped(name) and a[0] != b[0]:
        why = f"the ranks A[0] = {a[0]} and B[0] = {b[0]} must be equal for token embeddings"
    elif not is_flipped(name) and a[1] != b[0]:
        why = f"the ranks A[1] = {a[1]} and B[0] = {b[0]} must be equal"
    else:
        return None
    return f"{name!r}: A is {list(a)} and B is {list(b)} (GGUF order); {why}"


def _type_name(entry: TensorEntry) -> str:
    assert entry.type is not None  # noqa: S101 - whole files have known types only
    return entry.type.name
