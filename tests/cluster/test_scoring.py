"""The order in which a request tries replicas."""

import pytest

from llamafu.ray.scoring import ReplicaView, RouteKey, homes, overload, ranked

A = RouteKey({"a": 8}, (b"1", b"2", b"3"))


def view(name, load=0, **facts):
    return ReplicaView(name, capacity=16, bank_units=32, load=load, **facts)


def order(key, *views, demand=0):
    return [one.name for one in ranked(key, views, demand)]


def keyed(*prefixes):
    return dict.fromkeys(prefixes)


def strangers(count, key=A):
    """Names of replicas that are no home of the key's adapter, beside its two homes, as two lists."""
    names = [f"r{number}" for number in range(count)]
    home = homes(key.main_adapter, [view(name) for name in names], 0)
    return [name for name in names if name not in home], [name for name in names if name in home]


def test_longest_prefix_first():
    """A prefix counts from its beginning only, and beats a resident adapter."""
    longest = view("longest", prefixes=keyed(b"1", b"2"))
    broken = view("broken", prefixes=keyed(b"2", b"3"), resident={"a": 8})
    shorter = view("shorter", prefixes=keyed(b"1"), resident={"a": 8})
    assert order(A, broken, shorter, longest) == ["longest", "shorter", "broken"]


def test_share_of_the_mix_resident():
    mix = RouteKey({"a": 8, "b": 16})
    views = [
        view("none"),
        view("a", resident={"a": 8}),
        view("b", resident={"b": 16}),
        view("both", resident={"b": 16, "a": 8}),
    ]
    assert order(mix, *views)[:3] == ["both", "b", "a"]


def test_home_before_stranger():
    away, home = strangers(6)
    assert set(order(A, *map(view, sorted(away + home)))[:2]) == set(home)


def test_free_units_before_eviction():
    """Of two that are equal otherwise, the one that need not evict."""
    away, _ = strangers(6)
    full, free = view(away[0], resident={"x": 28}), view(away[1], resident={"x": 20})
    others = [view(name, load=30) for name in strangers(6)[1]]
    assert order(A, full, free, *others)[:2] == [free.name, full.name]


def test_queue_last():
    """Load decides between equals, as a share of what a replica runs at a time."""
    assert order(RouteKey(), view("busy", 3), view("idle", 1), view("middle", 2)) == ["idle", "middle", "busy"]
    wide = ReplicaView("wide", capacity=64, bank_units=32, load=4)
    assert order(RouteKey(), view("narrow", 3), wide) == ["wide", "narrow"]


def test_overloaded_after_all_others():
    """Neither a prefix nor a resident adapter draws more to a replica that has much more to do than the others."""
    drawing = view("drawing", load=9, prefixes=keyed(b"1", b"2", b"3"), resident={"a": 8})
    others = [view(f"r{number}", load=4) for number in range(3)]
    assert overload([drawing, *others])[0] == pytest.approx(1.25 * 21 / 4 + 1)
    assert order(A, drawing, *others)[-1] == "drawing"
    drawing.load = 6
    assert order(A, drawing, *others)[0] == "drawing"


def test_who_had_much_more_of_late_comes_after_the_others():
    """Popular adapters never make a replica busy where requests are short, and would still give it twice the work."""
    drawing = view("drawing", recent=80, resident={"a": 8})
    others = [view(f"r{number}", recent=64) for number in range(3)]
    assert overload([drawing, *others])[1] == pytest.approx(1.05 * 272 / 4 + 1)
    assert order(A, drawing, *others)[-1] == "drawing"
    drawing.recent = 68
    assert order(A, drawing, *others)[0] == "drawing"


def test_what_can_never_be_held_comes_last():
    """Adapters beside pinned ones that fill the bank: the engine there would refuse them."""
    pinned = view("pinned", resident={"p": 26}, pinned=frozenset({"p"}), prefixes=keyed(b"1"))
    assert order(A, pinned, view("other", load=2)) == ["other", "pinned"]
    assert order(RouteKey({"p": 26}), view("other"), pinned)[0] == "pinned"


def test_homes_are_few_and_grow_with_demand():
    views = [view(f"r{number}") for number in range(8)]
    sizes = [len(homes("a", views, demand)) for demand in (0, 7, 8, 16, 1000)]
    assert sizes == [2, 2, 3, 4, 8]
    assert homes("a", views, 0) < homes("a", views, 8) < homes("a", views, 16)


def test_only_the_adapters_of_a_lost_replica_move():
    views = [view(f"r{number}") for number in range(8)]
    before = {f"a{number}": homes(f"a{number}", views, 0) for number in range(500)}
    after = {digest: homes(digest, views[1:], 0) for digest in before}
    for digest, home in before.items():
        assert home - {"r0"} <= after[digest]
    counts = [sum(name in home for home in before.values()) for name in (one.name for one in views)]
    assert min(counts) > 500 * 2 / 8 * 0.7


def test_no_replica():
    assert ranked(A, []) == []
