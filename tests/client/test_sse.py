"""The event reader: the HTML standard's rules, and the same events however the bytes are cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafu.client.sse import Event, EventReader


def read(content, cuts=()):
    reader, found, start = EventReader(), [], 0
    for cut in [*sorted(cuts), len(content)]:
        found += reader.feed(content[start:cut])
        start = cut
    return found + reader.finish()


@pytest.mark.parametrize(
    ("content", "datas"),
    [
        (b"data: a\n\ndata: b\n\n", ["a", "b"]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", ["a", "b"]),
        (b"data: a\r\rdata: b\r\r", ["a", "b"]),
        (b"data:a\n\n", ["a"]),
        (b"data:  a\n\n", [" a"]),
        (b"data: a\ndata: b\n\n", ["a\nb"]),
        (b"data: a\r\ndata: b\r\n\r\n", ["a\nb"]),
        (b": ping\n\n:\n\ndata: a\n\n: ping\n\n", ["a"]),
        (b"data: a\n: ping\ndata: b\n\n", ["a\nb"]),
        (b"event: x\n\ndata\n\ndata:\n\n", []),
        (b"id: 3\nretry: 10\nunknown: 4\ndata: a\n\n", ["a"]),
        (b"\xef\xbb\xbfdata: a\n\n", ["a"]),
        (b"data: [DONE]", ["[DONE]"]),
        (b"data: [DONE]\n", ["[DONE]"]),
        ("data: é漢🦙\n\n".encode(), ["é漢🦙"]),
        (b"data: \xff\n\n", ["\N{REPLACEMENT CHARACTER}"]),
        (b"data: a: b\n\n", ["a: b"]),
        (b"data: a\xe2\x80\xa8b\n\n", ["a\N{LINE SEPARATOR}b"]),
        (b"", []),
    ],
)
def test_shapes(content, datas):
    assert [event.data for event in read(content)] == datas
    assert [event.data for event in read(content, range(len(content)))] == datas


def test_types():
    assert read(b"event: error\ndata: a\n\ndata: b\n\n") == [Event("a", "error"), Event("b")]


PIECES = st.sampled_from(
    [
        b"data: ",
        b"data:",
        b"data",
        b"event: e",
        b": ping",
        b"\n",
        b"\r\n",
        b"\r",
        b"\n\n",
        b"x",
        "é🦙".encode(),
        b"\xef\xbb\xbf",
        b":",
    ]
)


@given(st.lists(PIECES, max_size=30).map(b"".join).flatmap(lambda c: st.tuples(st.just(c), st.sets(st.integers(0, len(c))))))
def test_any_cut_gives_the_same_events(case):
    content, cuts = case
    assert read(content, cuts) == read(content)


@given(st.lists(st.text(min_size=1).filter(lambda text: "\r" not in text), max_size=6), st.sampled_from(["\n", "\r\n", "\r"]))
def test_what_a_server_writes_is_what_is_read(texts, line_end):
    written = "".join("".join(f"data: {line}{line_end}" for line in text.split("\n")) + line_end for text in texts).encode(
        "utf-8", "surrogatepass"
    )
    expected = [text.encode("utf-8", "surrogatepass").decode("utf-8", "replace") for text in texts]
    assert [event.data for event in read(written)] == expected


def test_a_long_event_in_small_pieces_is_kept_as_it_comes():
    """Not searched from its start at every piece, which would take minutes here."""
    reader = EventReader()
    for piece in [b"data: ", *[b"x"] * 200_000]:
        assert not reader.feed(piece)
    assert [len(event.data) for event in reader.feed(b"\n\n")] == [200_000]
