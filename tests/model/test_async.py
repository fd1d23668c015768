"""`AsyncLlamafu`: the same answers, an event loop that never waits, and cancelling that stops at the next token."""

import asyncio
import functools
import threading
import time

import pytest
from helpers.child import run

from llamafu import AsyncLlamafu, Llamafu
from llamafu._native.adapter import Adapter as NativeAdapter
from llamafu._native.context import Context
from llamafu._native.instance import Instance
from llamafu._native.model import Model
from llamafu.adapters import AdapterReader
from llamafu.errors import ClosedError, ContextOverflowError, InvalidScaleError, LlamafuError, LoraNotFoundError, ModelLoadError

LIMIT = 60  # seconds, for what takes less than one
GAP = 0.1  # seconds that the loop may be late on a busy machine; one load or one generation here takes longer
GREEDY = {"temperature": 0, "ignore_eos": True}


@pytest.fixture
def opened(tiny_dir):
    """Return a function that makes an AsyncLlamafu over the tiny model."""

    def opened(**options):
        return AsyncLlamafu(tiny_dir / "tiny.gguf", **{"n_ctx": 512, "n_threads": 1, **options})

    return opened


def go(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, LIMIT))


class Counter:
    """A scale function that counts the tokens that are made with it, and can slow them down."""

    def __init__(self, pause=0.0):
        self.steps = 0
        self.pause = pause

    def __call__(self, step):
        self.steps = max(self.steps, step)
        if step:
            time.sleep(self.pause)
        return 1.0


async def until(condition):
    while not condition():  # noqa: ASYNC110 - it watches what no event announces
        await asyncio.sleep(0.001)


def test_the_same_answers_as_the_synchronous_one(opened, tiny_dir, tmp_path):
    """Every method, against Llamafu."""
    messages = [{"role": "user", "content": "hi"}]
    with Llamafu(tiny_dir / "tiny.gguf", n_ctx=512, n_threads=1, embeddings=True) as llm:
        llm.load_lora_adapter(tiny_dir / "a.gguf").apply(0.5)
        wanted = llm.complete("Hello", max_tokens=20, **GREEDY)
        chatted = llm.chat(messages, max_tokens=20, **GREEDY)
        vector = llm.embed("Hello")
        tokens = llm.tokenize("Hello")
        chat_tokens = llm.tokenize_chat(messages)
        logits = llm.next_logits(tokens, chat_tokens)

    async def main():
        async with opened(embeddings=True) as llm:
            adapter = await llm.load_lora_adapter(tiny_dir / "a.gguf")
            assert llm.lora_adapters == (adapter,)
            await llm.apply_lora_adapter(adapter, 0.5)
            assert llm.active_lora_adapters == {"a": 0.5}
            assert await llm.validate_lora_compatibility(tiny_dir / "b.gguf")
            completion = await llm.complete("Hello", max_tokens=20, **GREEDY)
            assert (completion.text, completion.tokens, completion.lora) == (wanted.text, wanted.tokens, wanted.lora)
            stream = await llm.stream("Hello", max_tokens=20, **GREEDY)
            assert "".join([piece async for piece in stream]) == wanted.text == stream.completion.text
            assert (await llm.chat(messages, max_tokens=20, **GREEDY)).text == chatted.text
            stream = await llm.stream_chat(messages, max_tokens=20, **GREEDY)
            assert "".join([piece async for piece in stream]) == chatted.text
            assert (await llm.embed("Hello") == vector).all()
            assert await llm.tokenize("Hello") == tokens
            assert await llm.detokenize(tokens) == "Hello"
            assert await llm.tokenize_chat(messages) == chat_tokens
            assert (await llm.next_logits(tokens, chat_tokens) == logits).all()
            await llm.complete("Hello", max_tokens=1, **GREEDY)
            await llm.save_state(tmp_path / "state")
            assert await llm.load_state(tmp_path / "state") == len(tokens)
            async with llm.using({}):
                assert llm.active_lora_adapters == {}
                assert (await llm.complete("Hello", max_tokens=20, **GREEDY)).text != wanted.text
            await llm.set_lora_adapters({"a": 0.25})
            await llm.remove_lora_adapter("a")
            await llm.clear_all_lora_adapters()
            await llm.unload_lora_adapter("a")
            assert llm.lora_adapters == ()

    go(main())


