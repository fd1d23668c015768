"""The engine as its users meet it: waiting, ending, failing alone, files that change, threads, loops, forks."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import shutil
import threading
import time
import weakref

import numpy as np
import pytest
from helpers.adapters_made import make_adapter
from helpers.child import run
from helpers.engine_cases import LONG, PATIENCE, SHORT, empty, made, replace
from helpers.forced import STRICT, Case, alone, check, opened, run_forced
from helpers.peft_folders import arrays_of, write_folder
from tiny_model import FIRST_BYTE

from llamafu.adapters import convert_peft
from llamafu.adapters.file import read_adapter
from llamafu.engine import Engine, Request
from llamafu.errors import (
    ClosedError,
    ContextInitError,
    ContextOverflowError,
    DecodeError,
    EmptyPromptError,
    InvalidScaleError,
    LoraError,
    LoraLoadError,
    LoraNotFoundError,
    MultimodalError,
    QueueFullError,
)
from llamafu.generation import chat_template


@pytest.fixture
def engine(tiny_model, tiny_adapter_a, tiny_adapter_b):
    with made(tiny_model, tiny_adapter_a, tiny_adapter_b) as engine:
        yield engine


def tokens(seed, count):
    return np.random.default_rng(seed).integers(FIRST_BYTE, 317, count).tolist()


# -- arguments ---------------------------------------------------------------------------------------------------


def test_whole_numbers_of_numpy(tiny_model):
    """Also narrow ones, with which sums would overflow."""
    options = {"n_ctx": np.int64(256), "n_batch": np.int16(64), "n_threads": np.int8(1), "max_sequences": np.int8(2)}
    with Engine(tiny_model, kernel="none", **options) as engine:
        assert len(engine.complete("Once", max_tokens=np.int32(3), ignore_eos=True).tokens) == 3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_sequences": 0}, "max_sequences=0 is not a whole number from 1"),
        ({"max_queue": 1.5}, "max_queue=1.5"),
        ({"bank_rank": -1}, "bank_rank=-1"),
        ({"n_ctx": 1}, "n_ctx=1 "),
        ({"n_batch": 63}, "n_batch=63"),
        ({"n_threads": True}, "n_threads=True"),
        ({"n_gpu_layers": -2}, "n_gpu_layers=-2"),
        ({"flash_attn": "maybe"}, "flash_attn='maybe' is none of"),
        ({"bank_dtype": "q4"}, "bank_dtype='q4' is none of 'f16', 'f32'"),
        ({"kernel": "cuda"}, "kernel='cuda' is none of"),
        ({"scale_range": (1, 0)}, "scale_range"),
        ({"max_sequences": 65, "n_batch": 64}, "max_sequences=65 is more than n_batch=64"),
        ({"max_sequences": 8, "n_ctx": 4}, "max_sequences=8 is more than n_ctx=4"),
    ],
)
def test_bad_constructor_arguments(tiny_model, options, says):
    with pytest.raises(ValueError, match=says) as caught:
        Engine(tiny_model, **options)
    assert "\n" not in str(caught.value)


def test_bank_larger_than_the_machine(tiny_model):
    with pytest.raises(ContextInitError, match=r"bank_rank=\d+ takes .* use at most bank_rank=\d+"):
        Engine(tiny_model, bank_rank=2**31 - 1)


def test_adapters_dir(tiny_model, tiny_dir, tmp_path):
    shutil.copy(tiny_dir / "a.gguf", tmp_path / "x.gguf")
    (tmp_path / "half.mix.json").write_text('{"lora": {"x": 0.5}}', "utf-8")
    with Engine(tiny_model, adapters_dir=tmp_path, n_ctx=256) as engine:
        assert set(engine.adapters) == {"x"}
        assert engine.mixes == {"half": {"x": 0.5}}
    for content, says in (('{"lora": {"gone": 1}}', "'gone'"), ("[]", "not of the form")):
        (tmp_path / "bad.mix.json").write_text(content, "utf-8")
        with pytest.raises(LoraError, match=rf"bad\.mix\.json is no mix that can be used: .*{says}.*; mend it"):
            Engine(tiny_model, adapters_dir=tmp_path, n_ctx=256)
    with pytest.raises(NotADirectoryError, match="make it, or leave it out"):
        Engine(tiny_model, adapters_dir=tmp_path / "none")


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"timeout": 0}, ValueError, "timeout=0 "),
        ({"timeout": "1"}, ValueError, "timeout='1' "),
        ({"timeout": float("nan")}, ValueError, "timeout=nan"),
        ({"priority": 1.0}, TypeError, "priority=1.0"),
        ({"prompt": b"x"}, TypeError, "prompt is bytes"),
        ({"prompt": []}, EmptyPromptError, "the prompt is empty"),
        ({"prompt": [1, 317]}, ValueError, "317.*from 0 to 316"),
        ({"prompt": [True]}, ValueError, "True"),
        ({"prompt": [5] * 1024}, ContextOverflowError, "1024 tokens, but the engine's memory holds 1024"),
        ({"lora": {"none": 1.0}}, LoraNotFoundError, "'none'.*registered: a, b"),
        ({"lora": {"a": 1.5}}, InvalidScaleError, "from 0 to 1"),
        ({"lora": ["a"]}, TypeError, "no mapping"),
        ({"lora": {5: 1.0}}, TypeError, "by name, not by 5"),
        ({"media": ["x.png"]}, MultimodalError, "1 entries.*mmproj_path"),
        ({"max_tokens": -2}, ValueError, "max_tokens=-2"),
    ],
)
def test_bad_requests(engine, options, error, says):
    with pytest.raises(error, match=says):
        engine.submit(Request(**{"prompt": "x", **options}))
    assert len(engine.complete("x", **SHORT).tokens) == 4


@pytest.mark.parametrize("options", [{}, {"stop": "x"}, {"logprobs": 1}, {"grammar": 'root ::= "yes"'}, {"lora": {"a": 1.0}}])
def test_no_token_is_made_where_none_is_asked_for(engine, options):
    """The prompt is computed, and kept: the next one that begins with it is answered from there."""
    prompt = list(range(5, 205))
    told = engine.submit(Request(prompt=prompt, max_tokens=0, **options)).result(PATIENCE)
    assert (told.text, told.tokens, told.finish_reason) == ("", (), "length")
    assert (told.usage.prompt_tokens, told.usage.completion_tokens) == (200, 0)
    assert told.logprobs == (() if "logprobs" in options else None)
    again = engine.submit(Request(prompt=prompt, **{**SHORT, "lora": options.get("lora")})).result(PATIENCE)
    assert again.usage.cached_tokens >= 128


def test_what_fills_most_of_the_context_is_found_again(engine):
    """The space that a prompt needs is counted without what it shares, so that its own prefix is not evicted for it."""
    prompt = np.random.default_rng(3).integers(5, 200, 900).tolist()
    first = engine.complete(prompt, **SHORT)
    assert first.usage.cached_tokens == 0
    tickets = [engine.submit(Request(prompt=[*prompt, n], **SHORT)) for n in range(5, 11)]
    told = [ticket.result(PATIENCE).usage.cached_tokens for ticket in tickets]
    assert told == [900 // 64 * 64] * 6


def test_an_answer_may_fill_the_context(engine):
    assert engine.model_facts.context_length == 1024
    told = engine.complete("x", max_tokens=-1, ignore_eos=True, temperature=0)
    assert (told.usage.total_tokens, told.finish_reason) == (1024, "length")


def test_facts_of_the_model(engine):
    facts = engine.model_facts
    assert (facts.vocabulary_size, facts.embedding_length) == (317, 64)
    assert facts.trained_context_length > 0
    assert facts.parameter_count > facts.vocabulary_size * facts.embedding_length
    assert facts.size > facts.parameter_count  # at least a byte a weight


def test_unknown_option(engine):
    with pytest.raises(TypeError, match="did you mean 'max_tokens'"):
        engine.complete("x", max_token=1)


# -- waiting and ending ------------------------------------------------------------------------------------------


def test_queue_full(tiny_model):
    """So many may run and so many more wait, no matter how they arrive; the next one is refused, and all is well later."""
    with made(tiny_model, max_sequences=2, max_queue=3) as engine:
        tickets = [engine.submit(Request(prompt="x", **LONG)) for _ in range(5)]
        with pytest.raises(QueueFullError, match="of at most 3 wait, and 1 more came"):
            engine.submit(Request(prompt="x", **LONG))
        for ticket in tickets:
            ticket.cancel()
        assert all(ticket.result(PATIENCE) for ticket in tickets)
        assert len(engine.complete_many([Request(prompt="x", **SHORT)] * 5)) == 5
        with pytest.raises(QueueFullError):
            engine.complete_many([Request(prompt="x", **SHORT)] * 6)
        assert empty(engine)


def test_cancel_and_timeout(engine):
    """Both end a request at its next step, with what there is by then, and give everything back."""
    ticket = engine.submit(Request(prompt="x", lora={"a": 1.0}, **LONG))
    pieces = ticket.pieces()
    next(pieces)
    ticket.cancel()
    done = ticket.result(PATIENCE)
    assert done.finish_reason == "cancelled"
    assert 0 < len(done.tokens) < 400
    late = engine.submit(Request(prompt="x", timeout=1e-6, **LONG)).result(PATIENCE)
    assert (late.finish_reason, late.tokens) == ("cancelled", ())
    assert engine.stats().cancelled == 2
    assert empty(engine)


def test_priority_and_turns(tiny_model, tiny_dir):
    """The highest priority first, then the adapters that waited longest, then first come, first served."""
    with made(tiny_model, tiny_dir / "a.gguf", tiny_dir / "b.gguf", max_sequences=1) as engine:
        ended = []

        def ask(label, lora, priority=0):
            def listen(event):
                if not isinstance(event, str):
                    ended.append(label)

            return Request(prompt="x", lora=lora, priority=priority, **SHORT), listen

        gate = threading.Event()
        first = engine.submit(Request(prompt="x", lora={"a": lambda step: float(bool(step) and gate.wait(PATIENCE))}, **SHORT))
        asked = [
            *(ask(f"a{i}", {"a": 1.0}) for i in range(3)),
            *(ask(f"b{i}", {"b": 1.0}) for i in range(2)),
            ask("base", {}),
            ask("urgent", {}, 1),
        ]
        tickets = [engine.submit(*one) for one in asked]
        gate.set()
        first.result(PATIENCE)
        for ticket in tickets:
            ticket.result(PATIENCE)
        assert ended[0] == "urgent"
        for name in "ab":
            mine = [label for label in ended if label[0] == name and label != "base"]
            assert mine == sorted(mine)
        assert ended.index("b0") < ended.index("a1")  # a's crowd does not go before b's first


def test_kept_prefixes_leave_a_number_free(engine):
    """More requests than numbers, all with one long beginning: each ended one is of use, and none may block the next."""
    start = tokens(1, 64)
    for i in range(engine._runtime.instance.context.n_seq_max + 4):
        ticket = engine.submit(Request(prompt=start + tokens(i + 2, 2), **{**SHORT, "max_tokens": 64}))
        assert len(ticket.result(PATIENCE).tokens) == 64


def test_long_prompt_beside_short_ones(tiny_model):
    """Where a step has no room for a whole block, a prompt goes on in smaller pieces."""
    with made(tiny_model, n_batch=64) as engine:
        talking = engine.submit(Request(prompt="x", **LONG))
        next(talking.pieces())
        long = engine.submit(Request(prompt=tokens(1, 200), **SHORT))
        assert len(long.result(PATIENCE).tokens) == 4
        assert not talking.done
        talking.cancel()


def test_large_mix_is_not_passed_for_ever(tiny_model, tmp_path, monkeypatch):
    """A request for most of the bank gets its turn although small ones keep coming."""
    monkeypatch.setattr("llamafu.engine.scheduler._PATIENCE", 5)
    make_adapter(tmp_path / "large.gguf", tiny_model, seed=1, rank=30)
    for i in range(4):
        make_adapter(tmp_path / f"s{i}.gguf", tiny_model, seed=2 + i, rank=4)
    ended = []

    def noted(name):
        return lambda event: None if isinstance(event, str) else ended.append(name)

    with Engine(tiny_model, adapters_dir=tmp_path, bank_rank=32, n_ctx=2048, max_queue=512, **STRICT) as engine:
        small = [
            engine.submit(Request(prompt="x", lora={f"s{i % 4}": 1.0}, **{**SHORT, "max_tokens": 3 + i % 5}), noted("small"))
            for i in range(300)
        ]
        engine.submit(Request(prompt="x", lora={"large": 1.0}, **SHORT), noted("large")).result(PATIENCE)
        for ticket in small:
            ticket.result(PATIENCE)
        assert ended.index("large") < 290
        assert empty(engine)


def test_never_fits(tiny_model, tmp_path):
    """Refused at once with the numbers; also when a pin made it so while it waited."""
    for i in range(3):
        make_adapter(tmp_path / f"x{i}.gguf", tiny_model, seed=i, rank=10)
    with Engine(tiny_model, adapters_dir=tmp_path, bank_rank=20, n_ctx=512, **STRICT) as engine:
        every = {f"x{i}": 0.5 for i in range(3)}
        with pytest.raises(LoraError, match="take 30 rank units, but the bank has 20; make the engine with a larger bank_rank"):
            engine.complete("x", lora=every, **SHORT)
        engine.pin_adapter("x0")
        with pytest.raises(LoraError, match="take 20 rank units beside 10 that are pinned, but the bank has 20"):
            engine.complete("x", lora={"x1": 1.0, "x2": 1.0}, **SHORT)
        engine.remove_adapter("x0")
        assert engine.complete("x", lora={"x1": 1.0, "x2": 1.0}, **SHORT).tokens
        engine.add_adapter(tmp_path / "x0.gguf")
        running = engine.submit(Request(prompt="x", lora={"x1": 1.0}, **LONG))
        next(running.pieces())
        waiting = engine.submit(Request(prompt="x", lora={"x0": 1.0, "x2": 1.0}, **SHORT))
        engine.pin_adapter("x1")
        with pytest.raises(LoraError, match="pinned"):
            waiting.result(PATIENCE)
        running.cancel()
        assert engine.complete("x", lora={"x1": 1.0}, **SHORT).tokens


# -- files ---------------------------------------------------------------------------------------------------------


def test_unbanked_adapters_stay_while_they_run(tiny_model, tmp_path):
    """Without a bank an adapter is read when its request starts, once, and stays while that runs; many fit into one mix."""
    for i in range(12):
        make_adapter(tmp_path / f"x{i}.gguf", tiny_model, seed=i, rank=2, tensors=["blk.0.attn_q.weight"])
    with Engine(tiny_model, adapters_dir=tmp_path, kernel="none", n_ctx=512, **STRICT) as engine:
        every = engine.submit(Request(prompt="x", lora={f"x{i}": 0.5 for i in range(10)}, **LONG))
        next(every.pieces())
        for path in tmp_path.iterdir():
            path.unlink()
        with pytest.raises(LoraLoadError, match="cannot be read any more"):
            engine.complete("x", lora={"x11": 1.0}, **SHORT)
        assert every.result(PATIENCE).finish_reason == "length"
        assert engine.stats().failed == 0


def test_names(engine, tiny_dir):
    with pytest.raises(LoraError, match="'a' is taken by other content"):
        engine.add_adapter(tiny_dir / "wide.gguf", name="a")
    assert engine.add_adapter(tiny_dir / "a.gguf", name="alias").digest == engine.adapters["a"].digest
    with pytest.raises(LoraError, match="are the same content"):
        engine.complete("x", lora={"a": 0.5, "alias": 0.5}, **SHORT)
    running = engine.submit(Request(prompt="x", lora={"b": 1.0}, **LONG))
    next(running.pieces())
    engine.remove_adapter("b")
    assert running.result(PATIENCE).lora[0].name == "b"
    with pytest.raises(LoraNotFoundError):
        engine.complete("x", lora={"b": 1.0})
    engine.set_lora_adapters({"a": 0.5})
    with pytest.raises(LoraError, match="active set"):
        engine.remove_adapter("a")


def test_pins(tiny_model, tiny_dir, tmp_path):
    """A pinned adapter stays in the bank until it is removed, also when its file has changed in between."""
    path = tmp_path / "x.gguf"
    shutil.copy(tiny_dir / "a.gguf", path)
    with made(tiny_model, path, tiny_dir / "wide.gguf", bank_rank=11) as engine:
        engine.pin_adapter("x")
        with pytest.raises(LoraError, match="beside 4 that are pinned"):
            engine.complete("x", lora={"wide": 1.0}, **SHORT)
        (tmp_path / "y.gguf").write_bytes((tiny_dir / "b.gguf").read_bytes())
        (tmp_path / "y.gguf").replace(path)
        assert engine.complete("x", lora={"x": 1.0}, **SHORT).lora[0].digest == engine.adapters["x"].digest
        engine.remove_adapter("x")
        assert engine.complete("x", lora={"wide": 1.0}, **SHORT).tokens


def test_infinite_halves_leave_no_trace(tiny_model, tmp_path):
    """Values that F16 has not come into an F16 bank all the same, and the units that they had are clean."""
    make_adapter(tmp_path / "big.gguf", tiny_model, seed=1, rank=8, strength=1e7)
    make_adapter(tmp_path / "low.gguf", tiny_model, seed=2, rank=2, tensors=["blk.0.ffn_up.weight"])
    make_adapter(
        tmp_path / "mixed.gguf",
        tiny_model,
        seed=3,
        rank={"blk.0.ffn_up.weight": 8, "blk.0.attn_q.weight": 1},
        tensors=["blk.0.ffn_up.weight", "blk.0.attn_q.weight"],
    )
    for kernel in ("compiled", "python"):
        with Engine(tiny_model, adapters_dir=tmp_path, bank_rank=8, n_ctx=256, kernel=kernel, **STRICT) as engine:
            with contextlib.suppress(DecodeError):  # such sums may leave the range of the model's own numbers
                engine.complete("x", lora={"big": 1.0}, **SHORT)
            for name in ("mixed", "low"):
                assert len(engine.complete("x", lora={name: 1.0}, **SHORT).tokens) == 4


def test_peft_folder(tiny_model, tmp_path):
    """A folder answers as the file that it is converted to, byte for byte the same content, also from `adapters_dir`."""
    (tmp_path / "adapters").mkdir()
    folder = write_folder(tmp_path / "adapters" / "x", arrays_of(seed=1))
    convert_peft(folder, tmp_path / "x.gguf", base=tiny_model)
    with Engine(tiny_model, adapters_dir=folder.parent, **STRICT, n_ctx=512) as engine:
        assert list(engine.adapters) == ["x"]
        file = engine.add_adapter(tmp_path / "x.gguf", name="file")
        assert file.digest == engine.adapters["x"].digest
        answers = [engine.complete("hello", lora=lora, **SHORT) for lora in ({"x": 0.5}, {"file": 0.5}, {})]
        assert answers[0].tokens == answers[1].tokens != answers[2].tokens
        assert engine.stats().page_ins == 1
        running = engine.submit(Request(prompt="hello", lora={"x": 1.0}, **LONG))
        next(running.pieces())
        shutil.rmtree(folder)
        write_folder(folder, arrays_of(seed=2))
        changed = engine.complete("hello", lora={"x": 1.0}, **SHORT)
        assert changed.lora[0].digest == engine.adapters["x"].digest != file.digest
        assert running.result(PATIENCE).lora[0].digest == file.digest
        shutil.rmtree(folder)
        assert engine.complete("hello", lora={"x": 1.0}, **SHORT).tokens == changed.tokens  # what it became is kept


# -- failing -------------------------------------------------------------------------------------------------------


def test_scale_function_fails_alone(engine):
    def broken(step):
        if step == 2:
            raise ZeroDivisionError
        return 0.5

    def inside(step):
        return float(bool(step) and engine.complete("x"))

    good = engine.submit(Request(prompt="x", lora={"a": 1.0}, **LONG))
    for function, error in ((broken, ZeroDivisionError), (lambda step: 0.5 + step, InvalidScaleError), (inside, RuntimeError)):
        with pytest.raises(error):
            engine.submit(Request(prompt="x", lora={"b": function}, **SHORT)).result(PATIENCE)
    assert good.result(PATIENCE).finish_reason == "length"
    assert empty(engine)


@pytest.mark.parametrize("kernel", ["compiled", "python"])
def test_fault(tiny_model, tiny_adapter_a, kernel, monkeypatch):
    """A step that was not computed as said is an error, leaves no tokens behind, and the next request is right."""
    engine, llm = opened(tiny_model, [tiny_adapter_a], kernel=kernel)
    with engine, llm:
        case = Case(tokens(1, 100), tokens(2, 4), {"a": 1.0})
        store = engine._runtime.bank.store
        true = type(store).set_rows

        def wrong(self, rows, outputs):
            short = type(rows)(rows.start[:-1], rows.unit[:0], rows.scale[:0], rows.row[:0])
            true(self, short, short)

        with monkeypatch.context() as patch:
            patch.setattr(type(store), "set_rows", wrong)
            with pytest.raises(DecodeError, match="the batch was not computed"):
                engine.complete(case.prompt, lora={"a": 1.0}, **SHORT)
        assert empty(engine)
        (completion,) = run_forced(engine, monkeypatch, [case])
        assert completion.usage.cached_tokens == 0
        check([case], [alone(llm, case)])


def test_embed_takes_and_gives_back(engine, tiny_model):
    engine.set_lora_adapters({"a": 1.0})
    first = engine.embed("hello the world")
    assert np.isclose(np.linalg.norm(first), 1.0, atol=1e-5)
    engine.set_lora_adapters({})
    assert not np.allclose(first, engine.embed("hello the world"), atol=1e-3)
    assert empty(engine)


def test_warm_equals_cold(tiny_model, tiny_adapter_a, monkeypatch):
    """The same request, after the first one has ended: the same bits, though two blocks of it were there already."""
    with made(tiny_model, tiny_adapter_a, n_batch=512) as engine:
        for seed, length in ((1, 150), (2, 128), (3, 129), (4, 65)):
            case = Case(tokens(seed, length), tokens(9, 6), {"a": 1.0})
            run_forced(engine, monkeypatch, [case])
            cold = np.array(case.rows)
            (completion,) = run_forced(engine, monkeypatch, [case])
            assert completion.usage.cached_tokens == (length - 1) // 64 * 64
            assert np.array_equal(cold, np.array(case.rows))


# -- ends ----------------------------------------------------------------------------------------------------------


def test_close_while_running(tiny_model):
    engine = made(tiny_model)
    tickets = [engine.submit(Request(prompt="x", **LONG)) for _ in range(20)]
    engine.close()
    engine.close()
    for ticket in tickets:
        with pytest.raises(ClosedError, match="the engine was closed"):
            ticket.result(PATIENCE)
    for call in (
        lambda: engine.complete("x"),
        lambda: engine.embed("x"),
        lambda: engine.adapters,
        lambda: engine.tokenize("x"),
    ):
        with pytest.raises(ClosedError):
            call()
    assert engine._runtime.instance.closed


def test_close_waits_for_who_reads_the_model(tiny_model):
    """The model is not freed under a thread that tokenizes."""
    engine = made(tiny_model)
    with engine._runtime.sharing() as model:
        closing = threading.Thread(target=engine.close)
        closing.start()
        closing.join(0.2)
        assert closing.is_alive()
        assert model.tokenize(b"x", add_special=False, parse_special=False)
    closing.join(PATIENCE)
    assert not closing.is_alive()
    assert engine._runtime.instance.closed


def test_dropped_engine_ends(tiny_model, tiny_adapter_a):
    engine = made(tiny_model, tiny_adapter_a)
    runtime, gone = engine._runtime, weakref.ref(engine)
    stream = engine.stream("x", **LONG)
    next(stream)
    del engine
    gc.collect()
    assert "".join(stream)  # a stream keeps its engine
    del stream
    gc.collect()
    assert gone() is None
    deadline = time.monotonic() + PATIENCE
    while not runtime.instance.closed and time.monotonic() < deadline:
        time.sleep(0.01)
    assert runtime.instance.closed


def test_exit_fork_and_close_from_inside(tiny_dir):
    """The interpreter ends without close; a child cannot use the engine, and its end takes nothing from the parent."""
    out = run(
        tiny_dir,
        """
