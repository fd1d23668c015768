"""One server over an engine of a few lines, for the tests of a file: its address, engine, folder, and clients of it."""

import shutil

import httpx
import pytest

from helpers.served import wait_for
from helpers.serving import ADMIN, API, FakeEngine, serving
from llamafu.client import TabbyClient
from llamafu.examples.adapters import example_adapters


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One server for most tests, with its engine and folder; starting one for each would take longer than the tests."""
    folder, engine = tmp_path_factory.mktemp("adapters"), FakeEngine()
    fill(folder)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            patch.delenv(name, raising=False)
        with serving(engine, adapters=folder) as address:
            yield address, engine, folder


def fill(folder):
    for name in ("pirate", "shout"):
        shutil.copy(example_adapters()[name], folder / f"{name}.gguf")


@pytest.fixture
def url(shared):
    return shared[0]


@pytest.fixture
def engine(shared):
    shared[1].reset()
    return shared[1]


@pytest.fixture
def folder(shared):
    """The shared folder; what a test adds goes away after it."""
    _, engine, folder = shared
    yield folder
    for path in folder.iterdir():
        if path.stem not in {"pirate", "shout"}:
            path.unlink()
    assert wait_for(lambda: set(engine.adapters) == {"pirate", "shout"})


@pytest.fixture
def admin(url, engine):
    with TabbyClient(url, admin_key=ADMIN) as client:
        yield client


@pytest.fixture
def user(url, engine):
    with TabbyClient(url, api_key=API, retries=0) as client:
        yield client


@pytest.fixture
def raw(url, engine):
    with httpx.Client(base_url=url, headers={"X-Admin-Key": ADMIN}) as client:
        yield client
