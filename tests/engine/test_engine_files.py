"""Adapter files that change, go and come back while an engine knows them."""

from __future__ import annotations

import dataclasses
import gc
import os
import shutil
import sys
import time

import pytest
from helpers.adapters_made import make_adapter
from helpers.engine_cases import LONG, PATIENCE, SHORT, empty, made, replace
from helpers.forced import STRICT
from helpers.schedules import agrees

from llamafu import Llamafu
from llamafu.adapters.file import read_adapter
from llamafu.engine import Engine, Request
from llamafu.engine import registry as registry_module
from llamafu.engine.bank import Bank
from llamafu.errors import InvalidAdapterFileError, LoraLoadError, QueueFullError


def test_files_that_change(tiny_model, tiny_dir, tmp_path):
    """A new content is a new adapter from the next request on; what runs keeps the old one."""
    path = tmp_path / "x.gguf"
    shutil.copy(tiny_dir / "a.gguf", path)
    with made(tiny_model, path, tiny_dir / "b.gguf", max_sequences=1, bank_rank=9) as engine:
        old = engine.complete("hello", lora={"x": 1.0}, **SHORT)
        running = engine.submit(Request(prompt="hello", lora={"x": 1.0}, **LONG))
        next(running.pieces())
        replace(path, tiny_dir / "wide.gguf")
        waiting = engine.submit(Request(prompt="hello", lora={"x": 1.0}, **SHORT))
        assert running.result(PATIENCE).lora[0].digest == old.lora[0].digest
        new = waiting.result(PATIENCE)
        assert new.lora[0].digest == engine.adapters["x"].digest != old.lora[0].digest
        path.unlink()
        assert engine.complete("hello", lora={"x": 1.0}, **SHORT).tokens == new.tokens  # it is in the bank still
        engine.complete("hello", lora={"b": 1.0}, **SHORT)  # it gives way
        with pytest.raises(LoraLoadError, match="cannot be read any more since the adapter was added"):
            engine.submit(Request(prompt="hello", lora={"x": 1.0}, **SHORT))
        path.mkdir()  # neither gone nor an adapter
        with pytest.raises(InvalidAdapterFileError):
            engine.submit(Request(prompt="hello", lora={"x": 1.0}, **SHORT))
        assert engine.complete("hello", lora={}, **SHORT).tokens
        assert empty(engine)


def overwrite(path, source):
    """Write into a file that is there: its number stays, and so does its time."""
    times = path.stat()
    with path.open("r+b") as file:
        file.write(source.read_bytes())
        file.truncate()
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


CHANGES = {
    "replaced": replace,
    "overwritten": overwrite,
    "deleted": lambda path, _: path.unlink(),
    "cut": lambda path, _: path.write_bytes(b""),
}


@pytest.mark.parametrize("kernel", ["compiled", "none"])
@pytest.mark.parametrize("change", CHANGES)
def test_accepted_requests_outlive_their_files(tiny_model, tiny_dir, tmp_path, kernel, change):
    """A request that waits runs with what was there when it was submitted, whatever becomes of the file meanwhile."""
    path = tmp_path / "x.gguf"
    shutil.copy(tiny_dir / "a.gguf", path)
    with made(tiny_model, path, tiny_dir / "b.gguf", max_sequences=1, kernel=kernel) as engine:
        copies = engine._registry._copies._folder
        assert not list(copies.iterdir())  # a registered adapter takes no room
        digest = engine.adapters["x"].digest
        running = engine.submit(Request(prompt="hello", lora={"b": 1.0}, **LONG))
        next(running.pieces())
        waiting = [engine.submit(Request(prompt="hello", lora={"x": 1.0}, **SHORT)) for _ in range(3)]
        assert len(list(copies.iterdir())) == 2  # one for each content
        CHANGES[change](path, tiny_dir / "wide.gguf")
        if change in {"replaced", "overwritten"}:
            after = engine.submit(Request(prompt="hello", lora={"x": 1.0}, **SHORT))
        running.cancel()
        done = [ticket.result(PATIENCE) for ticket in waiting]
        assert {use.digest for one in done for use in one.lora} == {digest}
        with Llamafu(tiny_model, n_ctx=256, **STRICT) as llm:
            llm.load_lora_adapter(tiny_dir / "a.gguf")
            assert agrees(llm, llm.tokenize("hello"), {"a": 1.0}, list(done[0].tokens))
        if change in {"replaced", "overwritten"}:
            assert after.result(PATIENCE).lora[0].digest == engine.adapters["x"].digest != digest
        assert empty(engine)


def test_what_gave_way_while_its_request_waited(tiny_model, tiny_dir, tmp_path):
    """Resident when it was asked for, out of the bank when its turn comes, its file gone: the copy is still there."""
    path = tmp_path / "x.gguf"
    shutil.copy(tiny_dir / "a.gguf", path)
    with made(tiny_model, path, tiny_dir / "wide.gguf", bank_rank=11, max_sequences=1) as engine:
        old = engine.complete("hello", lora={"x": 1.0}, **SHORT)
        running = engine.submit(Request(prompt="hello", **LONG))
        next(running.pieces())
        waiting = engine.submit(Request(prompt="hello", lora={"x": 1.0}, **SHORT))
        path.unlink()
        urgent = engine.submit(Request(prompt="hello", lora={"wide": 1.0}, priority=1, **SHORT))
        running.cancel()
        urgent.result(PATIENCE)
        assert waiting.result(PATIENCE).tokens == old.tokens
        assert engine.stats().page_ins == 3


