"""Every way in which objects can end: nothing crashes, hangs, leaks or says a word. Each case has a process of its own."""

import signal
import sys

import pytest
from helpers.child import run

needs_fork = pytest.mark.skipif(not hasattr(sys, "getdlopenflags") or sys.platform == "darwin", reason="needs a usable fork")
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads resident memory from /proc")
needs_timer = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="interrupts the main thread by a timer's signal")

USE_AND_END = {
    "without close": "llm = opened(); llm.complete('Hello', **GREEDY)",
    "with two threads of libllama": "llm = opened(n_threads=2); llm.complete('Hello', temperature=0, max_tokens=2)",
    "close twice": "llm = opened(); llm.close(); llm.close(); print(repr(llm))",
    "with block": """
with opened() as llm:
    text = llm.complete("Hello", **GREEDY).text
assert text and repr(llm).endswith("(closed)>")
""",
    "error inside a with block": "raises(ZeroDivisionError, lambda: opened().__enter__() and 1 / 0)",
    "never used": "opened()",
    "import only": "",
    "open stream": "llm = opened(); stream = llm.stream('Hello', ignore_eos=True); next(stream)",
    "open stream of a dropped object": "stream = opened().stream('Hello', ignore_eos=True); next(stream); next(stream)",
    "open greedy stream in a cycle": "s = opened().stream('x', **GREEDY); next(s); loop = [s]; loop.append(loop); del s, loop",
    "active adapters": """
llm = opened()
a = llm.load_lora_adapter(TINY / "a.gguf")
b = llm.load_lora_adapter(TINY / "b.gguf")
llm.set_lora_adapters({a: 1.0, b: 0.5})
stream = llm.stream("Hello", ignore_eos=True)
next(stream)
""",
    "two objects": """
one, two = opened(), opened("tiny-q4_0.gguf")
one.load_lora_adapter(TINY / "a.gguf").apply()
streams = [one.stream("Hello", ignore_eos=True), two.stream("Hello", ignore_eos=True)]
for stream in streams:
    next(stream)
""",
    "sys.exit inside a stream": """
llm = opened()
for piece in llm.stream("Hello", **GREEDY):
    sys.exit(0)
""",
    "sys.exit inside a scale function": """
llm = opened()
llm.load_lora_adapter(TINY / "a.gguf")
llm.complete("Hello", lora={"a": lambda step: sys.exit(0) if step == 3 else 1.0}, **GREEDY)
""",
    "closed in an atexit function registered before": """
import atexit
llm = opened()
stream = llm.stream("Hello", **GREEDY)
next(stream)
atexit.register(lambda: (stream.close(), llm.close()))
""",
    "used in an atexit function registered before us": """
import sys
for name in [name for name in sys.modules if name.startswith("llamafu")]:
    del sys.modules[name]
import atexit
atexit.register(lambda: raises(ClosedError, lambda: llm.complete("x")))
from llamafu import Llamafu
from llamafu.errors import ClosedError
llm = opened()
""",
    "a daemon thread that calls after the end": """
llm = opened()
go = threading.Event()
threading.Thread(target=lambda: go.wait() and llm.load_lora_adapter(TINY / "a.gguf"), daemon=True).start()
llm._session.close_at_exit()
go.set()
time.sleep(0.2)
""",
    "an exception that holds the object": """
llm = opened()
try:
    for piece in llm.stream("Hello", **GREEDY):
        raise RuntimeError
except RuntimeError as error:
    kept = error
""",
}


@pytest.mark.parametrize("case", USE_AND_END)
def test_exit_is_clean(tiny_dir, case):
    run(tiny_dir, USE_AND_END[case])


