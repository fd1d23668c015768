"""The child process that uses an unknown libmtmd first, so that a crash ends only this process.

    python -m llamafu.libraries.media_probe LIBLLAMA FAMILY LIBMTMD [FAMILY_TO_SKIP...]

Prints "trying FAMILY" before a family is used, and one line of JSON at the end: {"ok", "family"} or {"ok", "cause"}. The
defaults of its struct say which families may fit; then a picture is encoded by a projector of some kilobytes, whose rows have
to equal those that NumPy computed (`proof/media.json`), and a PNG file is decoded.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llamafu._native.library import Library

_FOLDER = Path(__file__).with_name("proof")


def main(arguments: list[str]) -> int:
    """Probe one library; the exit status is 0 whenever an answer was printed."""
    text_library, text_family, path, *skipped = arguments
    answer = probe(Path(text_library), text_family, Path(path), frozenset(skipped))
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
    return 0


def probe(text_library: Path, text_family: str, path: Path, skipped: frozenset[str]) -> dict[str, Any]:
    """Find the family of a libmtmd by its defaults and by its use; the answer is a dictionary fit for JSON."""
    from llamafu._native.abi import fingerprint
    from llamafu._native.library import open_library
    from llamafu._native.media import library as media_library
    from llamafu.errors import LlamafuError

    loaded = open_library(text_library, text_family)
    try:
        defaults = fingerprint.take(str(path), fingerprint.MEDIA_DEFAULTS)
    except (AttributeError, OSError) as error:
        return {"ok": False, "cause": f"it cannot be used: {error}"}
    closest: tuple[str, list[str]] | None = None
    for name in media_library.family_names():
        problems = defaults.mismatches(media_library.declarations(name))
        if problems:
            closest = (name, problems) if closest is None or len(problems) < len(closest[1]) else closest
            continue
        if name in skipped:
            return {"ok": False, "cause": f"it crashed while in use with {name}, which its defaults fit"}
        sys.stdout.write(f"trying {name}\n")
        sys.stdout.flush()
        try:
            _use(loaded, path, name)
        except LlamafuError as error:
            return {"ok": False, "cause": f"the family {name} fits its defaults but not its behaviour: {error}"}
        return {"ok": True, "family": name}
    assert closest is not None  # noqa: S101 - there are families
    return {
        "ok": False,
        "cause": f"its structs match no known family; the closest is {closest[0]}: {'; '.join(closest[1][:3])}",
    }


def _use(library: Library, path: Path, family: str) -> None:
    """Encode the proof picture; AbiMismatchError where something is not as expected."""
    import numpy as np

    from llamafu._native.media.library import open_media_library
    from llamafu._native.media.projector import MediaRows, Projector
    from llamafu._native.model import Model
    from llamafu.errors import AbiMismatchError

    expected = json.loads((_FOLDER / "media.json").read_text(encoding="utf-8"))
    media = open_media_library(library, path, family)
    model = Model(library, _FOLDER / "model.gguf")
    projector = Projector(media, _FOLDER / "projector.gguf", model, n_threads=2, gpu=False)
    pixels = np.array(expected["pixels"], np.uint8)
    pieces = projector.encode_image(pixels)
    wanted = np.array(expected["rows"], np.float32)
    rows = next((piece for piece in pieces if isinstance(piece, MediaRows)), None)
    if rows is None or len(pieces) != 1 or rows.embeddings.shape != wanted.shape:
        message = f"a picture becomes {[len(piece) for piece in pieces]} tokens and rows where {len(wanted)} were expected"
        raise AbiMismatchError(message)
    worst = float(np.abs(rows.embeddings - wanted).max())
    line = rows.positions(3, 0, len(rows))[0].tolist()
    if not worst <= expected["tolerance"] or line != list(range(3, 3 + len(rows))) or rows.n_pos != len(rows):
        message = f"the rows of a picture are off by {worst:.3g} (at most {expected['tolerance']}), at the positions {line}"
        raise AbiMismatchError(message)
    if not np.array_equal(projector.decoded(bytes.fromhex(expected["png"])), np.array(expected["png_pixels"], np.uint8)):
        message = "a PNG file is decoded to other pixels"
        raise AbiMismatchError(message)
    projector.close()
    model.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
