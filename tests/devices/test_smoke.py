"""The least that a device must do: a model, adapters and a mixed batch, by the CPU's numbers. Few shapes, so few shaders."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.forced import STRICT, Case, alone, run_forced
from helpers.on_device import bound_of, demand_cases, demand_close, opened, plain, tokens

from llamafu import Llamafu

LORA = {"a": 0.5, "b": 0.75}


@pytest.fixture(scope="module")
def paths(tiny_adapter_a, tiny_adapter_b):
    return [tiny_adapter_a, tiny_adapter_b]


def test_model_and_adapters(tiny_model, paths):
    """A blend of two adapters, by libllama's own way."""
    case = Case(tokens(1, 40), tokens(2, 2), LORA)
    with plain(tiny_model, paths) as llm:
        wanted = alone(llm, case)
        assert np.abs(alone(llm, Case(case.prompt, case.said)) - wanted).max() > 0.1  # or nothing was shown
        bound = bound_of(tiny_model, llm, [case])
    with Llamafu(tiny_model, n_ctx=256, n_gpu_layers=99, **STRICT) as llm:
        for path in paths:
            llm.load_lora_adapter(path)
        demand_close(llm.next_logits(case.prompt, case.said, lora=LORA), wanted, largest=bound, what=LORA)


def test_mixed_batch(tiny_model, paths, monkeypatch):
    """The base, an adapter and a blend in one batch, whose graph nothing stops."""
    cases = [Case(tokens(i, 12), tokens(9 + i, 3), lora) for i, lora in enumerate(({}, {"a": 1.0}, LORA))]
    with plain(tiny_model, paths) as llm:
        references, bound = [alone(llm, case) for case in cases], bound_of(tiny_model, llm, cases)
    with opened(tiny_model, paths) as engine:
        run_forced(engine, monkeypatch, cases)
        demand_cases(cases, references, largest=bound)
        stats = engine.stats()
        assert (stats.kernel, stats.fallback_steps, stats.failed_steps) == ("device", 0, 0)
        assert stats.mixed_steps > 0
        assert "all 3 layers" in stats.placement
