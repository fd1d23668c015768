"""`llamafu serve` that notes when its engine made the first token of each request, by the request's seed.

    python bench/_timed_serve.py NOTES ARGUMENTS_OF_SERVE...

The times are `time.perf_counter`'s, which on Linux counts alike in every process.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from llamafu.cli.main import main
from llamafu.engine.sequence import SequenceRun


def run(notes: Path, arguments: list[str]) -> int:
    """Serve until a signal, then write the notes."""
    first: dict[str, float] = {}
    accept = SequenceRun.accept

    def noted(self: SequenceRun, *given: Any) -> Any:
        before = self.first_token
        reason = accept(self, *given)
        if before is None and self.first_token is not None:
            first[str(self.request.seed)] = self.first_token
        return reason

    SequenceRun.accept = noted  # type: ignore[method-assign]
    status = main(["serve", *arguments])
    notes.write_text(json.dumps(first), encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), sys.argv[2:]))
