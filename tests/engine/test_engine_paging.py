"""Adapters on their way into the bank: in pieces, beside what runs, and whole or not there at all."""

import asyncio
import contextlib
import math
import threading
import time

import numpy as np
import pytest
from helpers.adapters_made import make_adapter, targets
from helpers.served import wait_for

from llamafu import Engine
from llamafu.adapters import read_adapter
from llamafu.adapters.gguf.values import as_stored
from llamafu.engine import bank as bank_module
from llamafu.engine import bank_loader as loader_module
from llamafu.engine.bank import Bank
from llamafu.engine.request import Request
from llamafu.errors import ClosedError, LoraLoadError

UNITS = 48


class Store:
    """Arrays alone, full of what was there before."""

    compiled = True
    multiplies_all = False

    def __init__(self, shapes, dtype=np.float16):
        self.a = [np.full((UNITS, 1, n_in), 7, dtype) for n_in, _ in shapes]
        self.b = [np.full((UNITS, 1, n_out), 7, dtype) for _, n_out in shapes]
        self.strength = np.full((len(shapes), UNITS), 7, np.float32)
        self.published = []

    def clear(self, units):
        self.strength[:, units] = 0

    def publish(self, target, units):
        assert self.strength[target, units].any()
        self.published.append((target, units.tolist()))


class Told:
    """A registered content as the bank sees it."""

    def __init__(self, path, wait=None):
        self.file = read_adapter(path)
        self.info, self.pairs, self.digest, self.wait = self.file.info, self.file.pairs, self.file.digest, wait
        self.error = None

    @property
    def path(self):
        return self.file.path

    def fetch(self):
        if self.wait is not None:
            assert self.wait.wait(10)

    def factors(self):
        if self.error is not None:
            raise self.error
        for name, pair in self.pairs.items():
            yield name, *(as_stored(self.file.content, entry) for entry in pair)


@pytest.fixture(scope="module")
def names(tiny_model):
    return targets(tiny_model, ["attn_q", "ffn_down", "output"])


@pytest.fixture
def made(tmp_path, tiny_model, names):
    def make(seed, rank, dtype="F16", tensors=None):
        path = tmp_path / f"{seed}.gguf"
        make_adapter(path, tiny_model, seed=seed, rank=rank, dtype=dtype, tensors=names if tensors is None else tensors)
        return Told(path)

    return make


@pytest.fixture
def bank(tiny_model, names, made):
    pairs = made(99, 1).pairs
    return Bank(Store([(pairs[name].a.shape[0], pairs[name].b.shape[1]) for name in names]), names, UNITS)


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(bank_module, "_CHUNK", 100)


def assert_whole(bank, content):
    """Compare the units with the file; where the file has no tensor nothing is seen of them."""
    units = bank.allocator[content.digest].units
    for place, name in enumerate(bank._targets):
        if name not in content.pairs:
            assert not bank.store.strength[place, units].any()
            continue
        a, b = (content.file.matrix(entry) for entry in content.pairs[name])
        np.testing.assert_array_equal(bank.store.a[place][units[: len(a)], 0], a.astype(np.float16))
        np.testing.assert_array_equal(bank.store.b[place][units[: len(a)], 0], b.T.astype(np.float16))
        np.testing.assert_array_equal(bank.store.strength[place, units[: len(a)]], np.float32(8.0 / len(a)))
        assert not bank.store.strength[place, units[len(a) :]].any()


@pytest.mark.parametrize("piece", [1, 100, 10**9])
@pytest.mark.parametrize("dtype", ["F16", "F32"])
def test_pieces_make_the_whole(bank, made, monkeypatch, piece, dtype):
    monkeypatch.setattr(bank_module, "_CHUNK", piece)
    contents = [made(1, 5, dtype), made(2, 16, dtype), made(3, 3, dtype, ["output.weight"])]
    for content in contents:
        assert bank.acquire([content])
    for content in contents:
        assert_whole(bank, content)
    bank.release(contents)
    bank.allocator.drop(contents[0].digest)
    scattered = made(4, 20, dtype)  # over what is free now, in several places
    assert bank.acquire([scattered])
    assert np.diff(bank.allocator[scattered.digest].units).max() > 1
    assert_whole(bank, scattered)


