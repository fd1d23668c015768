"""Named mixes of an engine: what their names mean in a batch, and what is refused."""

import pytest
from helpers.engine_cases import made

from llamafu.engine import Request
from llamafu.errors import InvalidScaleError, LoraError, LoraNotFoundError

GREEDY = {"temperature": 0, "max_tokens": 8}
BOTH = {"a": 0.8, "b": 0.25}


@pytest.fixture(scope="module")
def engine(tiny_model, tiny_adapter_a, tiny_adapter_b):
    with made(tiny_model, tiny_adapter_a, tiny_adapter_b) as engine:
        engine.add_mix("both", BOTH)
        yield engine


def test_a_mix_is_its_adapters(engine):
    names = [{"both": 1.0}, BOTH, {"both": 0.5, "a": 0.1}, {"a": 0.5, "b": 0.125}, {}]
    told = engine.complete_many([Request(prompt="Once", lora=lora, logprobs=0, **GREEDY) for lora in names])
    first = [one.logprobs[0].logprob for one in told]
    assert (first[0], first[2]) == pytest.approx((first[1], first[3]), abs=1e-4)
    assert min(abs(first[0] - first[2]), abs(first[2] - first[4]), abs(first[4] - first[0])) > 1e-3
    assert told[0].lora == told[1].lora
    assert told[0].lora[0].digest == engine.adapters["a"].digest
    assert {used.name: used.scale for used in told[2].lora} == {"a": 0.5, "b": 0.125}
    assert (engine.embed("Once", lora={"both": 1.0}) == engine.embed("Once", lora=BOTH)).all()
    assert engine.mixes == {"both": BOTH}


def test_what_is_submitted_or_active_keeps_the_mix_of_then(engine):
    engine.add_mix("soon", {"a": 1.0})
    engine.set_lora_adapters({"soon": 0.5})
    stream = engine.stream("Once", lora={"soon": 1.0}, **GREEDY)
    wanted = engine.complete("Once", lora={"a": 1.0}, **GREEDY).text
    engine.add_mix("soon", {"b": 1.0}, overwrite=True)
    assert "".join(stream) == wanted
    assert engine.active_lora_adapters == {"a": 0.5}
    engine.remove_mix("soon")
    assert engine.active_lora_adapters == {"a": 0.5}
    engine.set_lora_adapters({})


def test_what_is_refused(engine, tiny_adapter_a):
    for name, scales, error, says in (
        ("both", {"a": 0.5}, LoraError, "there is a mix 'both' already"),
        ("a", {"b": 0.5}, LoraError, "the name 'a' is an adapter's"),
        ("x", {"gone": 0.5}, LoraNotFoundError, "no adapter 'gone' is registered here"),
        ("x", {"both": 0.5}, LoraError, "names 'both', a mix"),
        ("x", {"a": 2}, InvalidScaleError, "scale of 'a' in the mix 'x' is 2"),
        ("x", {1: 0.5}, TypeError, "an engine knows adapters by name, not by 1"),
        ("x", {}, ValueError, "is empty"),
        ("x", "a", TypeError, "give a mapping"),
        (7, {"a": 1}, ValueError, "the name of a mix is 7"),
    ):
        with pytest.raises(error, match=says):
            engine.add_mix(name, scales)
    with pytest.raises(LoraError, match="the name 'both' is taken by a mix"):
        engine.add_adapter(tiny_adapter_a, name="both")
    with pytest.raises(LoraError, match="the adapter 'b' is part of the mix 'both'; remove the mix first"):
        engine.remove_adapter("b")
    with pytest.raises(InvalidScaleError, match="'a' is 1.3"):
        engine.complete("Once", lora={"both": 1.0, "a": 0.5}, **GREEDY)
    assert (set(engine.adapters), engine.mixes) == ({"a", "b"}, {"both": BOTH})
