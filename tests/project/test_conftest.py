"""What is collected: the slow tiers only where they are named, in each of several processes too."""

from types import SimpleNamespace

import conftest
import pytest


@pytest.mark.parametrize("tier", ["matrix", "peers", "soak"])
@pytest.mark.parametrize(
    ("arguments", "ignored"),
    [
        (["tests"], True),
        (["tests/{}"], None),
        (["tests/{}/test_some.py::test_name"], None),
        (["tests/test_real_model.py"], True),
    ],
)
def test_a_slow_tier_is_collected_where_it_is_named(tier, arguments, ignored, monkeypatch):
    monkeypatch.setattr("sys.argv", ["-c"])  # as it is in a process that pytest-xdist started
    config = SimpleNamespace(args=[argument.format(tier) for argument in arguments])
    assert conftest.pytest_ignore_collect(conftest.TESTS / tier, config) is ignored
    assert conftest.pytest_ignore_collect(conftest.TESTS / "data" / tier, config) is None


def test_the_fixtures_are_written_before_there_are_several_processes(monkeypatch):
    written = []
    monkeypatch.setattr(conftest, "_fixtures", lambda: written.append("all"))
    conftest.pytest_xdist_setupnodes(None, [])
    assert written == ["all"]