def test_copies_are_bounded(tiny_model, tmp_path):
    """There are copies of what is in use or resident, and none of what has given way."""
    for i in range(24):
        make_adapter(tmp_path / f"x{i}.gguf", tiny_model, seed=i, rank=4)
    with Engine(tiny_model, adapters_dir=tmp_path, bank_rank=8, n_ctx=512, **STRICT) as engine:
        copies = engine._registry._copies._folder
        engine.complete_many(Request(prompt="x", lora={f"x{i}": 1.0}, **SHORT) for i in range(24))
        assert empty(engine)
        gc.collect()
        assert 0 < len(list(copies.iterdir())) <= 3  # a thread's last look may keep one more for a moment
        shutil.rmtree(copies)
        with pytest.raises(LoraLoadError, match=r"cannot be copied to .*make room there, or name another folder in TMPDIR"):
            engine.submit(Request(prompt="x", lora={"x0": 1.0}, **SHORT))
        assert engine.complete("x", lora={}, **SHORT).tokens


def test_rewritten_in_place(tiny_model, tmp_path):
    """The same file, the same size, the time it had before: another content nevertheless. To see it fail: drop st_ctime_ns."""
    path, other = tmp_path / "x.gguf", tmp_path / "other.gguf"
    for seed, each in enumerate((path, other)):
        make_adapter(each, tiny_model, seed=seed, rank=4)
    assert path.stat().st_size == other.stat().st_size
    with made(tiny_model) as engine, pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry_module, "_TICK", 0)  # as if the file were old
        old = engine.add_adapter(path, name="x").digest
        assert engine.complete("x", lora={"x": 1.0}, **SHORT).lora[0].digest == old  # there is a copy from now on
        time.sleep(0.02)  # a tick of this machine's clock
        overwrite(path, other)
        assert engine.complete("x", lora={"x": 1.0}, **SHORT).lora[0].digest == read_adapter(other).digest != old


def test_rewritten_within_a_tick(tiny_model, tmp_path, monkeypatch):
    """Nothing of the file shows the change; while it is younger than a tick it is read again. Fails without `settled`."""
    path, other = tmp_path / "x.gguf", tmp_path / "other.gguf"
    for seed, each in enumerate((path, other)):
        make_adapter(each, tiny_model, seed=seed, rank=4)
    reads = []
    look = registry_module._signature
    monkeypatch.setattr("llamafu.adapters.reader.read_adapter", lambda path: reads.append(path) or read_adapter(path))
    monkeypatch.setattr(registry_module, "_TICK", 2**62)  # else a busy machine may take longer to get here
    monkeypatch.setattr(registry_module, "_signature", lambda path: dataclasses.replace(look(path), stats=()))
    with made(tiny_model) as engine:

        def digest():
            return engine.complete("x", lora={"x": 1.0}, **SHORT).lora[0].digest

        old = engine.add_adapter(path, name="x").digest
        assert digest() == old
        overwrite(path, other)
        assert digest() == engine.adapters["x"].digest == read_adapter(other).digest != old
        monkeypatch.setattr(registry_module, "_TICK", 0)  # as if time had passed
        digest()  # the last look while it was young was no proof
        before = len(reads)
        assert digest() == digest() != old
        assert len(reads) == before  # it is old now, and looked at only


def test_full_queue_copies_nothing(tiny_model, tiny_dir):
    """What is refused because too many wait has not been copied before. Fails without `demand_capacity`."""
    with made(tiny_model, tiny_dir / "a.gguf", max_sequences=1, max_queue=1) as engine:
        tickets = [engine.submit(Request(prompt="x", **LONG)) for _ in range(2)]
        with pytest.raises(QueueFullError):
            engine.submit(Request(prompt="x", lora={"a": 1.0}, **SHORT))
        copies = engine._registry._copies
        assert next(copies._numbers) == 0
        for ticket in tickets:
            ticket.cancel()


def test_copy_that_is_cut(tiny_model, tiny_dir):
    """A private copy that somebody spoils is an error of its request alone, and nothing half-read looks resident."""
    with made(tiny_model, tiny_dir / "a.gguf", tiny_dir / "b.gguf", max_sequences=1) as engine:
        running = engine.submit(Request(prompt="x", **LONG))
        next(running.pieces())
        waiting = engine.submit(Request(prompt="x", lora={"a": 1.0}, **SHORT))
        (copy,) = engine._registry._copies._folder.iterdir()
        os.truncate(copy, copy.stat().st_size // 2)
        running.cancel()
        with pytest.raises(LoraLoadError, match=r"private copy .* cannot be read: .* ends after \d+ of \d+ bytes; ask again"):
            waiting.result(PATIENCE)
        assert engine.stats().bank_units_used == 0
        assert engine.complete("x", lora={"b": 1.0}, **SHORT).tokens
        assert empty(engine)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells")
def test_bank_is_taken_at_the_start(tiny_model, tiny_dir):
    """Filling the bank takes no memory that was not taken before: whatever comes, an engine is as large as it began."""
    page = os.sysconf("SC_PAGE_SIZE")
    with made(tiny_model, bank_rank=512) as engine:
        bank = engine._runtime.bank
        assert isinstance(bank, Bank)
        arrays = [*bank.store.a, *bank.store.b]
        with open("/proc/self/pagemap", "rb") as table:  # noqa: PTH123 - a file of the kernel's
            for array in arrays:
                first, last = array.ctypes.data // page, (array.ctypes.data + array.nbytes - 1) // page
                table.seek(8 * first)
                entries = memoryview(table.read(8 * (last - first + 1))).cast("Q")
                assert all(entry >> 62 for entry in entries)  # present, or swapped out
