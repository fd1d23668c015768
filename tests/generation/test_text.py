"""TextAssembler against the plain definition: decode everything, cut at the earliest stop."""

from __future__ import annotations

import codecs
import time
import timeit
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llamafu.generation.stop_strings import TextAssembler

PROFILE = settings(max_examples=400, deadline=None, derandomize=True)


def run(stops: list[str], pieces: list[bytes]) -> tuple[list[str], TextAssembler]:
    assembler = TextAssembler(stops)
    shown = [assembler.push(piece) for piece in pieces]
    return [*shown, assembler.finish()], assembler


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    borders = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(borders)]


def cut_at_earliest(text: str, stops: list[str]) -> str:
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]


def held_back(text: str, stops: list[str]) -> int:
    """Length of the longest end of `text` that is a proper beginning of a stop string."""
    return max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)


# Few different characters, so that stops overlap, nest and repeat; bytes that break UTF-8 in every known way.
CHARS = st.sampled_from(["a", "a", "b", "b", "é", "😀", "�"])
STOPS = st.lists(st.text("ab", min_size=1, max_size=5) | st.text(CHARS, min_size=1, max_size=4), max_size=4)
BYTES = st.lists(
    CHARS.map(str.encode)
    | st.sampled_from([b"\x80", b"\xc3", b"\xe8\xaa", b"\xf0\x9f\x98", b"\xed\xa0\x80", b"\xc0\xaf", b"\xff"]),
    max_size=14,
).map(b"".join)
CUTS = st.lists(st.integers(0, 40), max_size=12)


@PROFILE
@given(BYTES, STOPS, CUTS)
@example(b"abcd", ["abcd", "bc"], [3])
@example(b"abcx", ["abcd", "bc"], [3])
@example(b"ababaz", ["ababax", "ba"], [3, 5])
@example(b"aabaabaaab", ["aabaaab"], [2, 5, 7])
def test_any_split_equals_decoding_the_whole(data: bytes, stops: list[str], cuts: list[int]) -> None:
    shown, assembler = run(stops, split(data, cuts))
    text = data.decode("utf-8", "replace")
    assert "".join(shown) == cut_at_earliest(text, stops) == assembler.text
    assert assembler.stopped == any(stop in text for stop in stops)


@PROFILE
@given(st.binary(max_size=24), CUTS)
def test_arbitrary_bytes_without_stops(data: bytes, cuts: list[int]) -> None:
    shown, _ = run([], split(data, cuts))
    assert "".join(shown) == data.decode("utf-8", "replace")


@PROFILE
@given(BYTES, STOPS)
def test_no_more_is_held_back_than_must_be(data: bytes, stops: list[str]) -> None:
    assembler = TextAssembler(stops)
    for end in range(1, len(data) + 1):
        assembler.push(data[end - 1 : end])
        decoded = codecs.utf_8_decode(data[:end], "replace", False)[0]
        found = min((decoded.find(stop) for stop in stops if stop in decoded), default=len(decoded))
        safe = min(found, len(decoded) - held_back(decoded, stops))
        if not assembler.stopped:
            assert assembler.text == decoded[:safe]
        else:
            assert assembler.text == decoded[:found]
            return


def test_stop_is_reported_as_soon_as_it_is_certain() -> None:
    assembler = TextAssembler(["\n\nUser:"])
    assert [assembler.push(piece) for piece in (b"Hi", b"\n", b"\nUs", b"er", b": more", b"!")] == ["Hi", "", "", "", "", ""]
    assert assembler.stopped
    assert assembler.finish() == ""
    assert assembler.text == "Hi"


def test_shorter_stop_waits_only_while_an_earlier_longer_one_is_possible() -> None:
    assembler = TextAssembler(["abcd", "bc"])
    assert assembler.push(b"xabc") == "x"
    assert not assembler.stopped
    assert assembler.push(b"e") == "a"
    assert assembler.stopped


def test_partial_stop_is_released_when_it_fails_or_at_the_end() -> None:
    assembler = TextAssembler(["STOP"])
    assert [assembler.push(piece) for piece in (b"go ST", b"AY ", b"STO")] == ["go ", "STAY ", ""]
    assert assembler.finish() == "STO"
    assert not assembler.stopped
    assert assembler.finish() == ""


def test_character_is_shown_whole_and_a_broken_tail_once() -> None:
    emoji = "😀".encode()
    assembler = TextAssembler([])
    assert [assembler.push(emoji[i : i + 1]) for i in range(4)] == ["", "", "", "😀"]
    assert assembler.push(b"ok" + emoji[:3]) == "ok"
    assert assembler.finish() == "�"


def test_wrong_use_is_named() -> None:
    with pytest.raises(ValueError, match=r"^stop: empty string in \['x', ''\]"):
        TextAssembler(["x", ""])
    assembler = TextAssembler([])
    assembler.finish()
    with pytest.raises(ValueError, match="push after finish"):
        assembler.push(b"x")


@pytest.mark.parametrize("stops", [[], ["\nUser:", "<|end|>"], ["a" * 500 + "b"]], ids=["none", "usual", "repetitive"])
def test_push_is_cheap(stops: list[str]) -> None:
    assembler = TextAssembler(stops)
    seconds = min(timeit.repeat(lambda: assembler.push(b"aaaa"), timer=time.process_time, number=2000, repeat=7)) / 2000
    assert seconds < 10e-6, f"{seconds * 1e6:.1f} us a push; about 0.4 us without stops is usual"
