"""The child process that opens a projector file first: a damaged one may end the process that opens it.

    python -m llamafu.libraries.projector_probe LIBLLAMA FAMILY LIBMTMD FAMILY MODEL PROJECTOR

Exit status 0: it opened, or was refused by a return code, which the parent's own try reports.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

_SMALL = 32 << 20
"""Bytes up to which a projector is computed with too: that takes some milliseconds."""
_SIDE = 32


def main(arguments: list[str]) -> int:
    """Open one projector beside the vocabulary of its model."""
    text_library, text_family, path, family, model, projector = arguments
    from llamafu._native.first_open import bound_memory
    from llamafu._native.library import open_library
    from llamafu._native.media.library import open_media_library
    from llamafu._native.media.projector import Projector
    from llamafu.errors import LlamafuError

    bound_memory(projector)
    library = open_library(Path(text_library), text_family)
    params = library.lib.llama_model_default_params()
    params.vocab_only = True
    pointer = library.lib.llama_model_load_from_file(os.fsencode(model), params)
    if pointer == library.ffi.NULL:
        return 0
    media = open_media_library(library, Path(path), family)
    stand_in = SimpleNamespace(pointer=pointer, path=Path(model), n_embd_inp=0)
    try:
        opened = Projector(media, Path(projector), stand_in, n_threads=1, gpu=False)  # type: ignore[arg-type] # no more is read
        if opened.sees and Path(projector).stat().st_size <= _SMALL:
            import numpy as np

            opened.encode_image(np.zeros((_SIDE, _SIDE, 3), np.uint8))
    except LlamafuError:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