def test_a_step_has_a_piece_of_it(bank, made, small_pieces):
    """The deadline is over: one piece a look, nobody uses it before the last one, and it gives way to nobody."""
    content, other = made(1, 40), made(2, 40)
    assert not bank.acquire([content], 0.0)
    assert bank.is_loading([content, other])
    assert not bank.acquire([other], math.inf)
    assert not bank.is_loading([other])
    looks = 0
    while not bank.acquire([content], 0.0):
        looks += 1
    assert looks > 20
    assert (bank.page_ins, bank.allocator[content.digest].users) == (1, 1)
    assert_whole(bank, content)
    bank.release([content])
    assert bank.acquire([other])
    assert_whole(bank, other)


def test_work_goes_on_with_what_nobody_asks_for_any_more(bank, made, small_pieces):
    contents = made(1, 20), made(2, 20)
    assert not bank.acquire(contents, 0.0)
    bank.work(0.0)
    assert bank.is_loading(contents)
    bank.work(math.inf)
    assert not bank.is_loading(contents)
    assert [bank.allocator[content.digest].users for content in contents] == [0, 0]
    for content in contents:
        assert_whole(bank, content)
    assert bank.acquire([made(3, 48)])  # both give way


def test_a_large_one_is_read_elsewhere(bank, made, monkeypatch):
    monkeypatch.setattr(loader_module, "_AT_ONCE", 0)
    content, small = made(1, 8), made(2, 8)
    content.wait = threading.Event()
    began = time.monotonic()
    assert not bank.acquire([content], time.perf_counter() + 1)
    bank.work(time.perf_counter() + 1)
    assert time.monotonic() - began < 1  # it does not wait for the disk
    assert bank.acquire([small])
    content.wait.set()
    assert bank.acquire([content])  # it does
    assert_whole(bank, content)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_what_cannot_be_read_is_told_to_those_who_wait_and_is_not_there(bank, made, monkeypatch, elsewhere):
    monkeypatch.setattr(loader_module, "_AT_ONCE", 0 if elsewhere else 1 << 30)
    content, sound = made(1, 8), made(2, 8)
    content.error = LoraLoadError("gone")
    for _ in range(2):
        with pytest.raises(LoraLoadError, match="gone"):
            bank.acquire([sound, content])
        assert (content.digest in bank.allocator, bank.allocator[sound.digest].users, bank.allocator.used) == (False, 0, 8)
    content.wait = threading.Event() if elsewhere else None
    if elsewhere:
        assert not bank.acquire([content], 0.0)
        content.wait.set()
        bank.work(math.inf)
        with pytest.raises(LoraLoadError, match="gone"):
            bank.acquire([content], 0.0)
        bank.forget_failures()
    content.error = None
    assert bank.acquire([content])
    assert_whole(bank, content)


def test_what_is_too_large_for_its_numbers_is_held_by_the_strength(bank, made, small_pieces):
    """A unit's factors times a power of two, its strength divided by it: the change is the same, and nothing is infinite."""
    content = made(1, 8, "F32")
    content.file = made(1, 8, "F32").file
    loud = np.frombuffer(bytearray(content.file.content), np.uint8).copy()
    entry = content.pairs["output.weight"].b
    loud[entry.offset : entry.offset + entry.nbytes].view("<f4")[-1] = 1e6
    content.file = type(content.file)(content.file.path, loud.tobytes(), content.file.info, content.file.pairs)
    assert bank.acquire([content])
    assert all(np.isfinite(array).all() for array in (*bank.store.a, *bank.store.b))
    place, units = bank._targets["output.weight"], bank.allocator[content.digest].units
    b = content.file.matrix(entry).T
    strength = content.info.alpha / content.info.rank
    held = bank.store.strength[place, units][:, None] * bank.store.b[place][units].reshape(b.shape).astype("f8")
    np.testing.assert_allclose(held, strength * b, rtol=1e-3, atol=1e-6)
    assert (bank.store.strength[place, units] != strength).sum() == 1


