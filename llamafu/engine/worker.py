"""The engine's thread."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeVar

from llamafu.engine import switch_interval
from llamafu.errors import ClosedError, QueueFullError

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamafu.engine.scheduler import Scheduler
    from llamafu.engine.sequence import SequenceRun

_T = TypeVar("_T")
_PATIENCE = 30.0
"""Seconds that `stop` waits for the running step."""


class Worker:
    """Owns the thread that runs a scheduler's steps while there is work, and functions between them. Any thread."""

    def __init__(self, scheduler: Scheduler, *, max_sequences: int, max_queue: int) -> None:
        self._scheduler = scheduler
        self._max_queue = max_queue
        self._capacity = max_sequences + max_queue
        self._changed = threading.Condition()
        self._arrivals: list[SequenceRun] = []
        self._calls: list[Callable[[], None]] = []
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="llamafu-engine", daemon=True)
        self._thread.start()

    def submit(self, sequences: list[SequenceRun]) -> None:
        """Queue sequences, all or none; `QueueFullError`, `ClosedError`."""
        with self._changed:
            self._demand_capacity(len(sequences))
            self._arrivals += sequences
            self._changed.notify()

    def demand_capacity(self, count: int) -> None:
        """Raise what `submit` would for so many sequences now."""
        with self._changed:
            self._demand_capacity(count)

    def call(self, function: Callable[[Scheduler], _T]) -> _T:
        """Run a function on the engine's thread between two steps; wait, and return or raise what it does."""
        done = threading.Event()
        outcome: list[_T] = []
        failure: list[BaseException] = []

        def run() -> None:
            try:
                outcome.append(function(self._scheduler))
            except BaseException as error:  # noqa: BLE001 - the calling thread raises it
                failure.append(error)
            finally:
                done.set()

        with self._changed:
            self.demand_open()
            self._refuse_own_thread()
            self._calls.append(run)
            self._changed.notify()
        done.wait()
        if failure:
            raise failure[0]
        if not outcome:
            self._refuse()
        return outcome[0]

    def post(self, function: Callable[[Scheduler], None]) -> None:
        """Run a function on the engine's thread before the next step; do not wait."""
        with self._changed:
            self.demand_open()
            self._calls.append(lambda: function(self._scheduler))
            self._changed.notify()

    def demand_open(self) -> None:
        """Raise `ClosedError` after the end, or in a forked child."""
        self._scheduler.runtime.instance.refuse_fork()
        if self._ended:
            self._refuse()

    def wake(self) -> None:
        """Wake the thread, so that it ends cancelled requests."""
        with self._changed:
            self._changed.notify()

    @property
    def closed(self) -> bool:
        """Whether the engine was closed or has failed."""
        return self._ended

    @property
    def queued(self) -> int:
        """Number of requests that wait."""
        return len(self._scheduler.pool.waiting) + len(self._arrivals)

    def stop(self) -> None:
        """End every request with `ClosedError`, end the thread and free everything. Idempotent."""
        runtime = self._scheduler.runtime
        if not runtime.instance.is_ours:
            return
        with self._changed:
            self._ended = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join(_PATIENCE)

    @property
    def _has_work(self) -> bool:
        return bool(self._ended or self._arrivals or self._calls or self._scheduler.pool.busy)

    def _run(self) -> None:
        scheduler = self._scheduler
        switch_interval.shorten_switch_interval()
        try:
            while self._next():
                try:
                    scheduler.step()
                except Exception as error:  # noqa: BLE001 - what the step has done is unknown
                    scheduler.fail_running(error)
        finally:
            switch_interval.restore_switch_interval()
            self._end()

    def _next(self) -> bool:
        """Wait for work, queue what was submitted and run the calls; return False once the engine is to end."""
        with self._changed:
            if not self._has_work:
                switch_interval.restore_switch_interval()
                while not self._has_work:
                    self._changed.wait()
                switch_interval.shorten_switch_interval()
            arrivals, self._arrivals = self._arrivals, []
            for sequence in arrivals:
                self._scheduler.pool.waiting.add(sequence)
            calls, self._calls = self._calls, []
        for call in calls:
            call()
        return not self._ended

    def _end(self) -> None:
        with self._changed:
            self._ended = True
            arrivals, self._arrivals = self._arrivals, []
            calls, self._calls = self._calls, []
        message = "the engine was closed"
        for sequence in arrivals:
            sequence.handle.end(ClosedError(message))
        self._scheduler.fail_all(ClosedError(message))
        for call in calls:
            call()
        self._scheduler.runtime.close()

    def _demand_capacity(self, count: int) -> None:
        self.demand_open()
        self._refuse_own_thread()
        waiting, running = len(self._scheduler.pool.waiting) + len(self._arrivals), len(self._scheduler.pool.running)
        if waiting + running + count > self._capacity:
            message = f"{running} requests run, {waiting} of at most {self._max_queue} wait, and {count} more came; try later"
            raise QueueFullError(message)

    def _refuse_own_thread(self) -> None:
        if threading.current_thread() is self._thread:
            message = "called from inside a step of the engine (from a scale function?); do it from another thread"
            raise RuntimeError(message)

    @staticmethod
    def _refuse() -> None:
        message = "this engine is closed; make a new Engine"
        raise ClosedError(message)
