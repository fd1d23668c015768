"""The fixtures are repeatable and the NumPy reference is sound, so that what is measured against them means something."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from helpers.reference import Reference
from make_fixtures import FIXTURES, write_fixtures
from make_proof import SCALES, TOLERANCE, write_proof
from tiny_model import BOS, FIRST_BYTE, MODULES, TINY, byte_text, sha256, write_adapter

import llamafu

TOKENS = [BOS, *(FIRST_BYTE + byte for byte in "naïve — Arrr!".encode())]


def largest(difference):
    return np.abs(difference).max()


def test_two_runs_write_the_same_bytes(tiny_dir, tmp_path):
    digests = write_fixtures(tmp_path)
    assert digests.keys() == FIXTURES.keys()
    assert digests == {name: sha256(tiny_dir / name) for name in FIXTURES}
    assert {path.name for path in tmp_path.iterdir()} == set(FIXTURES)


def test_every_merge_joins_earlier_tokens():
    known = {byte_text(bytes([byte])) for byte in range(256)}
    assert len(known) == 256
    for merge in TINY.merges:
        left, right = merge.split(" ")
        assert {left, right} <= known, merge
        assert left + right not in known, merge
        known.add(left + right)


def test_models_hold_what_their_names_say(tiny_dir):
    types = {
        name: {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(tiny_dir / name).tensors}
        for name in FIXTURES
        if name.startswith("tiny")
    }
    assert set(types["tiny.gguf"].values()) == {"F32"}
    assert types["tiny.gguf"].keys() - types["tiny-tied.gguf"].keys() == {"output.weight"}
    assert types["tiny-q4_0.gguf"]["output.weight"] == types["tiny-q4_0.gguf"]["blk.1.ffn_down.weight"] == "Q4_0"
    assert "blk.0.attn_k.bias" in types["tiny-qwen2.gguf"]


def test_a_token_sees_only_its_past(reference, tiny_adapter_a):
    adapters = [(tiny_adapter_a, 1.0)]
    whole = reference.logits(TOKENS, adapters)
    np.testing.assert_allclose(reference.logits(TOKENS[:5], adapters), whole[:5], atol=1e-9)
    other_end = reference.logits([*TOKENS[:-1], FIRST_BYTE], adapters)
    np.testing.assert_allclose(other_end[:-1], whole[:-1], atol=1e-9)
    assert largest(other_end[-1] - whole[-1]) > 0.1


def test_positions_and_order_matter(reference):
    swapped = reference.logits([TOKENS[1], TOKENS[0], *TOKENS[2:]])
    assert largest(swapped[-1] - reference.logits(TOKENS)[-1]) > 0.1


def test_scale_zero_is_the_base(reference, tiny_adapter_a, tiny_adapter_b):
    adapters = [(tiny_adapter_a, 0.0), (tiny_adapter_b, 0.0)]
    np.testing.assert_array_equal(reference.logits(TOKENS, adapters), reference.logits(TOKENS))


@pytest.mark.parametrize("scales", [(1.0, 0.0), (0.25, 0.0), (1.0, 1.0), (0.25, 0.75)])
def test_adapters_are_a_change_of_the_weights(tiny_model, tiny_adapter_a, tiny_adapter_b, scales):
    adapters = list(zip((tiny_adapter_a, tiny_adapter_b), scales, strict=True))
    merged = Reference(tiny_model)
    for path, scale in adapters:
        reader = GGUFReader(path)
        alpha = reader.fields["adapter.lora.alpha"].contents()
        factors = {tensor.name: np.float64(tensor.data) for tensor in reader.tensors}
        for name in [name for name in merged.weights if f"{name}.lora_a" in factors]:
            a, b = factors[f"{name}.lora_a"], factors[f"{name}.lora_b"]
            merged.weights[name] = merged.weights[name] + scale * alpha / a.shape[0] * b @ a
    adapted = Reference(tiny_model).logits(TOKENS, adapters)
    np.testing.assert_allclose(adapted, merged.logits(TOKENS), atol=1e-9)


def test_swapped_scales_are_seen(reference, tiny_adapter_a, tiny_adapter_b):
    right = reference.logits(TOKENS, [(tiny_adapter_a, 0.25), (tiny_adapter_b, 0.75)])
    swapped = reference.logits(TOKENS, [(tiny_adapter_a, 0.75), (tiny_adapter_b, 0.25)])
    assert largest(right - swapped) > 1e-2


@pytest.mark.parametrize("name", ["a", "b", "wide", "f16", "alora", *(f"one-{module}" for module in MODULES)])
def test_adapters_move_logits_visibly_but_not_absurdly(reference, tiny_dir, name):
    base = reference.logits(TOKENS)
    full, half = (reference.logits(TOKENS, [(tiny_dir / f"{name}.gguf", scale)]) for scale in (1.0, 0.5))
    assert 0.5 < largest(full - base) < 6
    assert largest(full - half) > 0.2


def test_a_scale_per_token_acts_from_its_token_on(reference, tiny_adapter_a):
    scales = np.zeros(len(TOKENS))
    scales[6:] = 1.0
    switched = reference.logits(TOKENS, [(tiny_adapter_a, scales)])
    np.testing.assert_array_equal(switched[:6], reference.logits(TOKENS)[:6])
    assert largest(switched[6:] - reference.logits(TOKENS)[6:]) > 0.1
    assert largest(switched[6:] - reference.logits(TOKENS, [(tiny_adapter_a, 1.0)])[6:]) > 0.01


def test_the_reference_refuses_what_it_cannot_compute(reference, tiny_dir, tmp_path):
    with pytest.raises(ValueError, match="qwen2"):
        Reference(tiny_dir / "tiny-qwen2.gguf")
    deeper = tmp_path / "deeper.gguf"
    write_adapter(deeper, replace(TINY, n_layer=3), seed=1, rank=1, alpha=1.0)
    with pytest.raises(ValueError, match=r"blk\.2\.attn_q\.weight"):
        reference.logits(TOKENS, [(deeper, 1.0)])


def test_the_shipped_proof_is_what_the_script_makes(tmp_path):
    shipped = Path(llamafu.__file__).parent / "libraries" / "proof"
    write_proof(tmp_path)
    made, stored = (json.loads((folder / "expected.json").read_text("utf-8")) for folder in (tmp_path, shipped))
    assert stored["sha256"] == made["sha256"] == {name: sha256(shipped / name) for name in stored["sha256"]}
    assert (shipped / "model.gguf").stat().st_size <= 50_000
    assert stored["tokens"] == made["tokens"]
    assert stored["logits"].keys() == made["logits"].keys() == {"base", *map(str, SCALES)}
    for state, logits in made["logits"].items():
        assert len(stored["logits"][state]) == stored["n_vocab"]
        np.testing.assert_allclose(stored["logits"][state], logits, atol=2e-6)
    base, half, full = (np.array(stored["logits"][state]) for state in ("base", "0.5", "1.0"))
    assert min(largest(base - half), largest(half - full)) > 50 * max(TOLERANCE.values())
