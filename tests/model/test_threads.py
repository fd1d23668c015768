"""Many threads on one object: every result is the one that the request gets alone, and nobody waits for ever."""

import faulthandler
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from llamafu import Llamafu
from llamafu.errors import ClosedError, LlamafuError, LoraNotFoundError
from llamafu.model.context_lock import IDLE

THREADS = 8
LIMIT = 60  # seconds, for what takes less than one


@pytest.fixture(autouse=True)
def _no_hang():
    """Print every stack and end the run, rather than wait for ever in a fixture's close()."""
    faulthandler.dump_traceback_later(3 * LIMIT, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def llm(tiny_dir):
    with Llamafu(tiny_dir / "tiny.gguf", n_ctx=512, n_threads=1) as llm:
        for name in ("a", "b"):
            llm.load_lora_adapter(tiny_dir / f"{name}.gguf")
        yield llm


def requests():
    """Return a request for each thread: prompts that share beginnings, every kind of adapter set, greedy and drawn."""
    loras = [
        {},
        {"a": 1.0},
        {"b": 1.0},
        {"a": 0.5, "b": 0.25},
        {"a": 0.0},
        {"b": 0.75},
        None,
        {"a": lambda step: 1 / (1 + step)},
    ]
    return [
        {
            "prompt": "Once upon a time " * (1 + number % 3) + "abcdefgh"[number],
            "lora": lora,
            "temperature": 0 if number % 2 else 0.9,
            "seed": number,
            "max_tokens": 24,
            "logprobs": 2,
            "ignore_eos": True,
        }
        for number, lora in enumerate(loras)
    ]


def outcome(completion):
    return completion.text, completion.tokens, completion.logprobs, completion.lora, completion.finish_reason


def alone(llm):
    return [outcome(llm.complete(**request)) for request in requests()]


def finish(stream):
    text = "".join(stream)
    assert text == stream.completion.text
    return outcome(stream.completion)


def in_threads(functions):
    """Run all at once; re-raise what they raise; a thread that hangs fails the test and is left behind."""
    results = [None] * len(functions)
    barrier = threading.Barrier(len(functions))

    def run(number):
        barrier.wait(LIMIT)
        try:
            results[number] = functions[number]()
        except BaseException as error:  # noqa: BLE001 - handed to the main thread
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(len(functions))]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + LIMIT
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))
        assert not thread.is_alive(), "a thread waits for ever"
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


@pytest.mark.parametrize("kind", ["complete", "stream", "both"])
def test_eight_threads_get_what_they_get_alone(llm, kind):
    """Bytes, logprobs and reports equal those of the same requests one after another, over several rounds."""
    wanted = alone(llm)

    def ask(number):
        results = []
        for round_number in range(3):
            request = requests()[number]
            if kind == "stream" or (kind == "both" and (number + round_number) % 2):
                results.append(finish(llm.stream(**request)))
            else:
                results.append(outcome(llm.complete(**request)))
        return results

    results = in_threads([lambda number=number: ask(number) for number in range(THREADS)])
    assert results == [[one] * 3 for one in wanted]


def test_interleaved_streams_in_one_thread(llm):
    """Eight open streams advanced in turn, a complete() and adapter changes in the middle: nothing is mixed up."""
    wanted = alone(llm)
    streams = [llm.stream(**request) for request in requests()]
    texts = [""] * len(streams)
    alive = set(range(len(streams)))
    rounds = 0
    while alive:
        rounds += 1
        for number in sorted(alive):
            piece = next(streams[number], None)
            if piece is None:
                alive.discard(number)
            else:
                texts[number] += piece
        if rounds == 3:
            assert outcome(llm.complete(**requests()[1])) == wanted[1]
            llm.set_lora_adapters({"a": 1.0})
        if rounds == 6:
            assert outcome(llm.complete(**requests()[4])) == wanted[4]
            llm.clear_all_lora_adapters()
    assert rounds > 6
    assert [outcome(stream.completion) for stream in streams] == wanted
    assert texts == [one[0] for one in wanted]


def test_one_stream_read_by_many_threads(llm):
    """Pieces are handed out once each, and the completion is the one of a single reader."""
    request = requests()[3]
    wanted = outcome(llm.complete(**request))
    stream = llm.stream(**request)
    pieces = in_threads([lambda: list(stream)] * THREADS)
    assert outcome(stream.completion) == wanted
    assert sorted("".join(map("".join, pieces))) == sorted(wanted[0])


