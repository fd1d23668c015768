"""The metadata keys `llamafu.bake.*`, which name the sources of a baked model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llamafu.adapters.file import default_name
from llamafu.errors import ModelLoadError

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from llamafu.adapters.file import AdapterFile
    from llamafu.adapters.gguf.base_model import BaseModel
    from llamafu.adapters.gguf.shard import Addition

_COUNT = "llamafu.bake.count"
_MOST = 1 << 16  # adapters in one model
_PLACEHOLDER = "0" * 64  # as long as a digest: it is overwritten in place once the source was read


class BakeMetadata:
    """Makes the keys for adapters that are baked into `base`, numbered after those that were baked into it before.

    Raises ModelLoadError where the base's own count of them is no sound number.
    """

    def __init__(self, base: BaseModel, uses: Sequence[tuple[AdapterFile, float]]) -> None:
        before = base.metadata.get(_COUNT, 0)
        if type(before) is not int or not 0 <= before < _MOST:
            message = f"{base.path}: metadata key {_COUNT!r} is {before!r}; it must be how many adapters were baked in"
            raise ModelLoadError(message)
        self._source = _text(base.path.name)
        self._before = before
        self._uses = uses

    def entries(
        self, calibration: str | os.PathLike[str] | None, *, digest: str = _PLACEHOLDER, kept: float = 1.0
    ) -> dict[str, Addition]:
        """Return the keys with their values, which take the same number of bytes whatever `digest` and `kept` are.

        `calibration` is the text that was asked for; None where values were rounded to the nearest. `digest` is the SHA-256
        of the source, `kept` the share of the changes that is kept.
        """
        found: dict[str, Addition] = {_COUNT: self._before + len(self._uses)} if self._uses else {}
        for number, (file, scale) in enumerate(self._uses, self._before):
            found |= {
                f"llamafu.bake.{number}.name": _text(default_name(file.path)),
                f"llamafu.bake.{number}.digest": file.digest,
                f"llamafu.bake.{number}.scale": scale,
                f"llamafu.bake.{number}.kept": kept,
                f"llamafu.bake.{number}.source_name": self._source,
                f"llamafu.bake.{number}.source_digest": digest,
            }
            if calibration is not None:
                found[f"llamafu.bake.{number}.calibration"] = _text(Path(calibration).name)
        return found


def _text(name: str) -> str:
    return name.encode("utf-8", "replace").decode()  # a file's name may be any bytes
