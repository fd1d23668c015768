"""What a router knows between two reports."""

from llamafu.ray.replica_table import MOST_PREFIXES, ReplicaTable
from llamafu.ray.scoring import RouteKey

A, B, C = (RouteKey({name: 8}, (name.encode(),)) for name in "abc")


def report(number, running=0, waiting=0, resident=(), pinned=(), prefixes=()):
    return {
        "number": number,
        "capacity": 16,
        "bank_units": 16,
        "running": running,
        "waiting": waiting,
        "resident": list(resident),
        "pinned": list(pinned),
        "prefixes": list(prefixes),
    }


def table_of(*names):
    table = ReplicaTable()
    table.keep(names)
    for name in names:
        table.report(name, report(0))
    return table


def test_what_was_sent_draws_what_is_alike():
    """Before any report says so, a replica that got an adapter is where the adapter is."""
    for name in ("r0", "r1", "r2", "r3"):
        table = table_of("r0", "r1", "r2", "r3")
        table.sent(name, A)
        assert table.ranked(A)[0] == name
        assert table.ranked(RouteKey(A.ranks))[0] == name


def test_full_banks_forget_the_least_recently_used():
    table = table_of("r0")
    for key in (A, B, A, C):
        table.sent("r0", key)
    [record] = table._records.values()
    assert list(record.view.resident) == ["a", "c"]
    assert record.view.free_units == 0


def test_pinned_adapters_stay():
    table = table_of("r0")
    table.report("r0", report(1, resident=[("a", 8), ("b", 8)], pinned=["a"]))
    table.sent("r0", C)
    [record] = table._records.values()
    assert list(record.view.resident) == ["a", "c"]


def test_a_report_replaces_what_was_thought():
    """What was sent shows in the second report after it at the latest; what that lacks is gone."""
    table = table_of("r0")
    table.sent("r0", A)
    [record] = table._records.values()
    table.report("r0", report(1))
    assert "a" in record.view.resident
    table.report("r0", report(1))  # the same again is no news
    assert "a" in record.view.resident
    table.report("r0", report(2, resident=[("b", 8)]))
    assert list(record.view.resident) == ["b"]


def test_load_is_ours_and_that_of_others():
    table = table_of("r0", "r1")
    for _ in range(3):
        table.sent("r0", RouteKey())
    table.report("r0", report(1, running=4, waiting=1))
    views = {name: record.view for name, record in table._records.items()}
    assert views["r0"].load == 5
    table.ended("r0", RouteKey())
    assert views["r0"].load == 4
    assert table.ranked(RouteKey()) == ["r1", "r0"]
    for _ in range(9):
        table.ended("r0", RouteKey())  # more ends than requests: never below none
    assert views["r0"].load == 2


def test_demand_makes_more_homes():
    names = [f"r{number}" for number in range(8)]
    table = table_of(*names)
    for _ in range(40):
        table.sent(table.ranked(A)[0], A)
    used = [record.own for record in table._records.values() if record.own]
    assert len(used) >= 5
    assert max(used) <= 1.25 * 40 / 8 + 2


def test_work_of_late_is_even():
    """One adapter's requests, each ended before the next: nothing waits, and still no replica does it all."""
    names = [f"r{number}" for number in range(4)]
    table = table_of(*names)
    counts = dict.fromkeys(names, 0)
    for _ in range(800):
        [name, *_] = table.ranked(A)
        counts[name] += 1
        table.sent(name, A)
        table.ended(name, A)
    assert max(counts.values()) < 1.3 * 800 / 4
    table.keep([*names, "new"])
    assert table._records["new"].view.recent > 0  # it is not flooded to catch up


def test_lost_replicas_are_forgotten():
    table = table_of("r0", "r1")
    table.sent("r0", A)
    table.keep(["r1", "r2"])
    table.report("r0", report(5, resident=[("a", 8)]))
    table.ended("r0", A)
    assert sorted(table.ranked(A)) == ["r1", "r2"]


def test_prefixes_are_bounded():
    table = table_of("r0")
    table.sent("r0", RouteKey({}, tuple(str(number).encode() for number in range(MOST_PREFIXES + 5))))
    [record] = table._records.values()
    assert len(record.view.prefixes) == MOST_PREFIXES
    assert b"4" not in record.view.prefixes
    assert b"5" in record.view.prefixes
