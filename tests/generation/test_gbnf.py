"""Our own reading of GBNF: against an independent matcher, against libllama's parser, and within its bounds."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest
from helpers.gbnf_matcher import Grammar
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafu.errors import GrammarError
from llamafu.generation.grammar import schema_to_gbnf
from llamafu.generation.grammar.automaton import NOTHING, Automaton, Budget
from llamafu.generation.grammar.compiled import CompiledGrammar
from llamafu.generation.grammar.constraint import Constraint
from llamafu.generation.grammar.gbnf import parse
from llamafu.generation.grammar.network import Network
from llamafu.generation.grammar.vocabulary import Vocabulary

PROFILE = settings(max_examples=80, deadline=None, derandomize=True)
END = 0


def vocabulary(*pieces: bytes) -> Vocabulary:
    """Every byte, and what else is wanted; token 0 ends a text."""
    singles = [bytes([code]) for code in range(256)]
    return Vocabulary([b"", *singles, *pieces], [END], {"<x>": 300}.get)


def automaton(grammar: str) -> Automaton:
    return Automaton(Network(parse(grammar, {"<x>": 300}.get)), Budget(1_000_000))


def matches(grammar: str, text: str | bytes) -> bool:
    """Whether the whole text is one of the grammar's."""
    made = automaton(grammar)
    state = made.start
    for byte in text.encode() if isinstance(text, str) else text:
        state, low, high = made.byte(state, byte)
        assert low <= byte <= high
    return made.accepts(state)


