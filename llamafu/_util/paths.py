"""Where Llamafu keeps files: the user's data folder (libraries) and cache folder (models, results of checks)."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def data_dir() -> Path:
    """Folder for what the user installed; `LLAMAFU_DATA` overrides platformdirs' choice."""
    override = os.environ.get("LLAMAFU_DATA")
    return Path(override) if override else Path(platformdirs.user_data_dir("llamafu", appauthor=False))


def cache_dir() -> Path:
    """Folder for what can be fetched or computed again; `LLAMAFU_CACHE` overrides platformdirs' choice."""
    override = os.environ.get("LLAMAFU_CACHE")
    return Path(override) if override else Path(platformdirs.user_cache_dir("llamafu", appauthor=False))


def library_dir() -> Path:
    """Folder of the user's own libllama, written by `llamafu lib install` and `llamafu lib build`."""
    return data_dir() / "lib"


def model_dir() -> Path:
    """Folder of downloaded example models."""
    return cache_dir() / "models"
