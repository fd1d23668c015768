"""Nothing is read from memory that libllama has freed: the C library overwrites or unmaps it here, and answers stay right."""

import pytest
from helpers.adapters_made import make_adapter
from helpers.child import run

ANSWERS = """
from llamafu import Engine
from llamafu.engine import Request
with Engine(TINY / "tiny-moe.gguf", adapters_dir={folder!r}, n_ctx=512, n_threads=1, bank_rank=16) as engine:
    options = {{"prompt": "Hello", "temperature": 0, "ignore_eos": True, "max_tokens": 12}}
    asked = [Request(lora=lora, **options) for lora in ({{}}, {{"made": 1.0}})]
    print([answer.tokens for answer in engine.complete_many(asked)])
    print(engine.stats().mixed_steps > 0)
"""


@pytest.fixture
def snippet(tiny_dir, tmp_path):
    make_adapter(tmp_path / "made.gguf", tiny_dir / "tiny-moe.gguf", seed=1, rank=3, strength=0.5)
    return ANSWERS.format(folder=str(tmp_path))


def test_an_engine_with_experts(tiny_dir, snippet):
    """The number of experts a token goes through was read from a graph that had been freed."""
    usual = run(tiny_dir, snippet)
    assert usual.endswith("True\n")
    assert run(tiny_dir, snippet, MALLOC_PERTURB_="90") == usual
    assert run(tiny_dir, snippet, MALLOC_MMAP_THRESHOLD_="16384") == usual