def test_use_after_close(tiny_dir):
    """Every public method and property of a closed object, and of its adapters, raises ClosedError."""
    run(
        tiny_dir,
        """
from llamafu import LoraAdapter
llm = opened(embeddings=True)
adapter = llm.load_lora_adapter(TINY / "a.gguf")
adapter.apply()
stream = llm.stream("Hello", **GREEDY)
next(stream)
unread = llm.stream("Hello", **GREEDY)
llm.close()
message = [{"role": "user", "content": "hi"}]
calls = {
    "load_lora_adapter": lambda: llm.load_lora_adapter(TINY / "b.gguf"),
    "apply_lora_adapter": lambda: llm.apply_lora_adapter("a"),
    "set_lora_adapters": lambda: llm.set_lora_adapters({}),
    "remove_lora_adapter": lambda: llm.remove_lora_adapter(adapter),
    "clear_all_lora_adapters": llm.clear_all_lora_adapters,
    "unload_lora_adapter": lambda: llm.unload_lora_adapter(adapter),
    "using": lambda: llm.using({}).__enter__(),
    "lora_adapters": lambda: llm.lora_adapters,
    "active_lora_adapters": lambda: llm.active_lora_adapters,
    "add_mix": lambda: llm.add_mix("mix", {"a": 1.0}),
    "remove_mix": lambda: llm.remove_mix("mix"),
    "mixes": lambda: llm.mixes,
    "validate_lora_compatibility": lambda: llm.validate_lora_compatibility(TINY / "a.gguf"),
    "complete": lambda: llm.complete("Hello"),
    "stream": lambda: llm.stream("Hello"),
    "chat": lambda: llm.chat(message),
    "stream_chat": lambda: llm.stream_chat(message),
    "embed": lambda: llm.embed("Hello"),
    "rerank": lambda: llm.rerank("Hello", ["there"]),
    "next_logits": lambda: llm.next_logits([40]),
    "tokenize": lambda: llm.tokenize("Hello"),
    "tokenize_chat": lambda: llm.tokenize_chat(message),
    "detokenize": lambda: llm.detokenize([40]),
    "save_state": lambda: llm.save_state("/nonexistent/state"),
    "load_state": lambda: llm.load_state("/nonexistent/state"),
}
known = {name for name in dir(Llamafu) if not name.startswith("_")} - {"close", "from_pretrained"}
assert set(calls) == known, set(calls) ^ known
for call in calls.values():
    assert "closed" in raises(ClosedError, call)
calls = {
    "apply": adapter.apply, "remove": adapter.remove, "unload": adapter.unload,
    "set_scale": lambda: adapter.set_scale(0.5), "scale": lambda: adapter.scale, "is_active": lambda: adapter.is_active,
}
assert set(calls) == {name for name in dir(LoraAdapter) if not name.startswith("_")} - {"digest"}
for call in calls.values():
    assert "closed" in raises(ClosedError, call)
assert adapter.digest and adapter.name == "a" and adapter.info.rank == 4 and repr(adapter)
raises(ClosedError, lambda: next(stream))
assert stream.completion.finish_reason == "cancelled" and stream.completion.usage.completion_tokens == 1
raises(ClosedError, lambda: next(unread))
for ended in (stream, unread):
    ended.cancel(), ended.close(), ended.close()
    assert next(ended, None) is None
""",
    )


