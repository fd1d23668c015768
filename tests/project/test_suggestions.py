"""What an unknown name was meant to be."""

from __future__ import annotations

import pytest

from llamafu._util.suggestions import did_you_mean, is_misspelling, nearest_names

KNOWN = ("temperature", "top_k", "top_p", "max_tokens")


def test_the_nearest_known_name():
    assert did_you_mean("temprature", KNOWN) == "; did you mean 'temperature'?"
    assert did_you_mean("top_q", KNOWN, cutoff=0.85) == ""
    assert did_you_mean("grammar", KNOWN) == ""
    assert sorted(nearest_names("top", KNOWN, count=2)) == ["top_k", "top_p"]


def test_a_name_of_any_length_and_kind():
    """Only the beginning of a name is compared, so that a request cannot make it slow; what is no text has no likeness."""
    assert nearest_names("max_tokens" + "x" * 10**6, KNOWN) == []
    assert did_you_mean(7, KNOWN) == ""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(
            (name, True)
            for name in ("temprature", "tmperatrue", "max_token", "maxTokens", "MAX-TOKENS", "top_q", "tpo_p", "topk")
        ),
        *((name, False) for name in ("temperament", "tokens", "to_q", "top", "", "x", "max_tokens_second", "a" * 10**6)),
    ],
)
def test_a_slip_of_one_or_two_letters(name, expected):
    assert is_misspelling(name, frozenset(KNOWN)) == expected


def test_short_names_are_not_slips_of_each_other():
    assert not is_misspelling("m", frozenset({"n"}))
    assert not is_misspelling("tsf", frozenset({"tfs"}))
    assert not is_misspelling("stap_", frozenset({"seed"}))
    assert is_misspelling("sede", frozenset({"seed"}))
