"""Results of checks in the cache folder: what was kept comes back, and nothing that happens there is an error."""

import os

import pytest

from llamafu._util import kept_results
from llamafu._util.kept_results import KeptResult, file_states


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("LLAMAFU_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_result_comes_back_for_the_same_facts_only():
    KeptResult.of("opened", ["one", "two"]).write({"runs": 3})
    assert KeptResult.of("opened", ["one", "two"]).read() == {"runs": 3}
    assert KeptResult.of("opened", ["two", "one"]).read() is None
    assert KeptResult.of("abi", ["one", "two"]).read() is None


@pytest.mark.parametrize("damaged", [b"", b"{", b"[]", b"\xff", b"7"])
def test_what_cannot_be_read_is_nothing(damaged):
    kept = KeptResult.of("opened", ["x"])
    kept.write({})
    kept.path.write_bytes(damaged)
    assert kept.read() is None


def test_a_folder_that_cannot_be_made_is_no_error(cache):
    cache.write_text("a file")
    kept = KeptResult.of("opened", ["x"])
    kept.write({"a": 1})
    assert kept.read() is None


def test_the_older_half_goes(monkeypatch):
    monkeypatch.setattr(kept_results, "_MOST", 4)
    results = [KeptResult.of("opened", [str(number)]) for number in range(5)]
    for number, kept in enumerate(results):
        kept.write({"number": number})
        if kept.path.exists():
            os.utime(kept.path, (number, number))
    assert [kept.read() is not None for kept in results] == [False, False, False, True, True]


def test_a_files_state_changes_with_it(tmp_path):
    file = tmp_path / "a"
    assert file_states([file]) == []
    file.write_text("x")
    before = file_states([file])
    os.utime(file, (1, 1))
    assert file_states([file]) != before