from llamafu.engine import Engine, Request
engine = Engine(TINY / "tiny.gguf", n_ctx=512, n_threads=1)
engine.add_adapter(TINY / "a.gguf")
copies = engine._registry._copies._folder
child = fork()
if child == 0:
    raises(ClosedError, lambda: engine.complete("x"))
    engine.close()
    sys.exit(0)
assert join(child) == 0
assert copies.exists()
def closing(step):
    if step == 1:
        engine.close()
    return 0.5
raises(ClosedError, lambda: engine.submit(Request(prompt="x", lora={"a": closing}, **GREEDY)).result(20))
deadline = time.monotonic() + 20
while not engine._runtime.instance.closed and time.monotonic() < deadline:
    time.sleep(0.01)
assert engine._runtime.instance.closed and not copies.exists()
left = Engine(TINY / "tiny.gguf", n_ctx=512, n_threads=1)
left.submit(Request(prompt="x", **GREEDY))
print("end")
""",
    )
    assert out == "end\n"


def test_threads(engine):
    """Many threads at once get what each would get alone."""
    wanted = {name: engine.complete("hello", lora={name: 1.0}, **SHORT).tokens for name in "ab"}
    found = []

    def ask(name):
        found.extend((name, engine.complete("hello", lora={name: 1.0}, **SHORT).tokens) for _ in range(5))

    threads = [threading.Thread(target=ask, args=("ab"[i % 2],)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(found) == 40
    assert all(tokens == wanted[name] for name, tokens in found)


# -- event loops ---------------------------------------------------------------------------------------------------


def test_many_loops(engine):
    wanted = engine.complete("hello", **SHORT).text
    found = []

    async def ask():
        pieces = [piece async for piece in engine.astream("hello", **SHORT)]
        found.append(("".join(pieces), (await engine.acomplete("hello", **SHORT)).text))

    threads = [threading.Thread(target=lambda: asyncio.run(ask())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert found == [(wanted, wanted)] * 4


def test_cancelled_tasks(engine):
    async def main():
        task = asyncio.create_task(engine.acomplete("x", lora={"a": 1.0}, **LONG))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        stream = engine.astream("x", **LONG)
        await anext(stream)
        await stream.aclose()
        await asyncio.sleep(0)

    asyncio.run(main())
    assert empty(engine)
    assert engine.stats().cancelled == 2


def test_submitting_does_not_block_the_loop(tiny_model, tiny_dir, tmp_path, monkeypatch):
    """A file that takes half a second to read, and a prompt that takes as long to format, keep nothing else waiting."""
    path = tmp_path / "x.gguf"
    shutil.copy(tiny_dir / "a.gguf", path)
    gaps = []

    async def heart():
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.005)
            gaps.append(time.perf_counter() - began)

    def slowly(function):
        def slow(*arguments, **options):
            time.sleep(0.5)
            return function(*arguments, **options)

        return slow

    async def main(engine):
        beating = asyncio.create_task(heart())
        await asyncio.sleep(0.05)
        gaps.clear()
        replace(path, tiny_dir / "wide.gguf")
        began = time.perf_counter()
        waiting = asyncio.create_task(engine.acomplete("x", lora={"x": 1.0}, **SHORT))
        await asyncio.sleep(0.1)
        left = asyncio.create_task(engine.acomplete("x", lora={"x": 1.0}, **LONG))
        await asyncio.sleep(0.05)
        left.cancel()
        assert (await waiting).lora[0].digest == engine.adapters["x"].digest
        assert [piece async for piece in engine.astream_chat([{"role": "user", "content": "x"}], lora={}, **SHORT)]
        assert (await engine.achat([{"role": "user", "content": "x"}], lora={}, **SHORT)).tokens
        assert time.perf_counter() - began > 1.4  # or nothing was slow
        beating.cancel()

    with made(tiny_model, path, kernel="none") as engine:
        monkeypatch.setattr("llamafu.adapters.reader.read_adapter", slowly(read_adapter))
        monkeypatch.setattr("llamafu.generation.chat_turn.tokens_of", slowly(chat_template.tokens_of))
        asyncio.run(main(engine))
        assert max(gaps) < 0.3
        assert empty(engine)
        assert engine.stats().cancelled == 1  # the one whose task had gone before it was submitted


def test_closed_loop_is_nobody_elses_trouble(engine):
    """A loop that is closed in the middle of a stream ends that request; all others go on."""
    good = engine.submit(Request(prompt="x", lora={"a": 1.0}, **LONG))
    loop = asyncio.new_event_loop()
    stream = engine.astream("x", **LONG)
    loop.run_until_complete(anext(stream))
    loop.close()
    assert good.result(PATIENCE).finish_reason == "length"
    assert empty(engine)
