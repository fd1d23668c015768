"""What the comparisons with other programs share: torch kept small and quiet, and upstream's source tree.

`make test-peers` installs torch, transformers and PEFT; without them the files here fail at their first import. A file's
name must be unlike those in `tests/`, which are imported by name.
"""

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is made here; nothing may be fetched
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_collection_modifyitems(items):
    """Let the warnings of torch, transformers and PEFT be theirs."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture(scope="session", autouse=True)
def _small_torch():
    if "torch" in sys.modules:  # some file here imported it
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def upstream():
    """Folder of llama.cpp's source tree."""
    from upstream_tree import UpstreamError, upstream_tree

    try:
        return upstream_tree()
    except UpstreamError as error:
        pytest.skip(str(error))
