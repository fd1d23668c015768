"""Which models `llm` knows: a JSON file in its own folder, and the engine of each, opened when it is first asked."""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import llm

from llamafu._util.atomic import whole_file
from llamafu.adapters.file import default_name
from llamafu.adapters.reader import adapters_in
from llamafu.errors import LlamafuError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llamafu.engine.engine import Engine

DEFAULT_N_CTX = 8192
_ENGINES: dict[ModelEntry, Engine] = {}
_OPENING = threading.Lock()


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model under the name `name`: its GGUF file, the folder of its adapters if there is one, and the tokens it holds."""

    name: str
    path: str
    adapters: str | None = None
    n_ctx: int = DEFAULT_N_CTX

    def adapter_names(self) -> list[str]:
        """Return the adapters in the folder by name; none where it is gone."""
        if self.adapters is None or not Path(self.adapters).is_dir():
            return []
        return list(dict.fromkeys(default_name(path) for path in adapters_in(Path(self.adapters))))

    def engine(self) -> Engine:
        """Return the engine of this process for this model; opened the first time, and closed when the process ends."""
        from llamafu.engine.engine import Engine

        with _OPENING:
            if self not in _ENGINES:
                _ENGINES[self] = Engine(self.path, n_ctx=self.n_ctx, adapters_dir=self.adapters)
            return _ENGINES[self]


def list_path() -> Path:
    """Return the file that lists the models."""
    return Path(llm.user_dir()) / "llamafu.json"


def read() -> dict[str, ModelEntry]:
    """Return the added models by name; LlamafuError where the file is no list of models."""
    path = list_path()
    try:
        given = json.loads(path.read_text("utf-8"))
        return {name: ModelEntry(name, **entry) for name, entry in given.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError) as error:
        message = f"{path} is no list of models ({error}); mend it, or delete it and add the models again"
        raise LlamafuError(message) from error


def readable() -> list[ModelEntry]:
    """Return the added models, none where the list cannot be read: that is told, and the models of others go on working."""
    try:
        return list(read().values())
    except LlamafuError as error:
        sys.stderr.write(f"llamafu: {error}\n")
        return []


def write(entries: Mapping[str, ModelEntry]) -> None:
    """Replace the list in one step."""
    told = {name: {key: value for key, value in asdict(entry).items() if key != "name"} for name, entry in entries.items()}
    with whole_file(list_path()) as unfinished:
        unfinished.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
