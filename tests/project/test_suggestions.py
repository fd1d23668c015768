"""What an unknown name was meant to be."""

from __future__ import annotations

from llamafu._util.suggestions import did_you_mean, nearest_names

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
