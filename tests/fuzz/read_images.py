"""The child process of test_media: reads damaged images with a tiny model, each an error of ours or an answer.

    python read_images.py FIXTURES COUNT SEED

Prints one line of JSON: how often each outcome came. The name of the image that is read is on stderr.
"""

from __future__ import annotations

import collections
import json
import sys
from pathlib import Path

from helpers.damaged_media import damaged_images, hopeless_images

from llamafu import Llamafu
from llamafu.errors import MultimodalError


def main(fixtures: str, count: str, seed: str) -> None:
    """Read images; whatever else than `MultimodalError` ends this process."""
    outcomes: collections.Counter[str] = collections.Counter()
    folder, hopeless = Path(fixtures), hopeless_images()
    with Llamafu(folder / "tiny.gguf", mmproj_path=folder / "mmproj-llava.gguf", n_ctx=64, n_threads=1) as llm:
        for what, content in damaged_images(int(count), int(seed)):
            sys.stderr.write(f"{what}\n")
            try:
                llm.complete("<__media__>", media=[content], max_tokens=0)
            except MultimodalError as error:
                if "\n" in str(error):
                    message = f"{what}: the message has several lines: {error}"
                    raise AssertionError(message) from error
                outcomes["refused"] += 1
            else:
                if what in hopeless:
                    message = f"{what} was taken"
                    raise AssertionError(message)
                outcomes["read"] += 1
    sys.stdout.write(json.dumps(outcomes) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