def test_changing_the_active_set_leaves_a_running_stream_alone(llm):
    """A request keeps the set that it started with; the next one gets the new one."""
    request = {"prompt": "Hello", "temperature": 0, "max_tokens": 100, "ignore_eos": True}
    both = outcome(llm.complete(lora={"a": 1.0, "b": 0.5}, **request))
    base = outcome(llm.complete(lora={}, **request))
    llm.set_lora_adapters({"a": 1.0, "b": 0.5})
    stream = llm.stream(**request)
    next(stream)

    def change():
        for scale in (0.1, 0.9, 0.0, 1.0) * 10:
            llm.set_lora_adapters({"b": scale})
            llm.apply_lora_adapter("a", scale)
            llm.remove_lora_adapter("b")
            with llm.using({"a": scale}):
                assert set(llm.active_lora_adapters) <= {"a", "b"}
        llm.clear_all_lora_adapters()

    in_threads([change, lambda: list(stream)])
    assert outcome(stream.completion) == both
    assert outcome(llm.complete(**request)) == base


def test_load_and_unload_storm_during_generation(llm, tiny_dir):
    """Four threads load and unload other adapters without a pause; four generate, and get what they get alone."""
    wanted = alone(llm)
    done = threading.Event()
    files = ["f16.gguf", "wide.gguf", "one-attn_q.gguf", "one-ffn_up.gguf"]

    def storm(number):
        cycles = 0
        while not done.is_set():
            adapter = llm.load_lora_adapter(tiny_dir / files[number], name=f"storm-{number}")
            adapter.apply(0.0)
            adapter.unload()
            cycles += 1
        return cycles

    with ThreadPoolExecutor(8) as pool:
        storms = [pool.submit(storm, number) for number in range(4)]
        try:
            asked = [pool.submit(lambda n=n: outcome(llm.complete(**requests()[n]))) for n in (0, 1, 3, 5, 7)]
            assert [job.result(LIMIT) for job in asked] == [wanted[n] for n in (0, 1, 3, 5, 7)]
        finally:
            done.set()
        assert min(job.result(LIMIT) for job in storms) > 0
    assert [adapter.name for adapter in llm.lora_adapters] == ["a", "b"]


def test_everyone_loads_and_unloads_the_same_file(llm, tiny_dir):
    """One adapter under contention: the one object, or an error that says that it is gone; never a crash."""

    def cycle():
        for _ in range(20):
            adapter = llm.load_lora_adapter(tiny_dir / "f16.gguf", name="contended")
            try:
                adapter.apply(0.5)
                llm.complete("Hello", lora={"contended": 1.0}, temperature=0, max_tokens=2)
                adapter.unload()
            except (LoraNotFoundError, ClosedError):
                continue

    in_threads([cycle] * 4)
    assert [adapter.name for adapter in llm.lora_adapters][:2] == ["a", "b"]


@pytest.mark.parametrize(
    "call",
    [
        lambda llm, path: llm.complete("x", temperature=0, max_tokens=1),
        lambda llm, path: next(llm.stream("x")),
        lambda llm, path: llm.load_lora_adapter(path),
        lambda llm, path: llm.unload_lora_adapter("b"),
        lambda llm, path: llm.close(),
        lambda llm, path: llm.save_state(path.parent / "never-written"),
    ],
    ids=["complete", "stream", "load", "unload", "close", "save_state"],
)
def test_a_scale_function_that_calls_back_is_an_error(llm, tiny_dir, call):
    """What would wait for the very step that asks is a LlamafuError; the object is usable afterwards."""
    wanted = alone(llm)

    def scale(step):
        if step == 3:
            call(llm, tiny_dir / "f16.gguf")
        return 1.0

    def ask():
        with pytest.raises(LlamafuError, match="scale function"):
            llm.complete("Hello", lora={"a": scale}, temperature=0, max_tokens=10, ignore_eos=True)

    in_threads([ask])
    assert alone(llm) == wanted
    assert not (tiny_dir / "never-written").exists()


def test_what_a_scale_function_may_do(llm):
    """Reading, tokenizing and changing the active set wait for nothing; ending its own stream ends it after the step."""
    seen = []

    def scale(step):
        seen.append((llm.active_lora_adapters, len(llm.tokenize("abc")), len(llm.lora_adapters)))
        llm.apply_lora_adapter("b", 0.5)
        if step == 3:
            stream.close()
        return 1.0

    stream = llm.stream("Hello", lora={"a": scale}, temperature=0, ignore_eos=True)
    in_threads([lambda: list(stream)])
    assert stream.completion.finish_reason == "cancelled"
    assert stream.completion.usage.completion_tokens in {3, 4}
    assert seen[0][0] == {}
    assert seen[1][0] == {"b": 0.5}