@needs_proc
def test_failed_constructors(tiny_dir, tmp_path):
    """Each is a clear error, prints nothing, and leaves no memory behind."""
    (tmp_path / "text.gguf").write_text("this is no model")
    (tmp_path / "empty.gguf").write_bytes(b"")
    whole = (tiny_dir / "tiny.gguf").read_bytes()
    for size in (20, 5000, len(whole) // 2, len(whole) - 1):
        (tmp_path / f"cut{size}.gguf").write_bytes(whole[:size])
    run(
        tiny_dir,
        f"""
folder = Path({str(tmp_path)!r})
model = TINY / "tiny.gguf"
cases = [(ModelLoadError, "no such", folder / "missing.gguf", {{}}), (ModelLoadError, "", folder, {{}})]
cases += [(ModelLoadError, path.name, path, {{}}) for path in sorted(folder.iterdir())]
cases += [(ModelLoadError, "LoRA adapter", TINY / "a.gguf", {{}})]
cases += [(ValueError, f"n_ctx={{n!r}}", model, {{"n_ctx": n}}) for n in (0, 1, -5, 2**31, 2**32 + 64, 2**70, 2.0, True, "512")]
cases += [(ContextInitError, "machine has", model, {{"n_ctx": n}}) for n in (2**31 - 1, 2**30)]
cases += [(ValueError, f"n_batch={{n!r}}", model, {{"n_batch": n}}) for n in (0, -1, 2**31, 2**40, None)]
cases += [(ValueError, f"n_threads={{n!r}}", model, {{"n_threads": n}}) for n in (0, -1, 513, 100_000, 2**40)]
cases += [(ValueError, f"n_gpu_layers={{n!r}}", model, {{"n_gpu_layers": n}}) for n in (-2, 2**31, None, "all")]
kinds = ("nonsense", "", "i8", "i32", "f64", "q8_1", "iq2_xxs", "tq1_0", 3, None)
cases += [(ContextInitError, f"type_k={{kind!r}}", model, {{"type_k": kind}}) for kind in kinds]
cases += [(ContextInitError, f"type_v={{kind!r}}", model, {{"type_v": kind}}) for kind in kinds]
cases += [(ContextInitError, "q8_0", model, {{"type_v": "q8_0", "flash_attn": "off"}})]
cases += [(ValueError, "flash_attn", model, {{"flash_attn": value}}) for value in ("yes", True, None)]
cases += [(ValueError, "scale_range", model, {{"scale_range": value}}) for value in ((1, 0), 1, (0, float("nan")), None)]
cases += [(LlamafuError, "no such model file", model, {{"mmproj_path": "x.gguf"}})]
cases += [(LibraryNotFoundError, "/nonexistent", model, {{"library": "/nonexistent"}})]
cases += [(TypeError, "unknown", model, {{"unknown": 1}})]


def fail_all():
    for error, part, path, options in cases:
        text = raises(error, lambda: opened(path, **options))
        assert part in text, (part, text)
        assert "\\n" not in text


fail_all()
opened().complete("Hello", **GREEDY)
fail_all()
before = resident()
for _ in range(10):
    fail_all()
grown = resident() - before
assert grown < 0.02 * before, f"{{grown}} of {{before}} bytes more"
""",
    )


def test_dropping_the_last_reference_frees(tiny_dir):
    """At once, without the cycle collector: with adapters active, after an ended stream, with an open one dropped."""
    run(
        tiny_dir,
        """
import weakref
gc.disable()
llm = opened()
adapter = llm.load_lora_adapter(TINY / "a.gguf")
adapter.apply()
list(llm.stream("Hello", **GREEDY))
stream = llm.stream("Hello", ignore_eos=True)
next(stream)
instance, watch, chain = llm._session.instance, weakref.ref(llm), stream._generation._sampler._pipeline._chains[0]
del llm
assert not instance.closed and next(stream) is not None  # an open stream keeps it
del stream
assert instance.closed and watch() is None
raises(ClosedError, lambda: chain.pointer)
assert "gone" in raises(ClosedError, adapter.apply) and "gone" in raises(ClosedError, lambda: adapter.scale)
assert adapter.digest and adapter.name == "a" and repr(adapter)
""",
    )


@pytest.mark.parametrize(
    "end", ["stream.close()", "del stream", "stream.cancel(); list(stream)", "stream.__exit__(None, None, None)"]
)
def test_a_stream_that_is_given_up_frees_its_sampler_and_its_turn(tiny_dir, end):
    run(
        tiny_dir,
        f"""
llm = opened()
stream = llm.stream("Hello", ignore_eos=True)
next(stream)
chain = stream._generation._sampler._pipeline._chains[0]
assert llm._session.lock._holder is stream._generation
{end}
raises(ClosedError, lambda: chain.pointer)
assert llm._session.lock._holder is None
""",
    )


@needs_proc
def test_memory_stays_where_it_was(tiny_dir):
    """After a warm-up: 300 load/unload cycles, 2000 streams given up, 40 objects; at most 2 % of resident memory more."""
    run(
        tiny_dir,
        """
llm = opened()

def cycle(count):
    for i in range(count):
        adapter = llm.load_lora_adapter(TINY / ("a.gguf", "f16.gguf", "wide.gguf")[i % 3])
        adapter.apply(0.5)
        llm.complete("Hello", temperature=0, max_tokens=1)
        adapter.unload()

def give_up(count):
    for i in range(count):
        stream = llm.stream("Hello", max_tokens=9, seed=i)
        next(stream)

def open_and_close(count):
    for i in range(count):
        with opened() as other:
            other.load_lora_adapter(TINY / "a.gguf").apply()
            other.complete("Hello", temperature=0, max_tokens=1)

for work, warm, count in ((cycle, 100, 300), (give_up, 300, 2000), (open_and_close, 10, 40)):
    work(warm)
    before = resident()
    work(count)
    grown = resident() - before
    assert grown <= 0.02 * before, f"{work.__name__}: {grown} of {before} bytes more"
""",
        MALLOC_MMAP_THRESHOLD_="65536",  # glibc moves its threshold otherwise, and resident memory jumps by megabytes
        MALLOC_TRIM_THRESHOLD_="65536",
    )


def test_unload_while_active_and_while_a_stream_uses_it(tiny_dir):
    """The stream ends with ClosedError at its next step; its output before is intact; the object goes on."""
    run(
        tiny_dir,
        """
llm = opened()
adapter = llm.load_lora_adapter(TINY / "a.gguf")
base = llm.complete("Hello", **GREEDY).tokens
adapter.apply()
wanted = llm.complete("Hello", **GREEDY).tokens
assert wanted != base
stream = llm.stream("Hello", **GREEDY)
for _ in range(5):
    next(stream)
adapter.unload()
assert llm.active_lora_adapters == {} and llm.lora_adapters == () and not adapter.is_active and adapter.scale == 0.0
assert "unloaded" in raises(ClosedError, lambda: next(stream))
made = stream.completion.tokens
assert len(made) >= 5 and made == wanted[: len(made)] and stream.completion.finish_reason == "cancelled"
assert next(stream, None) is None
raises(LoraNotFoundError, adapter.apply)
assert llm.complete("Hello", **GREEDY).tokens == base
again = llm.load_lora_adapter(TINY / "a.gguf")
assert again is not adapter and not again.is_active
assert llm.complete("Hello", lora={again: 1.0}, **GREEDY).tokens == wanted
b = llm.load_lora_adapter(TINY / "b.gguf", name="voice")
b.apply(0.5)
b.unload()
llm.load_lora_adapter(TINY / "f16.gguf", name="voice").apply(0.25)
assert b.scale == 0.0 and not b.is_active  # the same name, another adapter
""",
    )


@pytest.mark.parametrize("sampling", ["**GREEDY", "ignore_eos=True, max_tokens=300, seed=1"])
def test_close_while_streaming(tiny_dir, sampling):
    """In the same thread, and from another one in the middle of steps: ClosedError, never a crash."""
    run(
        tiny_dir,
        f"""
llm = opened()
stream = llm.stream("Hello", {sampling})
next(stream)
llm.close()
raises(ClosedError, lambda: next(stream))

seen = []
def read(stream):
    try:
        for _piece in stream:
            pass
        seen.append("ended")
    except ClosedError:
        seen.append("closed")
for round in range(15):
    llm = opened()
    stream = llm.stream("Hello " * 30, {sampling})
    reader = threading.Thread(target=read, args=(stream,))
    reader.start()
    time.sleep(0.001 * round)
    llm.close()
    reader.join(20)
    assert not reader.is_alive()
assert len(seen) == 15 and "closed" in seen, seen
""",
    )


def test_close_beside_whatever_else_runs(tiny_dir):
    """Tokenizing, starting, loading, chatting in other threads while the model is closed: results or ClosedError."""
    run(
        tiny_dir,
        """
text = "hello world " * 3000
message = [{"role": "user", "content": "hi " * 100}]
problems = []

def until_closed(call):
    try:
        while True:
            call()
    except ClosedError:
        pass
    except BaseException as error:
        problems.append(error)

for round in range(10):
    llm = opened()
    def load():
        llm.load_lora_adapter(TINY / "a.gguf").unload()
    calls = [
        lambda: llm.tokenize(text),
        lambda: llm.detokenize(range(300)),
        lambda: llm.stream("x", ignore_eos=True, json_schema={"type": "object", "properties": {"a": {"type": "integer"}}}),
        lambda: llm.stream_chat(message),
        load,
        lambda: llm.complete("x", temperature=0, max_tokens=3),
    ]
    threads = [threading.Thread(target=until_closed, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    time.sleep(0.03)
    llm.close()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
assert not problems, problems
""",
    )


def test_dropped_while_another_thread_streams(tiny_dir):
    """The last name of the object goes while a thread reads its stream: the stream runs to its end."""
    run(
        tiny_dir,
        """
ended = []
for _ in range(15):
    llm = opened()
    stream = llm.stream("Hello", **GREEDY)
    next(stream)
    reader = threading.Thread(target=lambda s: ended.append(len(list(s))), args=(stream,))
    reader.start()
    time.sleep(0.003)
    del llm, stream
    gc.collect()
    reader.join(20)
assert len(ended) == 15
""",
    )


def test_close_from_two_threads_at_once(tiny_dir):
    run(
        tiny_dir,
        """
for _ in range(20):
    llm = opened()
    llm.load_lora_adapter(TINY / "a.gguf").apply()
    stream = llm.stream("Hello", ignore_eos=True)
    next(stream)
    barrier = threading.Barrier(4)
    def close():
        barrier.wait()
        llm.close()
        assert llm._session.instance.closed
    threads = [threading.Thread(target=close) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
""",
    )


DAEMONS = {
    "generating": "while True: llm.complete('hello ' * 20, **GREEDY)",
    "streaming with an adapter": """
llm.load_lora_adapter(TINY / "a.gguf")
while True:
    for piece in llm.stream("hello " * 20, lora={"a": lambda step: 1 / (1 + step)}, **GREEDY):
        pass
""",
    "tokenizing": "while True: llm.tokenize('hello ' * 5000)",
    "loading and unloading": "while True: llm.load_lora_adapter(TINY / 'a.gguf').unload()",
    "opening and closing": "while True: opened().close()",
    "stuck in a scale function": """
llm.load_lora_adapter(TINY / "a.gguf")
llm.complete("Hello", lora={"a": lambda step: time.sleep(3600) if step else 1.0}, **GREEDY)
""",
}


@pytest.mark.parametrize("work", DAEMONS)
def test_daemon_thread_at_exit(tiny_dir, work):
    """A daemon thread in the middle of native code when the interpreter ends: no crash, no hang, no word."""
    for delay in (0.05, 0.31):
        run(
            tiny_dir,
            f"""
import llamafu.model.session
llamafu.model.session._EXIT_TIMEOUT = {0.5 if work.startswith("stuck") else 10.0}
llm = opened()
def work():
    {DAEMONS[work].strip().replace(chr(10), chr(10) + "    ")}
threading.Thread(target=work, daemon=True).start()
time.sleep({delay})
""",
            seconds=20,
        )


@needs_fork
def test_fork(tiny_dir):
    """The child gets ClosedError, even where a lock was held at the fork; it ends cleanly, the parent goes on."""
    run(
        tiny_dir,
        """
llm = opened()
adapter = llm.load_lora_adapter(TINY / "a.gguf")
stream = llm.stream("Hello", **GREEDY)
next(stream)
children = []
for _ in range(3):
    child = fork()
    if not child:
        # as if threads that did not survive the fork had held every lock
        llm._adapters._lock = llm._session.lock._changed._lock = stream._generation._own = threading.Lock()
        llm._adapters._lock.acquire()
        for call in (
            lambda: llm.complete("x"), lambda: llm.stream("x"), lambda: next(stream), lambda: llm.tokenize("x"),
            lambda: llm.load_lora_adapter(TINY / "b.gguf"), adapter.apply, adapter.unload, lambda: adapter.scale,
            lambda: llm.set_lora_adapters({}), lambda: llm.using({}).__enter__(),
            lambda: llm.lora_adapters, lambda: llm.active_lora_adapters,
        ):
            assert "fork" in raises(ClosedError, call)
        stream.close()
        llm.close()
        del stream
        sys.exit(0)
    children.append(child)
assert [join(child) for child in children] == [0, 0, 0]
rest = list(stream)
assert rest and stream.completion.finish_reason == "length"
assert llm.complete("Hello", **GREEDY).text == stream.completion.text
""",
    )


@needs_fork
def test_fork_in_the_middle_of_a_step(tiny_dir):
    """Other threads generate and load while the main thread forks again and again."""
    run(
        tiny_dir,
        """
llm = opened()
done = threading.Event()
def generate():
    while not done.is_set():
        llm.complete("Hello " * 20, temperature=0, max_tokens=30)
def load():
    while not done.is_set():
        llm.load_lora_adapter(TINY / "a.gguf").unload()
threads = [threading.Thread(target=generate), threading.Thread(target=load)]
for thread in threads:
    thread.start()
statuses = []
for _ in range(10):
    child = fork()
    if not child:
        raises(ClosedError, lambda: llm.complete("x"))
        llm.close()
        os._exit(0)
    statuses.append(join(child))
    time.sleep(0.01)
done.set()
for thread in threads:
    thread.join(20)
assert statuses == [0] * 10, statuses
""",
    )


@needs_fork
@pytest.mark.parametrize("threads", [1, 2])
def test_a_model_of_its_own_in_a_forked_child(tiny_dir, threads):
    """With one thread it works; with more it is an error: the library's thread pool would hang there."""
    run(
        tiny_dir,
        f"""
llm = opened(n_threads={threads})
wanted = llm.complete("Hello", temperature=0, max_tokens=3).tokens
child = fork()
if not child:
    assert "spawn" in raises(ContextInitError, lambda: opened(n_threads=2))
    with opened(n_threads=1) as own:
        own.load_lora_adapter(TINY / "a.gguf").apply()
        own.clear_all_lora_adapters()
        made = own.complete("Hello", temperature=0, max_tokens=3).tokens
    sys.exit(0 if made == wanted else 7)
assert join(child) == 0
assert llm.complete("Hello", temperature=0, max_tokens=3).tokens == wanted
""",
    )


def test_odd_paths(tiny_dir, tmp_path):
    """Names that are not UTF-8, have spaces or are long reach the library as they are."""
    run(
        tiny_dir,
        f"""
folder = Path({str(tmp_path)!r})
names = ["a model.gguf", "modèle 😀.gguf", "m" * 200 + ".gguf"]
if sys.platform != "win32":  # whose names are text
    names.append(os.fsdecode(b"not utf-8 \\xff\\xfe.gguf"))
for name in names:
    path = folder / name
    try:
        path.write_bytes((TINY / "tiny.gguf").read_bytes())
    except OSError:  # a file system that takes UTF-8 only, or a path that is too long
        continue
    with opened(path) as llm:
        llm.complete("Hello", temperature=0, max_tokens=2)
        (folder / name).with_suffix(".lora").write_bytes((TINY / "a.gguf").read_bytes())
        llm.load_lora_adapter((folder / name).with_suffix(".lora")).apply()
        llm.complete("Hello", temperature=0, max_tokens=2)
""",
    )


@needs_proc
def test_ctrl_c_while_a_model_loads(tiny_dir):
    """It ends the constructor although it arrives inside a log callback, and what was loaded is freed."""
    run(
        tiny_dir,
        """
import logging

class Interrupt(logging.Handler):
    def emit(self, record):
        signal.raise_signal(signal.SIGINT)

def interrupted(count):
    for _ in range(count):
        raises(KeyboardInterrupt, opened)

opened().close()
native = logging.getLogger("llamafu.native")
native.setLevel(logging.DEBUG)
native.propagate = False
handler = Interrupt()
native.addHandler(handler)
interrupted(20)
before = resident()
interrupted(200)
grown = resident() - before
assert grown <= 0.02 * before, f"{grown} of {before} bytes more"
native.removeHandler(handler)
assert opened().complete("Hello", **GREEDY).tokens
""",
        MALLOC_MMAP_THRESHOLD_="65536",
        MALLOC_TRIM_THRESHOLD_="65536",
    )


@needs_timer
def test_ctrl_c_while_waiting(tiny_dir):
    """Interrupted in the middle of a generation, while waiting for a turn, a visit or the end: all goes on afterwards."""
    run(
        tiny_dir,
        """
llm = opened()
llm.load_lora_adapter(TINY / "a.gguf")
wanted = llm.complete("Hello", **GREEDY).tokens

def interrupt(step):
    if step == 3:
        signal.raise_signal(signal.SIGINT)
    return 1.0

raises(KeyboardInterrupt, lambda: llm.complete("Hello", lora={"a": interrupt}, **GREEDY))
assert llm.complete("Hello", **GREEDY).tokens == wanted

def hold(step):
    if step == 2:
        entered.set()
        assert go_on.wait(20)
    return 1.0

signal.signal(signal.SIGALRM, signal.default_int_handler)
waiting = [
    lambda: llm.complete("Hello"), lambda: llm.load_lora_adapter(TINY / "b.gguf"), lambda: llm.unload_lora_adapter("a"),
    lambda: next(llm.stream("Hello")), lambda: llm.save_state("never"), lambda: llm.close(),
]
for call in waiting:
    entered, go_on, results = threading.Event(), threading.Event(), []
    holder = threading.Thread(target=lambda: results.append(llm.complete("Hello", lora={"a": hold}, **GREEDY).tokens))
    holder.start()
    assert entered.wait(20)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    raises(KeyboardInterrupt, call)
    go_on.set()
    holder.join(20)
    assert not holder.is_alive()
    assert len(results) == 1
    assert llm.complete("Hello", **GREEDY).tokens == wanted
llm.close()
raises(ClosedError, lambda: llm.complete("Hello"))
assert not Path("never").exists()
""",
    )
