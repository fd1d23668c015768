"""Writes the proof model, its adapter and projector, and what they make: `python scripts/make_proof.py [OUTDIR]`.

The package ships the result in `llamafu/libraries/proof/` and lets an unknown libllama compute the same
logits in a child process: a struct member at the wrong offset shows there.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from helpers.media_made import picture, png  # noqa: E402 - lives with the tests
from helpers.media_reference import ProjectorReference  # noqa: E402
from helpers.reference import Reference  # noqa: E402
from tiny_media import write_projector  # noqa: E402
from tiny_model import BOS, FIRST_BYTE, PROOF, sha256, write_adapter, write_model  # noqa: E402

TOKENS = [BOS, *(FIRST_BYTE + byte for byte in b"Proof")]
SCALES = (0.5, 1.0)
# Measured on three x86-64 builds: 3e-6 with an F32 cache, 2e-3 with the default F16 one. The adapter moves some logit by
# more than 1 between any two of the states, so a looser bound would still tell them apart.
TOLERANCE = {"f32": 1e-4, "f16": 2e-2}

# Measured on one build: 7e-4. A picture with red and blue exchanged moves some number by more than 1.
MEDIA_TOLERANCE = 2e-2


def write_proof(directory: Path) -> None:
    """Write `model.gguf`, `adapter.gguf` and `expected.json` into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    model, adapter = directory / "model.gguf", directory / "adapter.gguf"
    write_model(model, PROOF, seed=101, name="proof", tied=True)
    write_adapter(
        adapter, PROOF, seed=102, rank=2, alpha=4.0, modules=("attn_q", "attn_v", "attn_output", "ffn_down"), strength=0.3
    )
    reference = Reference(model)

    def last_logits(scale: float) -> list[float]:
        return reference.logits(TOKENS, [(adapter, scale)])[-1].round(6).tolist()

    expected = {
        "made_by": "scripts/make_proof.py, computed in float64 by tests/helpers/reference.py",
        "sha256": {path.name: sha256(path) for path in (model, adapter)},
        "tokens": TOKENS,
        "n_vocab": PROOF.n_vocab,
        "tolerance": TOLERANCE,
        "logits": {"base": last_logits(0.0)} | {str(scale): last_logits(scale) for scale in SCALES},
    }
    (directory / "expected.json").write_text(json.dumps(expected) + "\n", encoding="utf-8")


def write_media_proof(directory: Path) -> None:
    """Write `projector.gguf` and `media.json`: a picture, the rows that it becomes, and a PNG file with its pixels."""
    path = directory / "projector.gguf"
    write_projector(path, kinds=("llava",), seed=103, width=PROOF.n_embd)
    pixels, small = picture(seed=1), picture(2, 3, seed=2)
    expected = {
        "made_by": "scripts/make_proof.py, computed in float64 by tests/helpers/media_reference.py",
        "sha256": sha256(path),
        "pixels": pixels.tolist(),
        "rows": ProjectorReference(path).see(pixels).round(6).tolist(),
        "tolerance": MEDIA_TOLERANCE,
        "png": png(small).hex(),
        "png_pixels": small.tolist(),
    }
    (directory / "media.json").write_text(json.dumps(expected) + "\n", encoding="utf-8")


def main() -> None:
    """Write the proof files into the package, or into another folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, metavar="OUTDIR", nargs="?", default=ROOT / "llamafu" / "libraries" / "proof")
    directory = parser.parse_args().directory
    write_proof(directory)
    write_media_proof(directory)


if __name__ == "__main__":
    main()
