"""What a file or folder is, by its header or configuration alone: an adapter, or something else that looks like one."""

from __future__ import annotations

import json
import mmap
from typing import TYPE_CHECKING

from llamafu.adapters.container import read_container
from llamafu.adapters.file import other_kind
from llamafu.adapters.peft import CONFIG
from llamafu.errors import InvalidAdapterFileError

if TYPE_CHECKING:
    from pathlib import Path

_LARGEST_CONFIG = 10_000_000  # bytes
_OWN_WEIGHTS = ("adapter_model", "adapters")
"""Of PEFT and of mlx-lm, which also keeps those of earlier steps: `0000100_adapters.safetensors`."""
_WEIGHTS = (".gguf", ".safetensors", ".pth", ".ckpt")
_MODEL_BIN = "pytorch_model"
_MOST_NAMED = 3


def why_no_adapter(path: Path) -> str | None:
    """Say what is at `path` in place of an adapter, as what follows "it is"; None for an adapter, sound or not.

    A folder with more in it than one adapter is none either: whole models, or further folders.
    """
    try:
        return _of_folder(path) if path.is_dir() else _of_file(path)
    except OSError as error:
        return f"not readable ({error.strerror})"


def _of_file(path: Path) -> str | None:
    if not path.is_file():
        return "no file"
    if not path.stat().st_size:
        return "an empty file"
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        try:
            return other_kind(read_container(view, name=path.name, whole=False))
        except InvalidAdapterFileError as error:
            return f"damaged or of another kind ({error.problems[0] if error.problems else error})"


def _of_folder(path: Path) -> str | None:
    config = path / CONFIG
    if not config.is_file():
        return f"a folder without {CONFIG}"
    more = sorted(f"{each.name}/" if each.is_dir() else each.name for each in path.iterdir() if _is_more(each))
    if more:
        rest = f" and {len(more) - _MOST_NAMED} more" if len(more) > _MOST_NAMED else ""
        return f"a folder with more than an adapter in it ({', '.join(more[:_MOST_NAMED])}{rest})"
    try:
        with config.open("rb") as file:
            settings = json.loads(file.read(_LARGEST_CONFIG).decode("utf-8-sig"))
        kind = settings.get("peft_type", "LORA")
    except (ValueError, RecursionError, AttributeError):
        return f"a folder whose {CONFIG} is no sound JSON object"
    return None if kind == "LORA" else f"a PEFT folder of the kind {str(kind)[:40]!r}, which is no LoRA adapter"


def _is_more(path: Path) -> bool:
    """Whether this, in an adapter's folder, is worth more than what PEFT writes there beside the adapter."""
    if path.is_dir():
        return True
    is_weights = path.suffix in _WEIGHTS or path.name.startswith(_MODEL_BIN)
    return is_weights and path.stem not in _OWN_WEIGHTS and not path.stem.endswith("_adapters")
