"""Requests that last, and engines to make wait."""

from __future__ import annotations

import shutil
import time

from helpers.forced import STRICT
from llamafu.engine import Engine

LONG = {"temperature": 0, "ignore_eos": True, "max_tokens": 400}


SHORT = {"temperature": 0, "ignore_eos": True, "max_tokens": 4}


PATIENCE = 20.0


def made(model, *paths, **options):
    engine = Engine(model, **{**STRICT, "n_ctx": 1024, "n_batch": 128, "bank_dtype": "f32", **options})
    for path in paths:
        engine.add_adapter(path)
    return engine


def empty(engine):
    """Whether nothing is left that an ended request held."""
    scheduler = engine._scheduler
    deadline = time.monotonic() + PATIENCE
    while (scheduler.pool.running or len(scheduler.pool.waiting)) and time.monotonic() < deadline:
        time.sleep(0.001)
    bank = scheduler.runtime.bank
    users = [] if bank is None else [resident.users for resident in bank.allocator._residents.values()]
    held = engine._worker.call(lambda scheduler: scheduler.pool.kv._blocks.keys() - scheduler.pool.kv._kept.keys())
    return not scheduler.pool.running and not len(scheduler.pool.waiting) and not any(users) and not held


def replace(path, source):
    """Put a finished file in the place of another."""
    shutil.copy(source, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)
