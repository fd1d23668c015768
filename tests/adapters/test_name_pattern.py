"""Patterns of module names: what `re` says wherever it is understood, and never longer than a moment."""

import re
import time
import warnings

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llamafu.adapters.peft.name_pattern import NamePattern

NAME = "model.layers.12.self_attn.q_proj"
atoms = st.sampled_from(["a", "b", ".", r"\.", "[ab]", "[^a]", r"\d", "^", "$", "1", "[]a]", r"[\]a-b]", "{", "}", "a,"])
repeats = st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{,2}", "{1,}", "*?", "??", "{0}", "{}", "{,}"])
patterns = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.builds("{}{}".format, inner, inner),
        st.builds("({}|{})".format, inner, inner),
        st.builds("(?:{}){}".format, inner, repeats),
        st.builds("{}{}".format, inner, repeats),
        st.builds("{})|({}".format, inner, inner),
    ),
    max_leaves=8,
)


@settings(max_examples=400, deadline=None)
@given(patterns, st.text("ab1.\n", max_size=7))
def test_it_is_what_re_says(pattern, name):
    assume(not re.search(r"[*+?}]\+", pattern))  # possessive: refused here, another meaning in each version of Python
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = re.match(rf"(.*\.)?({pattern})$", name) is not None
    except re.error:
        with pytest.raises(ValueError, match="it has"):
            NamePattern(pattern)
        return
    assert NamePattern(pattern).matches(name) == expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("q_proj", True),
        ("self_attn.q_proj", True),
        ("proj", False),
        ("^model.layers.12.self_attn.q_proj", True),
        ("^layers.12.self_attn.q_proj", False),
        (r".*\.layers\.(?:[0-9]|1[0-2])\.self_attn\.[qk]_proj", True),
        (r"layers\.(1|2)\..*", False),
        (r"layers\.\d{2}\.\w+\.q_proj", True),
        ("q_proj|k_proj", True),
    ],
)
def test_names(pattern, expected):
    assert NamePattern(pattern).matches(NAME) is expected
    assert (re.match(rf"(.*\.)?({pattern})$", NAME) is not None) is expected


@pytest.mark.parametrize(
    "pattern", ["(a+)+b", "(a|a)*b", "(a*)*b", "(.*){30}b", "(.*a){20}b", "(?:a?){40}a{40}b", "(a|a)" * 60]
)
def test_no_pattern_takes_long(pattern):
    before = time.process_time()
    assert not NamePattern(pattern).matches("model." + "a" * 300 + "c")
    assert time.process_time() - before < 5  # 0.5 s at most where this was written


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("a" * 1001, "1001 characters"),
        ("(a", r"\( without a \)"),
        ("a(?=b)", r"group \(\?"),
        ("(?i)a", r"group \(\?"),
        (r"(a)\1", "the escape"),
        (r"a\b", "the escape"),
        ("a\\", r"\( without"),
        ("[a", r"\[ without"),
        ("[[a]]", "class with"),
        ("[b-a]", "bad character range"),
        ("a**", "repetition of a repetition"),
        ("a*+", "possessive"),
        ("*a", "repetition of nothing"),
        ("a{3,2}", "most is less"),
        ("((a{100}){100}){100}", "too large"),
        ("(((){1000}){1000}){1000}", "too large"),
        ("a{99999999999}", "too large"),
        ("(" * 60 + ")" * 60, "nested too deep"),
    ],
)
def test_refused(pattern, words):
    with pytest.raises(ValueError, match=words):
        NamePattern(pattern)