def test_a_scale_function_that_raises_ends_its_own_generation_alone(llm):
    """The error arrives as it is, other threads get their results."""
    wanted = alone(llm)

    def scale(step):
        return 1.0 if step < 3 else 1 / 0

    def fail():
        for _ in range(5):
            with pytest.raises(ZeroDivisionError):
                llm.complete("Hello", lora={"a": scale}, temperature=0, max_tokens=10, ignore_eos=True)

    results = in_threads([fail, fail, *[lambda n=n: outcome(llm.complete(**requests()[n])) for n in range(6)]])
    assert results[2:] == wanted[:6]


def test_an_idle_stream_blocks_nobody(llm):
    """Left alone after one piece, it yields to another thread within moments, and goes on afterwards as if nothing had been."""
    request = requests()[1]
    wanted = alone(llm)
    stream = llm.stream(**request)
    pieces = [next(stream)]
    began = time.monotonic()
    assert in_threads([lambda: outcome(llm.complete(**requests()[3]))]) == [wanted[3]]
    assert time.monotonic() - began < IDLE + 5
    pieces += stream
    assert outcome(stream.completion) == wanted[1]
    assert "".join(pieces) == wanted[1][0]


def test_visits_do_not_keep_an_idle_stream_in_its_place(llm, tiny_dir):
    """While one thread loads and unloads all the time, another still gets the context of a stream that was left alone."""
    wanted = alone(llm)
    stream = llm.stream(**requests()[1])
    next(stream)
    done = threading.Event()

    def storm():
        while not done.is_set():
            llm.load_lora_adapter(tiny_dir / "f16.gguf").unload()
            time.sleep(IDLE / 10)

    def ask():
        try:
            return outcome(llm.complete(**requests()[3]))
        finally:
            done.set()

    assert in_threads([storm, ask])[1] == wanted[3]


def test_cancel_reaches_a_generation_that_waits_for_its_turn(llm):
    """A stream that is not at its turn ends at once when it is cancelled or closed from elsewhere."""
    entered, go_on = threading.Event(), threading.Event()

    def hold(step):
        if step == 2:
            entered.set()
            assert go_on.wait(LIMIT)
        return 1.0

    holder = threading.Thread(
        target=llm.complete, args=("Hello",), kwargs={"lora": {"a": hold}, "max_tokens": 5, "ignore_eos": True}, daemon=True
    )
    holder.start()
    assert entered.wait(LIMIT)
    for end in (lambda stream: stream.cancel(), lambda stream: stream.close()):
        waiting = llm.stream("Hello", temperature=0)
        reader = threading.Thread(target=list, args=(waiting,), daemon=True)
        reader.start()
        time.sleep(0.05)
        assert reader.is_alive()
        end(waiting)
        reader.join(LIMIT)
        assert not reader.is_alive()
        assert waiting.completion.finish_reason == "cancelled"
        assert waiting.completion.tokens == ()
    go_on.set()
    holder.join(LIMIT)
    assert not holder.is_alive()


def test_closing_a_stream_from_another_thread_waits_for_its_step(llm):
    """Close while it runs, with a sampler chain in use, again and again: it ends, and the object is usable."""
    for number in range(20):
        stream = llm.stream("Hello", seed=number, ignore_eos=True, max_tokens=400)
        reader = threading.Thread(target=list, args=(stream,), daemon=True)
        reader.start()
        time.sleep(0.0005 * number)
        stream.close()
        reader.join(LIMIT)
        assert not reader.is_alive()
        assert stream.completion.finish_reason in {"cancelled", "length"}
    assert llm.complete("Hello", temperature=0, max_tokens=2).tokens


def test_two_objects_in_parallel(llm, tiny_dir):
    """Each has its own context and adapters; what one does is nothing to the other."""
    wanted = alone(llm)
    with Llamafu(tiny_dir / "tiny.gguf", n_ctx=512, n_threads=1) as other:
        for name in ("a", "b"):
            other.load_lora_adapter(tiny_dir / f"{name}.gguf")
        asks = [lambda m=m, n=n: outcome(m.complete(**requests()[n])) for n in range(4) for m in (llm, other)]
        assert in_threads(asks) == [wanted[n] for n in range(4) for _ in range(2)]