def test_the_names_are_those_of_the_synchronous_one():
    def public(kind):
        return {name for name in dir(kind) if not name.startswith("_")}

    assert public(Llamafu) == public(AsyncLlamafu)


def test_arguments_and_errors(opened, tiny_dir):
    """A wrong argument is a TypeError at once; everything else arrives where it is awaited, and more than once."""
    with pytest.raises(TypeError, match="unknown"):
        opened(unknown=1)
    with pytest.raises(TypeError):
        AsyncLlamafu()

    async def main():
        broken = AsyncLlamafu(tiny_dir / "missing.gguf")
        for _ in range(2):
            with pytest.raises(ModelLoadError, match=r"missing\.gguf"):
                await broken.complete("Hello")
        assert broken.lora_adapters == ()
        await broken.close()
        with pytest.raises(ModelLoadError):
            async with AsyncLlamafu(tiny_dir / "a.gguf"):
                pass
        async with opened() as llm:
            with pytest.raises(TypeError, match="max_token"):
                await llm.complete("Hello", max_token=1)
            with pytest.raises(ValueError, match="temperature"):
                await llm.stream("Hello", temperature=-1)
            with pytest.raises(ContextOverflowError):
                await llm.complete("Hello " * 1000)
            with pytest.raises(LoraNotFoundError, match="nobody"):
                await llm.apply_lora_adapter("nobody")
            await llm.load_lora_adapter(tiny_dir / "a.gguf")
            with pytest.raises(InvalidScaleError):
                await llm.set_lora_adapters({"a": 7.0})
            with pytest.raises(ZeroDivisionError):
                await llm.complete("Hello", lora={"a": lambda step: 1 / (3 - step)})
            stream = await llm.stream("Hello", lora={"a": lambda step: 1 / 0 if step == 3 else 1.0}, ignore_eos=True)
            with pytest.raises(ZeroDivisionError):
                _ = [piece async for piece in stream]
            assert stream.completion.usage.completion_tokens == 3
            with pytest.raises(LlamafuError, match="has not ended"):
                _ = (await llm.stream("Hello")).completion
            assert (await llm.complete("Hello", max_tokens=3, **GREEDY)).usage.completion_tokens == 3

    go(main())


def test_the_loop_keeps_ticking(tiny_dir, opened):
    """While a model loads, adapters load, eight requests generate and everything is closed."""
    gaps = []

    async def tick():
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.002)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    async def main():
        llm = opened()
        await llm.tokenize("x")  # imports, which hold the interpreter, are not what is measured
        await llm.close()
        ticker = asyncio.create_task(tick())
        began = time.perf_counter()
        async with opened() as llm:
            counter = Counter(pause=0.002)
            await llm.load_lora_adapter(tiny_dir / "a.gguf")
            requests = [llm.complete(f"Hello {n} " * 20, lora={"a": counter}, max_tokens=25, **GREEDY) for n in range(8)]
            change = [
                llm.set_lora_adapters({"a": 0.5}),
                llm.load_lora_adapter(tiny_dir / "b.gguf"),
                llm.tokenize("long " * 20000),
            ]
            await asyncio.gather(*requests, *change)
        took = time.perf_counter() - began
        ticker.cancel()
        assert took > 3 * GAP, "too fast to show anything"
        # A pause of the whole machine may make one gap long, a loop that waits makes them all.
        assert sorted(gaps)[-2] < GAP, sorted(gaps)[-5:]

    go(main())


