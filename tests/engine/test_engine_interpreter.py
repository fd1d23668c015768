"""A busy engine gets the interpreter back soon, and leaves the program's own setting behind."""

from __future__ import annotations

import sys
import threading
import time

import pytest

from llamafu.engine import Engine, Request, switch_interval


@pytest.fixture
def interval():
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.01)
    yield
    sys.setswitchinterval(before)


def settled(wanted):
    """Whether the interval becomes `wanted`: the engine's thread rests after the answer is out."""
    limit = time.monotonic() + 5
    while sys.getswitchinterval() != pytest.approx(wanted) and time.monotonic() < limit:
        time.sleep(0.001)
    return sys.getswitchinterval() == pytest.approx(wanted)


@pytest.mark.usefixtures("interval")
def test_shorter_while_an_engine_computes(tiny_model, tiny_adapter_a):
    seen = []

    def scale(_step):
        seen.append(sys.getswitchinterval())
        return 1.0

    with Engine(tiny_model, n_ctx=256, n_threads=1) as engine:
        engine.add_adapter(tiny_adapter_a, name="a")
        assert settled(0.01)
        engine.complete("x", lora={"a": scale}, max_tokens=4, ignore_eos=True)
        assert settled(0.01)
        assert seen[1:] == [pytest.approx(0.0005)] * len(seen[1:])  # the first is asked when the request is made
        assert len(seen) > 1
        engine.complete("x", max_tokens=2)
    assert settled(0.01)


@pytest.mark.usefixtures("interval")
def test_several_engines_and_what_the_program_sets():
    switch_interval.shorten_switch_interval()
    switch_interval.shorten_switch_interval()
    switch_interval.restore_switch_interval()
    assert sys.getswitchinterval() == pytest.approx(0.0005)
    switch_interval.restore_switch_interval()
    assert sys.getswitchinterval() == pytest.approx(0.01)
    switch_interval.shorten_switch_interval()
    sys.setswitchinterval(0.02)
    switch_interval.restore_switch_interval()
    assert sys.getswitchinterval() == pytest.approx(0.02)
    sys.setswitchinterval(0.0001)
    switch_interval.shorten_switch_interval()
    switch_interval.restore_switch_interval()
    assert sys.getswitchinterval() == pytest.approx(0.0001)


def test_stats_while_requests_come_and_go(tiny_model):
    """Any thread may count what waits while the engine's own adds and takes."""
    ended = threading.Event()
    failures = []

    with Engine(tiny_model, n_ctx=256, n_threads=1, max_sequences=2) as engine:

        def ask():
            while not ended.is_set():
                try:
                    engine.stats()
                except Exception as error:  # noqa: BLE001 - it fails the test below
                    failures.append(error)
                    return

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            engine.complete_many(Request(prompt="x", max_tokens=1, priority=i) for i in range(20))
        ended.set()
        for thread in threads:
            thread.join()
    assert not failures
