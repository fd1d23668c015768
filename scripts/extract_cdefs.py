"""Write `cdefs/FAMILY/llama.h` from upstream headers, or `cdefs/ggml.h`, which all families share.

    python scripts/extract_cdefs.py FAMILY INCLUDE_FOLDER...
    python scripts/extract_cdefs.py ggml INCLUDE_FOLDER...

Every FOLDER is searched for ggml.h, ggml-backend.h and llama.h (a source tree has them in `ggml/include` and `include`).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from llamafu._native.abi.headers import extract  # noqa: E402
from llamafu._native.abi.symbols import EXTRACTED, GRAPH  # noqa: E402

HEADERS = ("ggml.h", "ggml-backend.h", "llama.h")


def main(arguments: list[str]) -> int:
    """Extract one family; exit status 2 on wrong usage."""
    if len(arguments) < 2:  # noqa: PLR2004
        print(__doc__, file=sys.stderr)
        return 2
    family, *folders = arguments
    texts = []
    for header in HEADERS:
        found = next((Path(folder) / header for folder in folders if (Path(folder) / header).is_file()), None)
        if found is None:
            print(f"{header} is in none of {', '.join(folders)}; name the folders that hold the headers", file=sys.stderr)
            return 1
        texts.append(found.read_text(encoding="utf-8"))
    if family == "ggml":
        target = ROOT / "cdefs" / "ggml.h"
        lines = (line for line in extract(texts, GRAPH).splitlines() if GRAPH.intersection(re.findall(r"\w+", line)))
        target.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    else:
        target = ROOT / "cdefs" / family / "llama.h"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(extract(texts, EXTRACTED - GRAPH), encoding="utf-8")
    print(f"{target.relative_to(ROOT)}: {len(target.read_text().splitlines())} lines")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