# -- in an engine -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory, tiny_model):
    path = tmp_path_factory.mktemp("large") / "large.gguf"
    make_adapter(path, tiny_model, seed=5, rank=512, dtype="F16", strength=0.01)
    return path


@pytest.fixture
def engine(real, tiny_model, large):
    with Engine(tiny_model, n_ctx=4096, n_threads=1, bank_rank=512, library=real.path) as engine:
        engine.add_adapter(large)
        yield engine


@pytest.fixture
def slow_pieces(monkeypatch):
    """A bank whose numbers take their time: 4 ms a piece, half a second an adapter."""
    pieces = Bank._write_chunks

    def slowly(*arguments):
        for _ in pieces(*arguments):
            time.sleep(0.004)
            yield

    monkeypatch.setattr(Bank, "_write_chunks", slowly)
    monkeypatch.setattr(bank_module, "_CHUNK", 4000)


class Running:
    """A stream on a thread of its own, and the times of its pieces."""

    def __init__(self, engine, tokens=100_000):
        self.times, self.engine = [], engine
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run, args=(tokens,))
        self.thread.start()
        while len(self.times) < 5:
            time.sleep(0.005)

    def _run(self, tokens):
        async def run():
            async for _ in self.engine.astream("Once", max_tokens=tokens, temperature=0, ignore_eos=True, lora={}):
                self.times.append(time.perf_counter())
                if self.ended.is_set():
                    break

        with contextlib.suppress(ClosedError):  # when its test has failed
            asyncio.run(run())

    def longest(self):
        """End it, and return the longest gap in seconds."""
        self.ended.set()
        self.thread.join(20)
        return max(np.diff(self.times))


@pytest.mark.parametrize("how", ["complete", "pin", "embed"])
def test_streams_go_on_while_a_large_adapter_is_read(engine, slow_pieces, how):
    """By any way that it gets into the bank."""
    stream = Running(engine, 3500)
    if how == "complete":
        engine.complete("Once", lora={"large": 1.0}, max_tokens=2)
    elif how == "pin":
        engine.pin_adapter("large")
    else:
        engine.embed("Once", lora={"large": 1.0})
    longest, taken = stream.longest(), engine.stats().page_in_seconds
    assert engine.stats().page_ins == 1
    assert taken > 0.3
    assert longest < taken / 3


def test_the_answer_is_that_of_an_idle_engine(engine, real, tiny_model, large, slow_pieces):
    wanted = {"prompt": "Once", "lora": {"large": 1.0}, "max_tokens": 8, "temperature": 0}
    stream = Running(engine, 3500)
    busy = engine.complete(**wanted)
    stream.longest()
    with Engine(tiny_model, n_ctx=4096, n_threads=1, bank_rank=512, library=real.path) as idle:
        idle.add_adapter(large)
        assert idle.complete(**wanted).tokens == busy.tokens


def test_who_waits_for_it_may_leave(engine, slow_pieces, tiny_model, tmp_path):
    """Cancelled or out of time while it is read: the bank is filled all the same, and then free."""
    other = tmp_path / "other.gguf"
    make_adapter(other, tiny_model, seed=6, rank=512, dtype="F16", strength=0.01)
    stream = Running(engine, 3500)
    [late] = engine.complete_many([Request(prompt="Once", lora={"large": 1.0}, max_tokens=2, timeout=0.05)])
    assert (late.finish_reason, late.tokens) == ("cancelled", ())
    assert engine.stats().page_ins == 0
    assert wait_for(lambda: engine.stats().page_ins == 1)
    engine.add_adapter(other)
    assert engine.complete("Once", lora={"other": 1.0}, max_tokens=2).tokens
    assert stream.longest() < engine.stats().page_in_seconds / 3
