"""A slice of `make fuzz`: every kind of wild request to a live server, with a plain stream beside them."""

import pytest
from bombarding import Beside, bombard
from served import served
from wild_requests import KINDS, wild_requests


@pytest.fixture(scope="module")
def server(real, tiny_model):
    with served(tiny_model, "--library", real.path, "--n-ctx", 4096, "--max-queue", 64) as running:
        assert running.url, running.log
        yield running


def test_no_request_ends_the_server(server):
    with Beside(server.url) as beside:
        counts, wrong, _ = bombard(server.url, wild_requests(7, 12 * len(KINDS)))
    assert server.process.poll() is None, server.log[-30:]
    assert not wrong, "\n".join(wrong)
    assert not beside.failures
    assert set(counts) == set(KINDS)
