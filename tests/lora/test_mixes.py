"""Named mixes of a `Llamafu`: what their names mean, who keeps which name, and what is refused."""

import asyncio

import pytest

from llamafu import AsyncLlamafu, Llamafu
from llamafu.errors import InvalidScaleError, LoraError, LoraNotFoundError
from llamafu.lora.mixes import NamedMixes

GREEDY = {"temperature": 0, "max_tokens": 12}
BOTH = {"a": 0.8, "b": 0.25}


@pytest.fixture(scope="module")
def llm(tiny_model, tiny_adapter_a, tiny_adapter_b):
    with Llamafu(tiny_model, n_ctx=256) as llm:
        llm.load_lora_adapter(tiny_adapter_a)
        llm.load_lora_adapter(tiny_adapter_b)
        yield llm


@pytest.fixture(autouse=True)
def both(llm):
    """The mix `both` is there before each test, and no other after it."""
    llm.add_mix("both", BOTH)
    yield
    llm.clear_all_lora_adapters()
    for name in llm.mixes:
        llm.remove_mix(name)


def test_a_mix_is_its_adapters(llm):
    wanted = llm.complete("Once", lora=BOTH, **GREEDY)
    assert wanted.text != llm.complete("Once", **GREEDY).text
    told = llm.complete("Once", lora={"both": 1.0}, **GREEDY)
    assert (told.tokens, told.lora) == (wanted.tokens, wanted.lora)
    assert [(used.name, used.scale, used.digest) for used in told.lora] == [
        (adapter.name, BOTH[adapter.name], adapter.digest) for adapter in llm.lora_adapters
    ]
    with llm.using({"both": 1.0}):
        assert llm.active_lora_adapters == BOTH
        assert llm.complete("Once", **GREEDY).tokens == wanted.tokens
    llm.set_lora_adapters({"both": 0.5})
    assert llm.active_lora_adapters == {"a": 0.4, "b": 0.125}
    assert llm.mixes == {"both": BOTH}


def test_scales_multiply_and_add_up(llm):
    a, b = llm.lora_adapters
    llm.add_mix("other", {a: 0.1, "b": 0.5})
    for lora, wanted in (
        ({"both": 0.5}, {"a": 0.4, "b": 0.125}),
        ({"both": 0.5, "a": 0.25}, {"a": 0.65, "b": 0.125}),
        ({"both": 0.5, a: 0.25}, {"a": 0.65, "b": 0.125}),
        ({"both": 0.5, "other": 1.0, b: 0.125}, {"a": 0.5, "b": 0.75}),
        ({"both": 0.0, b: 0.5}, {"b": 0.5}),
    ):
        assert {used.name: used.scale for used in llm.complete("Once", lora=lora, **GREEDY).lora} == pytest.approx(wanted)


def test_a_scale_that_is_a_function_is_called_once_a_step(llm):
    steps = []

    def fade(step):
        steps.append(step)
        return 1.0 - step / 8

    told = llm.complete("Once", lora={"both": fade, "b": 0.5}, temperature=0, max_tokens=4, ignore_eos=True)
    assert steps == [0, 1, 2, 3]
    assert {used.name: (used.scale, used.final_scale) for used in told.lora} == {"a": (0.8, 0.5), "b": (0.75, 0.65625)}
    with pytest.raises(InvalidScaleError, match="'both' at step 1 is 7"):
        llm.complete("Once", lora={"both": lambda step: 7 * step}, **GREEDY)


