"""Logits of the tiny model through libllama against the independent NumPy reference (F32 KV, flash attention off)."""

import numpy as np
import pytest

from llamafu._native.adapter import Adapter
from llamafu._native.context import Context
from llamafu._native.context_options import ContextOptions
from llamafu._native.library import open_library
from llamafu._native.model import Model
from llamafu.adapters import merge_adapters, read_adapter
from llamafu.libraries.discovery import find

TOLERANCE = 1e-3
TOKENS = [0, 40, 76, 105, 112, 112, 36, 90, 115, 260, 261, 33, 17, 200, 4, 255, 300, 301, 77]
MODULES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


@pytest.fixture(scope="module")
def context(tiny_model):
    proven = find()
    model = Model(open_library(proven.path, proven.family), tiny_model)
    context = Context(model, ContextOptions(n_ctx=128, n_batch=64, flash_attn="off", type_k="f32", type_v="f32", n_threads=2))
    yield context
    context.close()
    model.close()


@pytest.fixture
def load(context):
    """Load adapters for one test, and free them after it."""
    loaded = []

    def load(path):
        loaded.append(Adapter(context.model, read_adapter(path).content, label=path.name))
        return loaded[-1]

    yield load
    context.set_adapters({})
    for adapter in loaded:
        adapter.close()


def logits(context, scales):
    context.clear()
    context.set_adapters(scales)
    context.decode(TOKENS, 0, all_logits=True)
    return np.array([context.logits(i) for i in range(len(TOKENS))])


def difference(context, reference, pairs):
    """Largest difference from NumPy over all positions, for (native adapter, path, scale) triples."""
    ours = logits(context, {native: scale for native, _, scale in pairs})
    theirs = reference.logits(TOKENS, adapters=[(path, scale) for _, path, scale in pairs])
    return float(np.abs(ours - theirs).max())


def test_base(context, reference):
    """With no adapter the two agree."""
    assert difference(context, reference, []) <= TOLERANCE


@pytest.mark.parametrize("scale", [0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("name", ["a", "b", "wide"])
def test_one_adapter(context, reference, load, tiny_dir, name, scale):
    """One adapter at several scales."""
    path = tiny_dir / f"{name}.gguf"
    assert difference(context, reference, [(load(path), path, scale)]) <= TOLERANCE


@pytest.mark.parametrize(("first", "second"), [(0.25, 1.0), (1.0, 0.25), (0.5, 0.75), (1.0, 1.0)])
def test_two_adapters(context, reference, load, tiny_dir, first, second):
    """Two adapters, each at a scale of its own; a swap of the two scales is far outside the tolerance."""
    a, b = tiny_dir / "a.gguf", tiny_dir / "b.gguf"
    assert difference(context, reference, [(load(a), a, first), (load(b), b, second)]) <= TOLERANCE
    if first != second:
        ours = logits(context, dict(zip(context.adapters, (first, second), strict=True)))
        swapped = reference.logits(TOKENS, adapters=[(a, second), (b, first)])
        assert np.abs(ours - swapped).max() > 100 * TOLERANCE


@pytest.mark.parametrize("module", MODULES)
def test_each_projection(context, reference, load, tiny_dir, module):
    """Each of the seven projections alone."""
    path = tiny_dir / f"one-{module}.gguf"
    assert difference(context, reference, [(load(path), path, 1.0)]) <= TOLERANCE


def test_f16_adapter(context, reference, load, tiny_dir):
    """An F16 adapter: ggml rounds the activations to F16 there, so the bound is wider."""
    path = tiny_dir / "f16.gguf"
    assert difference(context, reference, [(load(path), path, 1.0)]) <= 5 * TOLERANCE


def test_removed_adapter_leaves_no_trace(context, load, tiny_dir):
    """Base, adapted, base again: the two base results are the same bytes."""
    before = logits(context, {})
    adapted = logits(context, {load(tiny_dir / "a.gguf"): 1.0})
    assert not np.array_equal(before, adapted)
    assert np.array_equal(before, logits(context, {}))
    assert np.array_equal(before, logits(context, {load(tiny_dir / "b.gguf"): 0.0}))


@pytest.mark.parametrize("weights", [(0.8, 0.6), (0.8, -0.6)])
def test_concatenated_adapters_equal_both(context, load, tiny_dir, tmp_path, weights):
    """Two adapters at once, and the one that `cat` makes of them: ranks 4 and 2, seven targets and two."""
    paths = tiny_dir / "a.gguf", tiny_dir / "b.gguf"
    merge_adapters(dict(zip(paths, weights, strict=True)), tmp_path / "sum.gguf", method="cat")
    both = logits(context, {load(path): weight for path, weight in zip(paths, weights, strict=True)})
    merged = logits(context, {load(tmp_path / "sum.gguf"): 1.0})
    assert np.abs(both - logits(context, {})).max() > 100 * TOLERANCE
    assert np.abs(merged - both).max() <= TOLERANCE / 10
