"""The garbage collector off for a block, of several threads at once."""

import gc
from contextlib import ExitStack

import pytest

from llamafu._util.collector import collector_off


@pytest.fixture(autouse=True)
def _on():
    assert gc.isenabled()
    yield
    gc.enable()


def test_overlapping_blocks_leave_it_on():
    first, second = ExitStack(), ExitStack()
    first.enter_context(collector_off())
    second.enter_context(collector_off())  # sees it off, which is not what it was before
    first.close()
    assert not gc.isenabled()
    second.close()
    assert gc.isenabled()


def test_off_before_is_off_after():
    gc.disable()
    with collector_off(), collector_off():
        assert not gc.isenabled()
    assert not gc.isenabled()


def test_an_error_switches_it_on_again():
    with pytest.raises(ValueError, match="invalid literal"), collector_off():
        int("x")
    assert gc.isenabled()
