"""Opening a projector beside its model."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from llamafu._native.media.projector import Projector
from llamafu._util import child_process
from llamafu._util.kept_results import KeptResult, file_states
from llamafu._util.system import processes
from llamafu.adapters.gguf.base_model import read_header
from llamafu.errors import ModelLoadError
from llamafu.generation.media.encoder import MediaEncoder
from llamafu.hub.local import local_projector
from llamafu.libraries.media import find_media_library

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from llamafu._native.instance import Instance
    from llamafu._native.media.library import MediaLibrary

_TIMEOUT = 120.0


def open_encoder(instance: Instance, path: str | os.PathLike[str]) -> MediaEncoder:
    """Open the projector (mmproj) file of a model.

    Raises `MultimodalError` where this libllama has no libmtmd, `AbiMismatchError` for an unknown one, `ModelLoadError` for a
    file that is missing (a FileNotFoundError too), damaged, no projector, or another model's.
    """
    path = local_projector(path)
    architecture = read_header(path).metadata.get("general.architecture")
    if architecture != "clip":
        message = f"{path} is no projector: its architecture is {architecture!r}; give the mmproj file of the model"
        raise ModelLoadError(message)
    media = find_media_library(instance.model.library)
    _try_in_child(media, instance.model.path, path)
    threads, gpu = instance.context_options.n_threads, instance.placement.offloads
    return MediaEncoder(Projector(media, path, instance.model, n_threads=threads, gpu=gpu))


def _try_in_child(media: MediaLibrary, model: Path, path: Path) -> None:
    """Let a child process open a file that was never opened before; ModelLoadError where that ends it."""
    kept = KeptResult.of("opened", ["projector", *file_states([media.path, media.library.path, model, path])])
    if kept.read() is not None:
        return
    library = media.library
    arguments = str(library.path), library.family, str(media.path), media.family, str(model), str(path)
    try:
        done = child_process.run("llamafu.libraries.projector_probe", *arguments, timeout=_TIMEOUT)
    except subprocess.TimeoutExpired:
        message = f"{path}: libmtmd did not open it within {_TIMEOUT:.0f} s in a process of its own; the file may be damaged"
        raise ModelLoadError(message) from None
    if done.returncode != 0:
        ending = processes.ending(done.returncode)
        message = f"cannot load the projector {path}: opening it ended a process ({ending}); it is damaged: fetch it again"
        raise ModelLoadError(message)
    kept.write({"opens": True})
