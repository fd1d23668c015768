"""Whether a file or folder is an adapter, by its header or configuration alone, and what it is otherwise."""

from __future__ import annotations

import json
import mmap
import re
from typing import TYPE_CHECKING

from llamafu._util.adapter_files import CONFIG
from llamafu.adapters.file import other_kind
from llamafu.adapters.gguf.reader import read_container
from llamafu.adapters.peft.config import LARGEST_CONFIG
from llamafu.errors import InvalidAdapterFileError

if TYPE_CHECKING:
    from pathlib import Path

_FOLDERS = (".cache", ".git", "runs")
"""Folders that downloads, clones and trainers' logs leave in an adapter's folder."""
_FILES = re.compile(
    r"adapter_config\.json|adapter_model(-\d{5}-of-\d{5})?\.(safetensors|bin)|adapter_model\.(safetensors|bin)\.index\.json"
    r"|(\d+_)?adapters\.safetensors"  # of mlx-lm, with those of earlier steps
    r"|(README|LICENSE|NOTICE|USE_POLICY)(\.md|\.txt)?|\.git(attributes|ignore)|\.DS_Store"
    r"|tokenizer(_config)?\.json|(tokenizer|spiece|sentencepiece\.bpe)\.model|tokenizer\.model\.v\d+|tekken\.json|vocab\.(json|txt)"
    r"|merges\.txt|special_tokens_map\.json|added_tokens\.json|chat_template\.(jinja|json)"
    r"|(generation_|processor_|preprocessor_|video_preprocessor_)?config\.json"
    r"|trainer_state\.json|training_args\.bin|(optimizer|scheduler|scaler)\.(pt|bin)|rng_state(_\d+)?\.pth"
    r"|(all|train|eval|test|predict)_results\.json"
)
"""Files that belong to an adapter's folder: weights, configuration, card, tokenizer, and a trainer's state."""
_MOST_NAMED = 3


def why_no_adapter(path: Path) -> str | None:
    """Return what is at `path` instead of an adapter, to follow "it is"; None for an adapter, sound or not."""
    try:
        return _of_folder(path) if path.is_dir() else _of_file(path)
    except OSError as error:
        return f"not readable ({error.strerror})"


def what_more(path: Path) -> str:
    """List, for a message, what removing the adapter at `path` would delete that is no part of it; empty for nothing.

    Raises OSError where its folder cannot be read.
    """
    if not path.is_dir() or path.is_symlink():
        return ""
    more = sorted(f"{each.name}/" if each.is_dir() else each.name for each in path.iterdir() if _is_more(each))
    rest = f" and {len(more) - _MOST_NAMED} more" if len(more) > _MOST_NAMED else ""
    return f"{', '.join(more[:_MOST_NAMED])}{rest}"


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
    try:
        with config.open("rb") as file:
            settings = json.loads(file.read(LARGEST_CONFIG).decode("utf-8-sig"))
        kind = settings.get("peft_type", "LORA")
    except (ValueError, RecursionError, AttributeError):
        return f"a folder whose {CONFIG} is no sound JSON object"
    return None if kind == "LORA" else f"a PEFT folder of the kind {str(kind)[:40]!r}, which is no LoRA adapter"


def _is_more(path: Path) -> bool:
    """Whether a file or folder in an adapter's folder is none that PEFT, mlx-lm, trainers or downloads write there."""
    if path.is_dir():
        return path.name not in _FOLDERS
    return _FILES.fullmatch(path.name) is None