def test_no_native_work_in_the_loops_thread(opened, tiny_dir, tmp_path, monkeypatch):
    """Whatever computes, loads, reads files or texts of any length runs in another thread."""
    threads = {}

    def watched(place, name):
        function = getattr(place, name)

        @functools.wraps(function)
        def call(*args, **options):
            threads.setdefault(name, set()).add(threading.current_thread())
            return function(*args, **options)

        monkeypatch.setattr(place, name, call)

    watched(Instance, "__init__")
    watched(NativeAdapter, "__init__")
    watched(NativeAdapter, "close")
    watched(AdapterReader, "read")
    for name in ("tokenize", "detokenize", "close"):
        watched(Model, name)
    for name in ("decode", "dump", "restore", "take_embeddings"):
        watched(Context, name)

    async def main():
        async with opened(embeddings=True) as llm:
            adapter = await llm.load_lora_adapter(tiny_dir / "a.gguf")
            await llm.set_lora_adapters({adapter: 1.0})
            await llm.validate_lora_compatibility(tiny_dir / "a.gguf")
            async with llm.using({}):
                await llm.complete("Hello", max_tokens=2)
            await llm.chat([{"role": "user", "content": "hi"}], max_tokens=2)
            _ = [piece async for piece in await llm.stream("Hello", max_tokens=2)]
            stream = await llm.stream("Hello")
            await anext(stream)
            await stream.aclose()
            await llm.embed("Hello")
            await llm.detokenize(await llm.tokenize("Hello"))
            await llm.complete("Hello", max_tokens=2)
            await llm.save_state(tmp_path / "state")
            await llm.load_state(tmp_path / "state")
            await llm.unload_lora_adapter(adapter)
        return threading.current_thread()

    loop_thread = go(main())
    assert set(threads) == {
        "__init__", "close", "read", "tokenize", "detokenize", "decode", "dump", "restore", "take_embeddings"
    }  # fmt: skip
    assert [name for name, where in threads.items() if loop_thread in where] == []


def test_cancelling_a_complete_stops_at_the_next_token(opened, tiny_dir):
    async def main():
        async with opened() as llm:
            await llm.load_lora_adapter(tiny_dir / "a.gguf")
            wanted = await llm.complete("Hello", lora={}, max_tokens=20, **GREEDY)
            for call in (llm.complete, lambda prompt, **o: llm.chat([{"role": "user", "content": prompt}], **o)):
                counter = Counter(pause=0.005)
                task = asyncio.create_task(call("Hello", lora={"a": counter}, max_tokens=400, **GREEDY))
                await until(lambda counter=counter: counter.steps >= 3)
                began = time.perf_counter()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert time.perf_counter() - began < GAP
                steps = counter.steps
                again = await llm.complete("Hello", lora={}, max_tokens=20, **GREEDY)
                assert (again.text, again.tokens) == (wanted.text, wanted.tokens)
                await asyncio.sleep(0.1)
                assert counter.steps <= steps + 1

    go(main())


@pytest.mark.parametrize("how", ["cancel", "timeout", "aclose", "drop"])
def test_ending_a_stream_stops_at_the_next_token(opened, tiny_dir, how):
    async def main():
        async with opened() as llm:
            await llm.load_lora_adapter(tiny_dir / "a.gguf")
            counter = Counter(pause=0.02)
            stream = await llm.stream("Hello", lora={"a": counter}, max_tokens=400, **GREEDY)
            await anext(stream)

            async def read():
                async for _piece in stream:
                    pass

            if how == "cancel":
                task = asyncio.create_task(read())
                await until(lambda: counter.steps >= 3)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            elif how == "timeout":
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(read(), 0.1)
            elif how == "aclose":
                task = asyncio.create_task(read())
                await until(lambda: counter.steps >= 3)
                await stream.aclose()
                await stream.aclose()
                await task
                assert stream.completion.finish_reason == "cancelled"
            else:
                del stream, read
            steps = counter.steps
            assert (await llm.complete("Hello", max_tokens=3, **GREEDY)).usage.completion_tokens == 3
            await asyncio.sleep(0.1)
            assert counter.steps <= steps + 1

    go(main())


