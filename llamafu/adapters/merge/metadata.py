"""The metadata of a merged adapter: where it came from, and what its sources agree on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llamafu.adapters.factors import names
from llamafu.adapters.peft.folder import base_model_of
from llamafu.adapters.peft.gguf_metadata import HUB_ID
from llamafu.adapters.peft.source_names import KEYS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llamafu.adapters.file import AdapterFile
    from llamafu.adapters.merge.methods import MergeOptions
    from llamafu.adapters.writer import Field

_BASE_KEYS = ("name", "author", "version", "organization", "url", "doi", "uuid", "repo_url")


def merge_metadata(files: Sequence[AdapterFile], weights: Sequence[float], options: MergeOptions) -> dict[str, Field]:
    """Return the metadata of what `files` are merged to: sources, weights and options, in keys `llamafu.merge.*`."""
    given = {
        "rank": None if options.rank is None else np.uint64(options.rank),
        "density": None if options.density is None else np.float64(options.density),
        "seed": None if options.seed is None else np.uint64(options.seed),
    }
    return {
        **_common_base(files),
        **_common_names(files),
        "llamafu.merge.method": options.method,
        "llamafu.merge.names": names(files),
        "llamafu.merge.digests": [file.digest for file in files],
        "llamafu.merge.weights": np.array(weights),
        **{f"llamafu.merge.{key}": value for key, value in given.items() if value is not None},
    }


def _common_base(files: Sequence[AdapterFile]) -> dict[str, Field]:
    """Return what the headers say of the base model, if all say the same."""
    found: list[dict[str, Field]] = []
    for file in files:
        keys = [f"general.base_model.0.{key}" for key in _BASE_KEYS]
        found.append({key: value for key in keys if isinstance(value := file.info.metadata.get(key), str)})
    if not found[0] or any(other != found[0] for other in found):
        return {}
    named = {base_model_of(file.path) for file in files if file.path.is_dir()}
    if len(named) == 1 and (hub := named.pop()) and HUB_ID.fullmatch(hub):
        found[0].setdefault("general.base_model.0.repo_url", f"https://huggingface.co/{hub}")
    return {"general.base_model.count": np.uint32(1), **found[0]}


def _common_names(files: Sequence[AdapterFile]) -> dict[str, Field]:
    """Return the sources' names for the decoder of their model, if all that have some have the same."""
    found = [{key: value for key in KEYS if isinstance(value := file.info.metadata.get(key), str)} for file in files]
    named = [one for one in found if one]
    return {**named[0]} if named and all(one == named[0] for one in named) else {}
