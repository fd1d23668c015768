"""Whatever comes when, each finished answer is its cold reference's, and the accounts are right and end empty."""

from __future__ import annotations

import time

import numpy as np
import pytest
from helpers.adapters_made import make_various
from helpers.forced import STRICT
from helpers.schedules import PATIENCE, accounts, agrees
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tiny_model import FIRST_BYTE

from llamafu import Llamafu
from llamafu.engine import Engine, Request
from llamafu.engine.bank_units import UnitAllocator
from llamafu.engine.kv_cache import KvCache
from llamafu.generation.prompt import PREFIX_BLOCK

QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


@pytest.fixture(scope="module")
def paths(tiny_dir, tmp_path_factory):
    directory = tmp_path_factory.mktemp("schedules")
    return make_various(directory, tiny_dir / "tiny.gguf", seed=51, count=5, ranks=range(2, 9), dtypes=("F32",))


@pytest.fixture(scope="module")
def llm(tiny_model, paths):
    with Llamafu(tiny_model, n_ctx=512, n_batch=128, **STRICT) as llm:
        for path in paths:
            llm.load_lora_adapter(path)
        yield llm


@pytest.fixture(scope="module", params=["compiled", "python", "none"])
def engine(request, tiny_model, paths):
    """Little memory and a small bank: everything that can get scarce does."""
    options = {"n_ctx": 512, "n_batch": 64, "bank_rank": 16, "bank_dtype": "f32", "max_sequences": 4, **STRICT}
    with Engine(tiny_model, kernel=request.param, **options) as engine:
        for path in paths:
            engine.add_adapter(path)
        yield engine


mixes = st.dictionaries(st.sampled_from([f"v{i}" for i in range(5)]), st.sampled_from([0.25, 0.5, 1.0]), max_size=2)
arrivals = st.lists(
    st.fixed_dictionaries(
        {
            "start": st.integers(0, 2),
            "shared": st.sampled_from([0, 3, 64, 130]),
            "own": st.integers(1, 40),
            "seed": st.integers(0, 5),
            "new": st.integers(1, 12),
            "lora": mixes,
            "priority": st.integers(0, 1),
            "pause": st.sampled_from([0, 0, 0, 0.002]),
            "cancel": st.sampled_from([False] * 5 + [True]),
            "churn": st.sampled_from([None] * 4 + ["add", "pin"]),
        }
    ),
    min_size=1,
    max_size=10,
)


def prompt_of(arrival):
    def draw(seed, count):
        return np.random.default_rng(seed).integers(FIRST_BYTE, 317, count).tolist()

    return draw(arrival["start"], 130)[: arrival["shared"]] + draw(100 + arrival["seed"], arrival["own"])


@settings(max_examples=15, deadline=None, suppress_health_check=QUIET)
@given(schedule=arrivals)
def test_any_schedule(engine, llm, paths, schedule):
    tickets = []
    for arrival in schedule:
        time.sleep(arrival["pause"])
        if arrival["churn"] == "add":
            engine.add_adapter(paths[0], name="more")
            engine.remove_adapter("more")
        options = {"temperature": 0, "ignore_eos": True, "max_tokens": arrival["new"], "priority": arrival["priority"]}
        tickets.append(engine.submit(Request(prompt=prompt_of(arrival), lora=arrival["lora"], **options)))
        if arrival["cancel"]:
            tickets[-1].cancel()
    for arrival, ticket in zip(schedule, tickets, strict=True):
        done = ticket.result(PATIENCE)
        if arrival["cancel"] and done.finish_reason == "cancelled":
            assert len(done.tokens) <= arrival["new"]
        else:
            assert len(done.tokens) == arrival["new"]
        if done.tokens:
            assert agrees(llm, prompt_of(arrival), arrival["lora"], list(done.tokens))
    accounts(engine)


class FakeMemory:
    """What libllama keeps: the positions of each sequence."""

    def __init__(self):
        self.lengths = {}

    def cut(self, position, sequence=0):
        self.lengths[sequence] = min(position, self.lengths.get(sequence, 0))
        return True

    def share(self, source, target, length):
        assert self.lengths.get(source, 0) >= length, "shares what is not there"
        assert self.lengths.get(target, 0) < length, "shares over what is there"
        self.lengths[target] = length


