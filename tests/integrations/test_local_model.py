"""What the integrations are made of, without the packages that they are for; `tests/peers/` has them."""

import asyncio
import importlib
import importlib.util

import pytest
from helpers.doc_pages import project
from helpers.served import wait_for

from llamafu import Engine
from llamafu.errors import LoraNotFoundError
from llamafu.integrations.local_model import async_chat_events, chat_events, check_local_model, last_of, scales_of

HI = [{"role": "user", "content": "hello"}]
GREEDY = {"temperature": 0, "max_tokens": 8}
ENDLESS = {"temperature": 0, "max_tokens": -1, "ignore_eos": True}


@pytest.fixture(scope="module")
def engine(real, tiny_model, folder):
    with Engine(tiny_model, n_ctx=2048, n_threads=1, adapters_dir=folder, library=real.path) as engine:
        yield engine


@pytest.fixture(params=["engine", "llamafu"])
def model(request, engine, alone):
    return {"engine": engine, "llamafu": alone}[request.param]


async def collected(events, most=None):
    found = []
    async for event in events:
        found.append(event)
        if len(found) == most:
            break
    await events.aclose()
    return found


def test_events_are_the_answers_pieces_and_its_completion(model, alone):
    wanted = alone.chat(HI, lora={"a": 1.0}, **GREEDY)
    options = {"lora": scales_of(model, "a", None), **GREEDY}
    events = list(chat_events(model, HI, options))
    assert "".join(events[:-1]) == last_of(events).text == wanted.text
    events = asyncio.run(collected(async_chat_events(model, HI, options)))
    assert "".join(events[:-1]) == last_of(events).text == wanted.text
    assert last_of(events).lora == wanted.lora


def test_leaving_early_ends_the_answer(model, engine):
    events = chat_events(model, HI, ENDLESS)
    assert next(events)
    events.close()
    assert len(asyncio.run(collected(async_chat_events(model, HI, ENDLESS), 2))) == 2
    assert wait_for(lambda: engine.stats().running == 0)
    assert last_of(chat_events(model, HI, GREEDY)).finish_reason == "length"  # the context is free again


def test_a_cancelled_task_ends_the_answer(model, engine):
    async def cancelled():
        task = asyncio.create_task(collected(async_chat_events(model, HI, ENDLESS)))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await collected(async_chat_events(model, HI, GREEDY))

    assert last_of(asyncio.run(cancelled())).finish_reason == "length"
    assert wait_for(lambda: engine.stats().running == 0)


def test_errors_are_those_of_the_model(model):
    with pytest.raises(LoraNotFoundError, match="'gone'"):
        list(chat_events(model, HI, {"lora": scales_of(model, "gone", None)}))
    with pytest.raises(TypeError, match="did you mean 'temperature'"):
        asyncio.run(collected(async_chat_events(model, HI, {"temprature": 0})))


def test_which_adapters_act(engine):
    assert scales_of(engine, None, None) is None
    assert scales_of(engine, "tiny", None) is None
    assert scales_of(engine, "a", None) == {"a": 1.0}
    assert scales_of(engine, None, {}) == {}
    with pytest.raises(ValueError, match="model='a' and lora={} both say which adapters act; give one of them"):
        scales_of(engine, "a", {})
    with pytest.raises(TypeError, match="engine is str; give a llamafu.Engine or a llamafu.Llamafu"):
        check_local_model("tiny.gguf")


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [("langchain", "langchain_core", "langchain"), ("llm_plugin", "llm", "llm")],
)
def test_without_its_package_an_integration_names_its_extra(module, package, extra):
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed here")
    with pytest.raises(ModuleNotFoundError, match=rf"pip install 'llamafu\[{extra}\]'"):
        importlib.import_module(f"llamafu.integrations.{module}")
    assert extra in project()["project"]["optional-dependencies"]


def test_the_plugin_is_where_its_entry_point_says():
    [place] = project()["project"]["entry-points"]["llm"].values()
    assert importlib.util.find_spec(place) is not None
