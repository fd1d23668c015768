"""Other pixels give another answer, an adapter changes it, and scale 0 restores it byte for byte.

All of it for every kind of projector, of a model and of an engine.
"""

from __future__ import annotations

import numpy as np
import pytest
from helpers.forced import STRICT
from helpers.media_cases import MEDIA_CASES, PROMPT, say

from llamafu import Llamafu
from llamafu.engine import Engine

CHANGED = 0.05
"""How far the logits of another medium or adapter are apart, at least."""
COMPANY = 1e-4
"""How far other requests, and where keys lie in the memory, may move a logit."""


@pytest.fixture(scope="module", params=MEDIA_CASES, ids=lambda case: case.kind)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def llm(case, tiny_dir):
    model, projector = case.files(tiny_dir)
    with Llamafu(model, mmproj_path=projector, n_ctx=512, **STRICT) as llm:
        llm.load_lora_adapter(tiny_dir / case.adapters[0], name="a")
        llm.load_lora_adapter(tiny_dir / case.adapters[1], name="b")
        yield llm


@pytest.fixture(scope="module")
def engine(case, tiny_dir):
    model, projector = case.files(tiny_dir)
    with Engine(model, mmproj_path=projector, n_ctx=2048, n_batch=128, bank_dtype="f32", **STRICT) as engine:
        engine.add_adapter(tiny_dir / case.adapters[0], name="a")
        engine.add_adapter(tiny_dir / case.adapters[1], name="b")
        yield engine


@pytest.fixture(params=["llm", "engine"])
def door(request):
    return request.getfixturevalue(request.param)


def far(first, second):
    return np.abs(first - second).max() > CHANGED


def test_other_media_give_other_logits(case, door):
    first, second = (say(door, PROMPT, [case.medium(number)])[0] for number in (0, 1))
    assert far(first, second)


def test_one_pixel_in_another_corner_is_seen(case, door):
    if case.hears:
        pytest.skip("a sound has no corner")
    raw = np.full((32, 32, 3), 90, np.uint8)
    first, second = raw.copy(), raw.copy()
    first[:8, :8], second[-8:, -8:] = 250, 250
    assert far(say(door, PROMPT, [first])[0], say(door, PROMPT, [second])[0])


def test_an_adapter_changes_the_answer_and_scale_0_restores_it(case, door):
    medium = [case.medium()]
    base, tokens = say(door, PROMPT, medium, lora={}, steps=4)
    adapted, _ = say(door, PROMPT, medium, lora={"a": 1.0})
    restored, again = say(door, PROMPT, medium, lora={"a": 0.0}, steps=4)
    assert far(adapted, base[:1])
    assert again == tokens
    if isinstance(door, Llamafu):
        assert restored.tobytes() == base.tobytes()
    np.testing.assert_allclose(restored, base, rtol=0, atol=COMPANY)  # where keys lie in an engine's memory moves last bits