MEANINGS = {
    "literal": (r'root ::= "a\"\\\n\x41\u00e9\U0001F600"', ['a"\\\nAé😀'], ["a", ""]),
    "class": (r"root ::= [a-c\-é^]+", ["abc", "-é^"], ["", "d", "a "]),
    "dash first and last": ("root ::= [-a] [a-]", ["-a", "a-", "--"], ["b-"]),
    "negated": ("root ::= [^a-c\\n]", ["d", "😀", "\0"], ["a", "\n", "dd"]),
    "empty class is nothing": ('root ::= [] "a" [^] "b"', ["ab"], ["a", "xab"]),
    "empty range never": ('root ::= [b-a] | "c"', ["c"], ["a", "b", ""]),
    "any": ("root ::= .", ["a", "\n", "é", "😀"], ["", "ab"]),
    "counts": ('root ::= "a"{2} "b"{1,2} "c"{1,} "d"{0} "e"{ 0 , 1 }', ["aabc", "aabbccce"], ["abc", "aab", "aabbbc", "aabcd"]),
    "repeats the whole literal": ('root ::= "ab"{2} "cd"* "ef"?', ["abab", "ababcdcdef"], ["abb", "ababc", "ababd"]),
    "twice repeated": ('root ::= "a"{2}{2,3}', ["aaaa", "aaaaaa"], ["aa", "aaaaa"]),
    "empty repeated": ('root ::= ("a"*)* ("" | "b"?)+', ["", "aaa", "abb"], ["ba", "c"]),
    "group over lines": ('root ::= (\n "a" # one\n | "b"\n)\n # end', ["a", "b"], [""]),
    "alternatives over lines": ('root ::= "a" |\n "b" |', ["a", "b", ""], ["ab"]),
    "last definition counts": ('root ::= "a"\nroot ::= "b"\r\nx ::= "c"', ["b"], ["a", "c"]),
    "recursion": ('root ::= "(" root ")" root | ""', ["", "()(())"], ["(", ")("]),
    "no limit is lost": ('root ::= "a"{0,3000}', ["a" * 3000], ["a" * 3001]),
    "two ways back": ('root ::= "a" root "b" | "a" root "c" | ""', ["a" * 60 + "bc" * 30], ["a" * 60 + "bc" * 29]),
    "ambiguous": ('root ::= ("a" | "a")* "b"? "a"* .*.*', ["a" * 50, "ab", "x"], []),
    "surrogates are no characters": ('root ::= [\\uD800-\\uDFFF] | "x"', ["x"], [b"\xed\xa0\x80"]),
    "whole characters": ("root ::= .", ["é"], [b"\xc3", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\xe0\x80\x80"]),
}  # fmt: skip


@pytest.mark.parametrize("name", MEANINGS)
def test_meanings(name):
    grammar, good, bad = MEANINGS[name]
    for text in good:
        assert matches(grammar, text), text
    for text in bad:
        assert not matches(grammar, text), text


REFUSED = {
    "nested": ("root ::= " + "(" * 60_000, "more than 500 nested parentheses"),
    "nested and closed": ("root ::= " + "(" * 501 + '"a"' + ")" * 501, "more than 500 nested parentheses"),
    "repeated": ('root ::= ("a"{400} "b"){400}{400} "c"{160000}', "more than 150,000 elements .*161,204"),
    "rules": ("root ::= " + "() " * 20_001, "more than 20,000 rules"),
    "bytes": ("#" * 1_000_001, "1,000,001 bytes, at most 1,000,000"),
    "alternatives": ("root ::= " + '"a"? ' * 30_000, "alive at once"),
    "least above most": ('root ::= "a"{3,2}', r"line 1, column 13: \{3,2\}"),
    "no bound": ('root ::= "a"{,2}', r"\{ without \{n\}"),
    "nothing to repeat": ("root ::= *", "a repetition of nothing"),
    "empty to repeat": ('root ::= ""+', "a repetition of nothing"),
    "gone and repeated": ('root ::= "a"{0}?', "a repetition of nothing"),
    "open group": ("root ::= (\n(", "line 2, column 2: .* without .*2 deep"),
    "open literal": ('root ::= "a', "the end inside"),
    "open class": ("root ::= [a", "the end inside"),
    "escape": (r'root ::= "\q"', "an escape that is none"),
    "short hex": (r'root ::= "\x4"', "an escape that is none"),
    "undefined": ("root ::= a b\na ::= root", "rule 'b' is used but not defined|left recursion"),
    "no root": ('roots ::= "a"', "needs a rule named root; it has roots"),
    "nothing": ("# only a comment", "needs a rule named root; it has no rules"),
    "stray": ('root ::= "a" )', r"'\)', which neither continues"),
    "underscore": ('ro_ot ::= "a"', "no ::= after 'ro'"),
    "left recursion": ('root ::= root "a" | "b"', "left recursion: root can begin with itself"),
    "hidden left recursion": ('root ::= a root "x" | "z"\na ::= b\nb ::= "y"?', "left recursion: root can begin"),
    "in a circle": ("root ::= a\na ::= b\nb ::= a", "left recursion: a -> b can begin"),
    "token": ("root ::= <nothing>", "not exactly one token"),
    "open token": ("root ::= <x", "no token after <"),
    "surrogate": ('root ::= "\ud800"', "half of a surrogate pair"),
    "NUL": ('root ::= "a\0"', "NUL"),
    "doubling": ("\n".join(f"r{i} ::= r{i + 1} r{i + 1} | [a-z]" for i in range(999)) + '\nr999 ::= "a"\nroot ::= r0', "steps"),
    "never": ("root ::= [b-a]", "no tokens for a class without characters"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_say_where_and_how_much(name):
    grammar, message = REFUSED[name]
    began = time.process_time()
    with pytest.raises(GrammarError, match=f"^grammar: .*{message}" if "|" not in message else message) as caught:
        Constraint(CompiledGrammar(grammar, vocabulary()))
    assert "\n" not in str(caught.value)
    assert time.process_time() - began < 10


def test_a_kilobyte_of_options_is_cheap():
    """It held up every other request for 17 seconds once."""
    for grammar in (
        "root ::= " + '"a"? ' * 300,
        "root ::= " + '[a-z]? " "? ' * 300,
        "root ::= " + ".*" * 500,
        'root ::= (("a"*)*)*',
    ):
        began = time.process_time()
        constraint = Constraint(CompiledGrammar(grammar, vocabulary(*(b"a" * count + b"b" for count in range(1, 40)))))
        for _ in range(20):
            constraint.allowed()
            constraint.accept(1 + ord("a"))
        assert time.process_time() - began < 3


# Random grammars, as text, for what reads them.
CHARS = st.sampled_from(["a", "b", "é", "😀"])


def atoms() -> st.SearchStrategy[str]:
    literals = st.text(CHARS, min_size=1, max_size=3).map(lambda text: f'"{text}"')
    return literals | st.sampled_from(["[ab]", "[a-é]", "[b😀]"])


def bodies() -> st.SearchStrategy[str]:
    def more(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return st.one_of(
            st.lists(inner, min_size=1, max_size=3).map(" ".join),
            st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"({' | '.join(parts)})"),
            st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{0,2}", "{1,}"])).map(
                lambda t: f"({t[0]}){t[1]}"
            ),
        )

    return st.recursive(atoms() | st.sampled_from(["one", "two"]), more, max_leaves=8)


GRAMMARS = st.tuples(bodies(), bodies(), atoms()).map(
    lambda t: f'root ::= {t[0]}\none ::= "a" ({t[1].replace("one", "two")}) | {t[2]}\ntwo ::= {t[2]} | "b" one?\n'
)


@PROFILE
@given(GRAMMARS, st.integers(0, 2**32), st.text(CHARS, max_size=6))
def test_it_matches_what_an_independent_matcher_matches(grammar, seed, other):
    reference = Grammar(grammar)
    text = reference.example(random.Random(seed))  # noqa: S311 - test data
    for each in {text, text[:-1], text + "a", other}:
        assert matches(grammar, each) == reference.matches(each), each


@settings(PROFILE, max_examples=20)
@given(GRAMMARS, st.integers(0, 2**32))
def test_allowed_tokens_are_those_that_a_text_can_go_on_with(grammar, seed):
    """Whatever is drawn among them is a match when it may end, and every token is judged as its bytes one by one are."""
    words = vocabulary(b"ab", b"ba", "é".encode(), "aé😀".encode(), b"a\xf0\x9f", b"\x98\x80b", b"bb")
    constraint, dice = Constraint(CompiledGrammar(grammar, words)), random.Random(seed)  # noqa: S311 - test data
    made, text = automaton(grammar), b""
    for _ in range(12):
        allowed = constraint.allowed().tolist()
        for token, piece in enumerate(words.token_bytes):
            state = made.start
            for byte in text + piece:
                state = made.byte(state, byte)[0]
            expected = made.accepts(state) if token == END else state != NOTHING
            assert (token in allowed) == expected, (text, piece)
        choice = dice.choice(allowed) if allowed else END
        if choice == END:
            break
        constraint.accept(choice)
        text += words.token_bytes[choice]
    if constraint.may_end:
        assert Grammar(grammar).matches(text.decode())


@PROFILE
@given(st.text(st.sampled_from(list('root:=|()[]{}"\\*+?.^-<>!#,0123abx \n\r\t😀')), max_size=60))
def test_no_text_is_worse_than_an_error(tail):
    for grammar in (tail, f"root ::= {tail}"):
        try:
            Constraint(CompiledGrammar(grammar, vocabulary()))
        except GrammarError as error:
            assert "\n" not in str(error)  # noqa: PT017 - either is right


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_cut_grammars_are_errors_or_grammars(cut):
    whole = 'root ::= ("a" | [b-d]{2,3} # end\n )* <x>? other\nother ::= "\\u00e9" .+'
    try:
        parse(whole[:cut], {"<x>": 300}.get)
    except GrammarError as error:
        assert str(error).startswith("grammar: ")  # noqa: PT017 - either is right


def test_tokens_by_name_and_number():
    words = vocabulary(*(b"t%d" % i for i in range(50)))
    constraint = Constraint(CompiledGrammar('root ::= <x> "a" <[299]> !<[299]>', words))
    assert constraint.allowed().tolist() == [300]
    constraint.accept(300)
    constraint.accept(1 + ord("a"))
    assert constraint.allowed().tolist() == [299]
    constraint.accept(299)
    assert constraint.allowed().tolist() == [token for token in range(1, len(words)) if token != 299]
    constraint.accept(5)
    assert constraint.is_complete
    assert constraint.allowed().tolist() == [END]


def test_control_tokens_write_nothing_and_are_never_allowed():
    words = Vocabulary([b"</s>", b"", b"a", b"b"], [0], lambda _: None)
    constraint = Constraint(CompiledGrammar("root ::= .*", words))
    assert constraint.allowed().tolist() == [0, 2, 3]


def test_what_cannot_be_spelt_is_left_out_or_refused():
    words = Vocabulary([b"", b"a", b"b", b'"'], [END], lambda _: None)
    assert Constraint(CompiledGrammar('root ::= "a" | "b" "c" | "d"*', words)).allowed().tolist() == [END, 1]
    with pytest.raises(GrammarError, match=r"no tokens for U\+40000"):
        Constraint(CompiledGrammar(r'root ::= "\"\U00040000\""', words))
    halves = Vocabulary([b"", b"a", b"\xf1", b"\x80"], [END], lambda _: None)
    assert Constraint(CompiledGrammar(r'root ::= "\U00040000"', halves)).allowed().tolist() == [2]
    lost = Vocabulary([b"", b"a\xc3", b"\xa9\xa9", b"b"], [END], lambda _: None)
    constraint = Constraint(CompiledGrammar('root ::= "aé"', lost))
    constraint.accept(1)
    assert not len(constraint.allowed())
    with pytest.raises(GrammarError, match="after 1 tokens nothing"):
        constraint.refuse()


def test_long_texts_forget_what_they_passed():
    constraint = Constraint(
        CompiledGrammar("root ::= " + "|".join(f'"{c}" root "{c}"' for c in "abc") + ' | "."', vocabulary())
    )
    dice = np.random.default_rng(0)
    sent = dice.integers(0, 3, 5200)
    for number in sent:
        constraint.accept(1 + ord("abc"[number]))
    constraint.accept(1 + ord("."))
    for number in sent[:0:-1]:
        constraint.accept(1 + ord("abc"[number]))
    assert constraint.allowed().tolist() == [1 + ord("abc"[sent[0]])]
    assert len(constraint._automaton) < 10_100


REPEATED = {
    "string": schema_to_gbnf({"type": "string", "maxLength": 2500}),
    "short strings": schema_to_gbnf({"type": "array", "items": {"type": "string", "maxLength": 9}, "maxItems": 40}),
    "least and most": schema_to_gbnf({"type": "string", "minLength": 30, "maxLength": 45}),
    "digits": 'root ::= [0-9]{20} ([a-c] | "bc"){3,60} "a"{0,20} "b"',
    "nested": 'root ::= (("a"{1,30} "b"){1,30} | "a"{25}){2,20} "c"',
    "empty copies": 'root ::= ("a"?){40} ("b" | "c"*){30} "a"',
    "empty words": 'root ::= "b" (("a" "b")? | "c"?){25} (("a" "a" "b")? "1"?){20}',
    "two readings": 'root ::= ("a"{0,40} | "a"{0,25} "b" | ("a" "a"){0,30} "c"){1,20}',
    "tokens": 'root ::= <[5]>{20} ("a" | <[6]>){0,30}',
    "impossible copies": 'root ::= ("a" | [\\U0001F600]{20} "b"){12} "c"',
}


@pytest.mark.parametrize("name", REPEATED)
def test_states_that_look_alike_allow_the_same(name):
    """Inside a long repetition one list of tokens does for all places; it has to be that of each."""
    known = vocabulary(b"aa", b"aaa", b"ab", b"bc", b"123", b'","', b'", "')
    dice = random.Random(name)  # noqa: S311
    for _ in range(4):
        constraint = Constraint(CompiledGrammar(REPEATED[name], known))
        for _ in range(120):
            allowed = constraint.allowed()
            assert np.array_equal(allowed, constraint._find())
            choices = [token for token in allowed.tolist() if token != END]
            if not choices:
                break
            wanted = [token for token in choices if known.token_bytes[token][:1] in {b"a", b"b", b"c", b"1"}]
            constraint.accept(dice.choice(wanted if wanted and dice.random() < 0.95 else choices))


@pytest.mark.parametrize("bound", [100, 5000, 100_000])
def test_a_bound_costs_no_more_than_none(bound):
    """Each place in a counted text was a state of its own, for which the whole vocabulary was walked."""
    known = vocabulary(b"aa")
    constraint = Constraint(CompiledGrammar(schema_to_gbnf({"type": "string", "maxLength": bound}), known))
    constraint.accept(known.token_bytes.index(b'"'))
    for _ in range(90):
        constraint.allowed()
        constraint.accept(known.token_bytes.index(b"a"))
    assert len(constraint._allowed) < 10