class KvMachine(RuleBasedStateMachine):
    """The accounts against a plain model: which tokens under which states each sequence holds."""

    def __init__(self):
        super().__init__()
        self.memory = FakeMemory()
        self.kv = KvCache(self.memory, size=1000, sequences=5, reuse=True)
        self.held = {}

    @rule(
        kind=st.integers(0, 2),
        state=st.sampled_from([(), (("a", 1.0),)]),
        length=st.integers(1, 200),
        pause=st.none() | st.integers(0, 300),
    )
    def open(self, kind, state, length, pause):
        tokens, states = [kind] * 100 + list(range(length)), [()] * 50 + [state] * (50 + length)
        running = {id(block) for number in self.held for block in self.kv._blocks[number]}
        least = len(running) * PREFIX_BLOCK + sum(len(self.kv._tails[number]) for number in self.held)
        place = self.kv.open(tokens, states)
        if place is None:  # only running ones can be in the way
            assert len(self.held) == 5 or least + len(tokens) + 1 > self.kv.size
            return
        number, there = place
        assert there % PREFIX_BLOCK == 0
        assert there < len(tokens)
        assert self.memory.lengths.get(number, 0) == there
        if pause is not None:  # another one with the same text ends its prompt, before this one begins to compute
            other, had = self.kv.open(tokens, states) or (None, 0)
            if other is not None:
                self.kv.append(other, tokens[had:pause], states[had:pause])
                self.memory.lengths[other] = max(had, min(pause, len(tokens)))
                joined = self.kv.join(number, tokens, states)
                # Where the other one could not share what this one has, its blocks are its own.
                longest = max(had, min(pause, len(tokens) - 1)) // PREFIX_BLOCK * PREFIX_BLOCK
                assert joined == (longest - there if had == there else 0)
                there += joined
                assert self.memory.lengths.get(number, 0) == there
                self.kv.close(other)
        rest = list(zip(tokens, states, strict=True))[there:]
        assert pause is not None or self.kv.free_tokens > len(rest), "it was said to fit"
        if not self.kv.make_space(len(rest)):
            self.kv.close(number)
            return
        self.kv.append(number, *zip(*rest, strict=True))
        self.memory.lengths[number] = len(tokens)
        self.held[number] = list(zip(tokens, states, strict=True))

    @precondition(lambda self: self.held)
    @rule(keep=st.booleans(), which=st.integers(0, 4))
    def close(self, keep, which):
        number = sorted(self.held)[which % len(self.held)]
        del self.held[number]
        self.kv.close(number, keep=keep)

    @invariant()
    def adds_up(self):
        blocks = {id(block): block for own in self.kv._blocks.values() for block in own}
        assert self.kv.used == len(blocks) * PREFIX_BLOCK + sum(map(len, self.kv._tails.values()))
        assert self.kv.used <= self.kv.size
        running = {id(block) for number in self.held for block in self.kv._blocks[number]}
        assert self.kv._idle == (len(blocks) - len(running)) * PREFIX_BLOCK
        for number, content in self.held.items():
            assert len(self.kv._blocks[number]) * PREFIX_BLOCK + len(self.kv._tails[number]) == len(content)
            keys = [block.key for block in self.kv._blocks[number] if block.key]
            known = [pair for key in keys for pair in zip(key[1], key[2], strict=True)]
            assert known == content[: len(known)]

    def teardown(self):
        for number in list(self.held):
            self.kv.close(number)
        assert self.kv.make_space(self.kv.size)
        assert (self.kv.used, len(self.kv._free)) == (0, 5)


TestKv = KvMachine.TestCase
TestKv.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.dictionaries(st.sampled_from("abcdef"), st.just(0), min_size=1, max_size=3), st.booleans()), max_size=40
    )
)
def test_pager(moves):
    """Units have one owner at a time; what is in use stays; what cannot be had changes nothing."""
    ranks = dict(zip("abcdef", (1, 3, 5, 8, 2, 7), strict=True))
    allocator, using = UnitAllocator(12), []
    for wanted, release in moves:
        if release and using:
            allocator.release(using.pop(0))
        asked = {digest: ranks[digest] for digest in wanted}
        before = {digest: resident.units.tolist() for digest, resident in allocator._residents.items()}
        placed = allocator.acquire(asked)
        if placed is None:
            assert {d: r.units.tolist() for d, r in allocator._residents.items()} == before
            needed = {**{d: ranks[d] for used in using for d in used}, **asked}
            assert sum(needed.values()) > 12
            continue
        using.append(list(asked))
        for digest in {d for used in using for d in used}:
            assert len(allocator[digest].units) == ranks[digest]
            assert digest in placed or allocator[digest].units.tolist() == before.get(digest)
        owned = [unit for r in allocator._residents.values() for unit in r.units.tolist()] + allocator._free
        assert sorted(owned) == list(range(12))
    for used in using:
        allocator.release(used)
    assert not any(resident.users for resident in allocator._residents.values())
