"""`Llamafu` with layers on a device: every adapter that works on the CPU works there, by the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.adapters_made import make_various
from helpers.forced import STRICT, Case
from helpers.on_device import bound_of, demand_close, tokens

from llamafu import Llamafu
from llamafu.errors import LoraNotFoundError

KINDS = ("tiny", "tiny-tied", "tiny-q4_0", "tiny-moe", "tiny-qwen2", "tiny-hybrid", "tiny-recurrent")
PROMPT, SAID = tokens(1, 40), tokens(2, 3)


def sets(first, second):
    """The base, one adapter, and a blend."""
    return [{}, {first: 1.0}, {first: 0.5, second: 0.75}]


@pytest.mark.parametrize("layers", [1, 99])
@pytest.mark.parametrize("kind", KINDS)
def test_adapters(tiny_dir, tmp_path, kind, layers):
    """Loaded, applied, blended, scaled, removed and unloaded. Each set has a context of its own, as Mesa's driver needs it.

    With one layer there, the blend has to do.
    """
    base = tiny_dir / f"{kind}.gguf"
    paths = make_various(tmp_path, base, seed=31, count=2, ranks=range(2, 9), dtypes=("F32",))
    names = [path.stem for path in paths]
    with Llamafu(base, n_ctx=256, **STRICT) as llm:
        for path in paths:
            llm.load_lora_adapter(path)
        wanted = [llm.next_logits(PROMPT, SAID, lora=lora) for lora in sets(*names)]
        bound = bound_of(base, llm, [Case(PROMPT, SAID)], layers)
    assert np.abs(wanted[1] - wanted[0]).max() > 0.1  # or nothing was shown
    for lora, logits in list(zip(sets(*names), wanted, strict=True))[0 if layers > 1 else -1 :]:
        with Llamafu(base, n_ctx=256, n_gpu_layers=layers, **STRICT) as llm:
            assert ("computes all" if layers > 1 else "computes 1 of") in llm._session.instance.placement.note
            first, second = (llm.load_lora_adapter(path) for path in paths)
            second.apply(0.5)
            second.remove()
            llm.set_lora_adapters(lora)
            demand_close(llm.next_logits(PROMPT, SAID), logits, largest=bound, what=list(lora))
            llm.unload_lora_adapter(first)
            assert names[0] not in llm.active_lora_adapters
            with pytest.raises(LoraNotFoundError):
                llm.apply_lora_adapter(names[0])


def test_refused_targets(tiny_model, tmp_path):
    """A target that the graph does not use is refused on a device too, and only that one."""
    (path,) = make_various(tmp_path, tiny_model, seed=3, count=1, ranks=range(2, 3), dtypes=("F32",))
    with Llamafu(tiny_model, n_ctx=64, n_gpu_layers=99, **STRICT) as llm:
        handle = llm.load_lora_adapter(path)
        used = llm._session.prober._probe.find(llm._adapters.native(handle)).used_targets
        assert {tensor.name for tensor in handle.info.tensors} == used
        assert "blk.0.attn_norm.weight" not in used


def test_state(tiny_model, tiny_adapter_a, tmp_path):
    """What was computed on a device is saved and restored."""
    with Llamafu(tiny_model, n_ctx=128, n_gpu_layers=99, **STRICT) as llm:
        llm.load_lora_adapter(tiny_adapter_a)
        first = llm.complete("Once upon a time", lora={"a": 1.0}, temperature=0, max_tokens=5)
        llm.save_state(tmp_path / "state")
        llm.load_state(tmp_path / "state")
        assert llm.complete("Once upon a time", lora={"a": 1.0}, temperature=0, max_tokens=5).text == first.text


def test_auto(tiny_model):
    """All of a small model fits, and what was decided is told."""
    with Llamafu(tiny_model, n_ctx=64, n_gpu_layers="auto", **STRICT) as llm:
        assert llm._session.instance.placement.layers == 3
        assert "all 3 layers" in llm._session.instance.placement.note
