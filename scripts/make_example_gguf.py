"""Make the GGUF form of the example adapters from their PEFT folders.

    python scripts/make_example_gguf.py --base MODEL.gguf [FOLDER ...]

Writes `FOLDER.gguf` beside each folder (default: the two in `examples/adapters`). Needs no torch.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from llamafu.adapters import convert_peft

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "adapters"


def main() -> None:
    """Convert the folders named on the command line."""
    parser = argparse.ArgumentParser(description="Make the GGUF form of PEFT LoRA folders (F16).")
    parser.add_argument("--base", type=Path, required=True, help="a GGUF model that the adapters are for")
    parser.add_argument("folders", type=Path, nargs="*", default=[EXAMPLES / "pirate", EXAMPLES / "shout"], metavar="FOLDER")
    args = parser.parse_args()
    for folder in args.folders:
        output = folder.resolve().with_name(f"{folder.resolve().name}.gguf")
        convert_peft(folder, output, base=args.base)
        print(f"{output}: {output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
