"""What of a body says where it should run."""

import json

import pytest

from llamafu.ray.route_key import route_key
from llamafu.ray.scoring import RouteKey
from llamafu.ray.state_hub import Directory

DIRECTORY = Directory(1, {"a": ("da", 8), "b": ("db", 16)}, {"both": {"a": 0.5, "b": 1.0}}, {"b": 0.5})
LONG = "word " * 200


def key(**body):
    return route_key(json.dumps(body).encode(), DIRECTORY)


@pytest.mark.parametrize(
    ("body", "ranks"),
    [
        ({}, {"db": 16}),
        ({"model": "base"}, {"db": 16}),
        ({"model": "a"}, {"da": 8}),
        ({"model": "both"}, {"da": 8, "db": 16}),
        ({"lora": {}}, {}),
        ({"lora": []}, {}),
        ({"lora": {"a": 1}, "model": "b"}, {"da": 8}),
        ({"lora": [{"name": "a", "scale": 0.5}, {"name": "b"}]}, {"da": 8, "db": 16}),
        ({"lora": {"a": 0, "b": 1}}, {"db": 16}),
        ({"lora": {"nobody": 1}}, {}),
        ({"lora": [{"id": 0}]}, {}),
        ({"lora": ["a"]}, {}),
        ({"lora": {"a": "much"}}, {}),
    ],
)
def test_adapters(body, ranks):
    assert key(**body).ranks == ranks


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'"x"', b"[" * 100_000, b" " * 300_000, b"\xff"])
def test_no_body_is_refused_here(content):
    assert route_key(content, DIRECTORY) == RouteKey()


def test_prefixes_are_of_the_text_under_its_adapters():
    first = key(prompt=LONG + "one", lora={"a": 1.0})
    assert len(first.prefixes) == len(LONG + "one") // 256
    assert key(prompt=LONG + "two", lora={"a": 1.0}).prefixes == first.prefixes
    assert not set(key(prompt=LONG, lora={"a": 0.5}).prefixes) & set(first.prefixes)
    assert not set(key(prompt=LONG, lora={}).prefixes) & set(first.prefixes)
    assert not set(key(prompt="x" + LONG, lora={"a": 1.0}).prefixes) & set(first.prefixes)
    assert key(prompt=LONG, lora={"both": 1.0}).prefixes == key(prompt=LONG, lora={"b": 1.0, "a": 0.5}).prefixes


def test_the_next_turn_begins_with_this_one():
    turns = [{"role": "user", "content": LONG}, {"role": "assistant", "content": LONG}, {"role": "user", "content": LONG}]
    now, later = key(messages=turns[:1]).prefixes, key(messages=turns).prefixes
    assert len(later) > 2 * len(now)
    assert later[: len(now)] == now
    with_tools = key(messages=turns[:1], tools=[{"type": "function"}]).prefixes
    assert with_tools[0] != now[0]
