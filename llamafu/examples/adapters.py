"""The example adapters: beside a checkout's sources, or inside an installed package."""

from __future__ import annotations

from pathlib import Path

from llamafu.errors import LoraError

_HERE = Path(__file__).resolve().parent


def example_adapters() -> dict[str, Path]:
    """Return the GGUF files that come with Llamafu by name: `pirate` and `shout`, both for `example_model()`.

    Raises `LoraError` when they are missing, as in an incomplete copy of the package.
    """
    folders = (_HERE, _HERE.parents[1] / "examples" / "adapters")
    for folder in folders:
        found = {path.stem: path for path in sorted(folder.glob("*.gguf"))}
        if found:
            return found
    message = f"no example adapters: neither {folders[0]} nor {folders[1]} has any; install llamafu anew"
    raise LoraError(message)
