"""A decode call that fails ends what fails by itself, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.adapters_made import make_various
from helpers.forced import STRICT
from helpers.schedules import accounts, agrees
from tiny_model import FIRST_BYTE

from llamafu import Llamafu
from llamafu._native.context import Context
from llamafu.engine import Engine, Request
from llamafu.errors import DecodeError

PATIENCE = 20.0
MARK = 316
"""A token that only the culprit's prompt has, at its end."""
OPTIONS = {"temperature": 0, "ignore_eos": True, "max_tokens": 8}


def tokens(seed, count):
    return np.random.default_rng(seed).integers(FIRST_BYTE, MARK, count).tolist()


def failing(fault, monkeypatch, *, once=False):
    """Let every decode call fail that has the marked token among its rows; `once`: the fifth one of several sequences."""
    true = Context.compute
    failed, seen = [], []

    def compute(self, rows, positions, sequences, outputs):
        if len(set(sequences)) > 1:
            seen.append(rows)
        is_bad = len(seen) == 5 and not failed if once else MARK in rows
        if not is_bad:
            return true(self, rows, positions, sequences, outputs)
        failed.append(len(set(sequences)))
        if fault == "late":  # libllama has computed it, and then something goes wrong
            true(self, rows, positions, sequences, outputs)
        if fault in {"raised", "late"}:
            message = "injected"
            raise DecodeError(message)
        return fault

    monkeypatch.setattr(Context, "compute", compute)
    return failed


@pytest.fixture(scope="module", params=["tiny/compiled", "tiny/none", "tiny-recurrent/none"])
def room(request, tiny_dir, tmp_path_factory):
    """An engine with adapters, and the plain model beside it."""
    kind, kernel = request.param.split("/")
    base = tiny_dir / f"{kind}.gguf"
    tmp_path = tmp_path_factory.mktemp("faults")
    paths = make_various(tmp_path, base, seed=61, count=3, ranks=range(2, 9), dtypes=("F32",))
    options = {"n_ctx": 1024, "n_batch": 128, "bank_dtype": "f32", "kernel": kernel, **STRICT}
    with Engine(base, adapters_dir=tmp_path, **options) as engine, Llamafu(base, n_ctx=512, **STRICT) as llm:
        for path in paths:
            llm.load_lora_adapter(path)
        yield engine, llm


def asked(engine, count):
    """So many requests that run on, all of them begun."""
    loras = [{}, {"v0": 1.0}, {"v1": 0.5}, {"v2": 1.0, "v0": 0.25}]
    requests = [Request(prompt=tokens(i, 8 + 9 * i), lora=loras[i % 4], **OPTIONS) for i in range(count)]
    return requests, [engine.submit(request) for request in requests]


def right(llm, requests, answers):
    for request, answer in zip(requests, answers, strict=True):
        said = list(answer.tokens)
        assert len(said) == 8
        assert agrees(llm, list(request.prompt), request.lora, said)


@pytest.mark.parametrize("fault", [-3, "raised", "late", 1])
def test_culprit_fails_alone(room, fault, monkeypatch):
    """Whoever makes a call fail ends with its error; all others say what they would have said."""
    engine, llm = room
    before = engine.stats()
    failed = failing(fault, monkeypatch)
    requests, tickets = asked(engine, 5)
    culprits = [engine.submit(Request(prompt=[*tokens(9, 70), MARK], lora={"v1": 0.5}, **OPTIONS)) for _ in range(2)]
    right(llm, requests, [ticket.result(PATIENCE) for ticket in tickets])
    for culprit in culprits:
        with pytest.raises(DecodeError, match={-3: "libllama returned -3", 1: "does not fit"}.get(fault, "injected")):
            culprit.result(PATIENCE)
    assert failed
    stats = engine.stats()
    assert (stats.failed - before.failed, stats.finished - before.finished) == (2, 5)
    assert (stats.failed_steps > before.failed_steps) == (fault != 1)
    monkeypatch.undo()
    right(llm, requests[:2], engine.complete_many(requests[:2]))
    if stats.kernel != "none":
        accounts(engine)


@pytest.mark.parametrize("fault", [-3, "raised", "late"])
def test_passing_fault(room, fault, monkeypatch):
    """A fault that does not come again ends nobody."""
    engine, llm = room
    before = engine.stats()
    failed = failing(fault, monkeypatch, once=True)
    requests = [Request(prompt=tokens(i, 8 + 9 * i), lora={"v0": 1.0} if i % 2 else {}, **OPTIONS) for i in range(6)]
    right(llm, requests, engine.complete_many(requests))
    stats = engine.stats()
    assert len(failed) == stats.failed_steps - before.failed_steps == 1
    assert stats.failed == before.failed


def test_everything_fails(tiny_model, monkeypatch):
    """When no call succeeds, every request ends with the error, and the engine is there for the next one."""
    with Engine(tiny_model, n_ctx=1024, **STRICT) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(Context, "compute", lambda *_: -3)
            tickets = [engine.submit(Request(prompt=tokens(i, 10), **OPTIONS)) for i in range(7)]
            for ticket in tickets:
                with pytest.raises(DecodeError, match="libllama returned -3"):
                    ticket.result(PATIENCE)
        assert len(engine.complete("x", **OPTIONS).tokens) == 8
        accounts(engine)
