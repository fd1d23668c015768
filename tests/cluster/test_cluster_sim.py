"""The simulation of many replicas, in a small case."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
from cluster_sim import Case, Costs, compare


@pytest.fixture(scope="module")
def outcomes():
    case = Case(replicas=8, adapters=200, requests=2500, load=0.6, bank_units=128)
    return {outcome.policy: outcome for outcome in compare(case, Costs())}


def test_half_the_misses_at_the_same_balance(outcomes):
    ours, least = outcomes["llamafu"], outcomes["least-queue"]
    assert ours.misses * 2 <= least.misses
    assert ours.imbalance <= 1.15 * least.imbalance
    assert ours.p50 <= least.p50
    assert ours.cached_tokens > 1.5 * least.cached_tokens


def test_against_the_other_policies(outcomes):
    """Random is worse in everything; consistent hashing misses less, and makes its busiest replica the bottleneck."""
    ours, hashing = outcomes["llamafu"], outcomes["consistent hashing"]
    assert ours.misses * 2 < outcomes["random"].misses
    assert ours.p99 < outcomes["random"].p99
    assert ours.imbalance < 0.8 * hashing.imbalance
    assert ours.p99 < 0.7 * hashing.p99


def test_a_choice_is_fast(outcomes):
    """In CPU time; of the 2 ms that a request may cost, with 8 replicas."""
    assert 0 < outcomes["llamafu"].choice_p99 < 0.002


def test_every_request_is_answered(outcomes):
    """Two replicas die: what ran there is sent again, and nothing is lost or counted twice."""
    for outcome in outcomes.values():
        assert outcome.resent > 0
        assert outcome.misses + round(outcome.hit_rate * (2500 + outcome.resent)) >= 2500
