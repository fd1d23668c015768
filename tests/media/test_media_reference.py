"""Logits after pictures and sounds against the NumPy reference of both the projector and the language model."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.forced import STRICT
from helpers.media_cases import MARKER, MEDIA_CASES, PROMPT, MediaReference, say

from llamafu import Llamafu

TOLERANCE = 1e-2
STEPS = 3


@pytest.fixture(scope="module", params=MEDIA_CASES, ids=lambda case: case.kind)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def llm(case, tiny_dir):
    model, projector = case.files(tiny_dir)
    with Llamafu(model, mmproj_path=projector, n_ctx=512, **STRICT) as llm:
        for adapter in case.adapters:
            llm.load_lora_adapter(tiny_dir / adapter)
        yield llm


@pytest.fixture(scope="module")
def reference(case, tiny_dir):
    return MediaReference(tiny_dir, case)


@pytest.fixture
def agrees(case, llm, reference, tiny_dir):
    """Compare the logits of a prompt with media, and of the tokens after it, with the reference's."""

    def agrees(prompt, numbers, scales):
        lora = {name.removesuffix(".gguf"): scale for name, scale in scales.items()}
        ours, said = say(llm, prompt, [case.medium(number) for number in numbers], steps=STEPS, lora=lora)
        adapters = [(tiny_dir / name, scale) for name, scale in scales.items()]
        theirs = reference.logits(llm, prompt, [case.raw(number) for number in numbers], said[:-1], adapters)
        assert len(ours) == len(theirs) == len(said)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)

    return agrees


@pytest.mark.parametrize("scales", [(0.0, 0.0), (1.0, 0.0), (0.5, 0.75)], ids=["base", "one", "two"])
def test_logits_after_a_medium(case, agrees, scales):
    """The encoder's own size, where nothing is resized, with and without adapters."""
    agrees(PROMPT, [0], {name: scale for name, scale in zip(case.adapters, scales, strict=True) if scale})


@pytest.mark.parametrize("number", [2, 3])
def test_logits_after_a_medium_of_another_size(case, agrees, number):
    """Pictures that are resized, filled up at their sides, or of another number of tokens; longer sounds."""
    if case.hears and number == 3:
        pytest.skip("a sound has one side")
    agrees(PROMPT, [number], {case.adapters[0]: 1.0})


def test_logits_after_two_media(case, agrees):
    """What follows the first stands where the reference says, the second too."""
    agrees(f"{MARKER} and {MARKER}!", [0, 1], {case.adapters[0]: 0.5})


def test_the_reference_would_see_a_wrong_place(case, llm, reference, monkeypatch):
    """Were a picture's rows at other positions, or its colours swapped, the comparison would fail."""
    ours, _ = say(llm, PROMPT, [case.medium()], lora={})
    if case.hears:
        other = reference.logits(llm, PROMPT, [case.raw()[8:]])
    else:
        other = reference.logits(llm, PROMPT, [case.raw()[..., ::-1]])
    assert np.abs(ours - other).max() > TOLERANCE
    monkeypatch.setattr(reference._projector, "positions", lambda medium, first: _shifted(reference, medium, first))
    if not case.hears:
        assert np.abs(ours - reference.logits(llm, PROMPT, [case.raw()])).max() > TOLERANCE


def _shifted(reference, medium, first):
    positions, behind = type(reference._projector).positions(reference._projector, medium, first)
    return positions + np.array([0, 1, 0]) if reference._projector.vision == "qwen2vl_merger" else positions + 1, behind + 1