@pytest.mark.parametrize(
    ("name", "scales", "error", "says"),
    [
        ("both", {"a": 0.5}, LoraError, r"there is a mix 'both' already \(.*\); give another name, or say to overwrite it"),
        ("a", {"b": 0.5}, LoraError, "the name 'a' is an adapter's; give the mix another one"),
        ("x", {"gone": 0.5}, LoraNotFoundError, r"no adapter 'gone' is loaded here \(loaded: a, b\)"),
        ("x", {"both": 0.5}, LoraError, "the mix 'x' names 'both', a mix; a mix is made of adapters alone"),
        ("x", {"x": 0.5}, LoraError, "the mix 'x' names 'x', a mix"),
        ("x", {"a": 1.5}, InvalidScaleError, "scale of 'a' in the mix 'x' is 1.5"),
        ("x", {"a": float("nan")}, InvalidScaleError, "is nan"),
        ("x", {"a": lambda _: 1.0}, InvalidScaleError, "is <function"),
        ("x", {}, ValueError, "the mix 'x' is empty; name at least one adapter"),
        ("x", ["a"], TypeError, r"\['a'\] is no mapping"),
        ("", {"a": 0.5}, ValueError, "the name of a mix is ''"),
        (None, {"a": 0.5}, ValueError, "the name of a mix is None"),
    ],
)
def test_what_is_no_mix(llm, name, scales, error, says):
    with pytest.raises(error, match=says) as caught:
        llm.add_mix(name, scales)
    assert "\n" not in str(caught.value)
    assert llm.mixes == {"both": BOTH}


def test_the_same_again_and_another_in_its_place(llm):
    llm.add_mix("both", dict(BOTH))
    llm.add_mix("both", {"a": 0.5}, overwrite=True)
    assert llm.mixes == {"both": {"a": 0.5}}
    llm.remove_mix("both")
    assert llm.mixes == {}
    with pytest.raises(LoraNotFoundError, match=r"no mix 'both' is here \(mixes: none\)"):
        llm.remove_mix("both")
    with pytest.raises(LoraNotFoundError, match="no adapter 'both'"):
        llm.complete("Once", lora={"both": 1.0}, **GREEDY)


def test_what_a_request_may_not_ask(llm):
    a, _ = llm.lora_adapters
    for lora, error, says in (
        ({"both": 1.5}, InvalidScaleError, "scale of 'both' is 1.5"),
        ({"both": 1.0, "a": 0.5}, InvalidScaleError, "is 1.3"),
        ({a: 0.5, "a": 0.25}, LoraError, "the adapter 'a' was given twice"),
        ("both", TypeError, "'both' is no mapping of adapters to scales"),
    ):
        with pytest.raises(error, match=says):
            llm.complete("Once", lora=lora, **GREEDY)
        with pytest.raises(error, match=says):
            llm.set_lora_adapters(lora)
    assert llm.active_lora_adapters == {}


def test_names_and_members_stay_together(llm, tiny_adapter_a):
    with pytest.raises(LoraError, match="the name 'both' is taken by a mix"):
        llm.load_lora_adapter(tiny_adapter_a, name="both")
    again = llm.load_lora_adapter(tiny_adapter_a, name="again")
    with pytest.raises(LoraError, match=r"'again' is one more name of an adapter that is given already \('a'\)"):
        llm.complete("Once", lora={"both": 0.5, "again": 0.1}, **GREEDY)
    with pytest.raises(LoraError, match="the adapter 'a' is part of the mix 'both'; remove the mix first"):
        again.unload()
    assert [adapter.name for adapter in llm.lora_adapters] == ["a", "b"]


def test_awaited(tiny_model, tiny_adapter_a):
    async def run():
        async with AsyncLlamafu(tiny_model, n_ctx=256) as llm:
            await llm.load_lora_adapter(tiny_adapter_a)
            await llm.add_mix("half", {"a": 0.5})
            mixes = llm.mixes
            told = await llm.complete("Once", lora={"half": 0.5}, **GREEDY)
            await llm.remove_mix("half")
            return mixes, told.lora[0].scale, llm.mixes

    assert asyncio.run(run()) == ({"half": {"a": 0.5}}, 0.25, {})


def test_sums_do_not_leave_the_range_by_rounding():
    mixes = NamedMixes((0.0, 1.0))
    parts = {f"part{number}": 0.1 for number in range(9)}
    for name in parts:
        mixes.add(name, {"a": 1.0}, overwrite=False)
    assert sum([0.1] * 10) != 1.0
    assert mixes.expand({**parts, "a": 0.1}) == {"a": 1.0}