def test_cancelling_what_has_not_begun(opened, tiny_dir):
    """A task that waits for the model to load, or for its turn behind another, goes at once and makes no token."""

    async def main():
        llm = opened()
        task = asyncio.create_task(llm.complete("Hello"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await llm.load_lora_adapter(tiny_dir / "a.gguf")
        first, second = Counter(pause=0.005), Counter()
        running = asyncio.create_task(llm.complete("Hello", lora={"a": first}, max_tokens=60, **GREEDY))
        await until(lambda: first.steps >= 2)
        waiting = asyncio.create_task(llm.complete("Hello", lora={"a": second}, **GREEDY))
        await asyncio.sleep(0.02)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (await running).finish_reason == "length"
        assert second.steps == 0
        await llm.close()

    go(main())


def test_tasks_at_once(opened, tiny_dir):
    """Ninety tasks, more than there are workers: each gets what it gets alone, streams as well, and closing does not queue."""

    async def main():
        async with opened() as llm:
            await llm.load_lora_adapter(tiny_dir / "a.gguf")
            options = [{"lora": {"a": 1.0} if n % 2 else {}, "max_tokens": 4, **GREEDY} for n in range(6)]
            wanted = [(await llm.complete(f"Hello {n}", **options[n])).text for n in range(6)]

            async def read(n):
                return "".join([piece async for piece in await llm.stream(f"Hello {n}", **options[n])])

            async def ask(n):
                return (await llm.complete(f"Hello {n}", **options[n])).text

            results = await asyncio.gather(*[(read if k % 2 else ask)(k % 6) for k in range(90)])
            assert results == [wanted[k % 6] for k in range(90)]

    go(main())


def test_closing_does_not_queue_behind_generations(opened, tiny_dir):
    """Many long requests wait for their turn; close() ends them all with ClosedError."""

    async def main():
        llm = opened()
        await llm.load_lora_adapter(tiny_dir / "a.gguf")
        stream = await llm.stream("Hello", **GREEDY)
        await anext(stream)
        counter = Counter(pause=0.01)
        request = {"lora": {"a": counter}, "max_tokens": 400, **GREEDY}
        tasks = [asyncio.create_task(llm.complete("Hello", **request)) for _ in range(20)]
        await until(lambda: counter.steps >= 2)
        began = time.perf_counter()
        await llm.close()
        assert time.perf_counter() - began < 10 * GAP
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [ClosedError] * 20
        with pytest.raises(ClosedError):
            await anext(stream)
        await stream.aclose()
        await llm.close()
        for call in (llm.complete("x"), llm.tokenize("x"), llm.load_lora_adapter("x"), llm.set_lora_adapters({})):
            with pytest.raises(ClosedError):
                await call
        with pytest.raises(ClosedError):
            _ = llm.lora_adapters

    go(main())


def test_two_streams_take_turns_without_computing_their_prompts_anew(opened):
    """Two tasks that read a stream each: the context is not taken from one in the middle of it."""

    async def main():
        async with opened() as llm:
            streams = [await llm.stream(f"{n} Hello " * 30, max_tokens=40, **GREEDY) for n in range(2)]
            decoded = []
            context = (await llm._model())._session.instance.context
            decode = context.decode
            context.decode = lambda tokens, *rest, **more: (decoded.append(len(tokens)), decode(tokens, *rest, **more))[1]

            async def read(stream):
                return [piece async for piece in stream]

            await asyncio.gather(*map(read, streams))
            prompts = sum(stream.completion.usage.prompt_tokens for stream in streams)
            assert sum(decoded) <= prompts + 80 + 10

    go(main())


@pytest.mark.parametrize(
    "end",
    [
        "await llm.close()",
        "pass",
        "asyncio.create_task(llm.complete('Hello', **GREEDY)); await asyncio.sleep(0.02)",
        "stream = await llm.stream('Hello', **GREEDY); await anext(stream)",
        "task = asyncio.create_task(broken.complete('x')); await asyncio.sleep(0); task.cancel()",
    ],
)
def test_exit_is_clean(tiny_dir, end):
    run(
        tiny_dir,
        f"""
import asyncio
from llamafu import AsyncLlamafu
async def main():
    asyncio.get_running_loop().slow_callback_duration = 60  # busy machines have slow callbacks
    llm = AsyncLlamafu(TINY / "tiny.gguf", n_threads=1)
    broken = AsyncLlamafu(TINY / "missing.gguf")
    await llm.tokenize("x")
    {end}
asyncio.run(main())
""",
    )
