"""A cluster on Ray, in an environment of its own: two replicas of the tiny model, then three, from start to end in one program.

`clients/ray_cluster.py` does what its clients do, and tells what they saw. To see Ray's own log, set LLAMAFU_RAY_LOG.
"""

import json
import os
import shutil
import socket
import subprocess

import httpx
import pytest
from helpers.package_environment import CLIENTS, our_package, python_with, requirements_of

MINUTES = 15
"""Ray starts a process for each part, and each of them imports everything: minutes on a busy machine of two CPUs."""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def cluster_python(real, tmp_path_factory):
    """The Python of the environment, and the variables of its programs."""
    python = python_with(*requirements_of("ray", "server", "fast", "client", "chat"), "openai>=2")
    ours = our_package(tmp_path_factory.mktemp("package"), real)
    return python, {**os.environ, **ours, "OMP_WAIT_POLICY": "passive"}


@pytest.fixture(scope="module")
def told(cluster_python, tiny_model, tiny_adapter_a, tiny_adapter_b, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    shutil.copy(tiny_adapter_a, folder / "a.gguf")
    shutil.copy(tiny_adapter_b, folder / "b.gguf")
    python, environment = cluster_python
    command = [str(python), str(CLIENTS / "ray_cluster.py"), str(tiny_model), str(folder), str(free_port())]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment, timeout=60 * MINUTES, check=False)
    assert done.returncode == 0, done.stderr[-20_000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_five_operations(told):
    """Listed, active, loaded, unloaded and as a scope; a load or an unload is seen by every request after it."""
    seen = told["operations"]
    assert seen["listed"] == ["a", "b"]
    assert seen["first"] == {"a": 0.5}
    assert (seen["success"], seen["failure"]) == (["b"], ["nobody"])
    assert seen["actives"] == [{"b": 0.25}] * 8
    assert seen["after"] == [0] * 8
    assert seen["within"] == ["a"]


def test_openai_package(told):
    seen = told["openai"]
    assert seen["models"] == ["tiny", "a", "b"]
    assert seen["whole"] == seen["streamed"] != ""
    assert "no such model: 'nobody'" in seen["refused"]
    assert seen["embedded"] == 64


def test_answers_are_those_of_one_engine(told):
    assert told["equality"] == {"answers": 24, "different": 0}


def test_every_kind_of_route(told):
    seen = dict(told["statuses"])
    assert seen.pop("new") == [200] * 6
    assert seen.pop("gone") == [404] * 6
    assert seen.pop("large") == [200, True, 200]
    refused = {"/nowhere": 404, "no key": 401, "api key": 403, "too large": 413, "damaged": 400, "/v1/completions": 400}
    assert {name: seen.pop(name) for name in refused} == refused
    assert set(seen.values()) == {200}


def test_full_queues(told):
    """Two replicas run 8 requests each and let 12 wait each: of 60, these are answered and the rest refused."""
    assert set(told["full"]) == {"done", "429"}
    assert told["full"]["done"] >= 2 * (8 + 12)
    assert told["full"]["429"] >= 10
    assert told["retry_after"]
    assert min(told["retry_after"]) >= 1


def test_a_client_that_leaves_ends_its_request(told):
    assert told["cancellation"] == {"ran": 1, "ended": True, "cancelled": 1}


def test_loads_under_traffic(told):
    """Every request that follows a load runs with it, whichever replica answers."""
    seen = told["loads"]
    assert seen["wrong"] == 0
    assert seen["checked"] == 36
    assert set(seen["statuses"]) <= {200, 429}
    assert seen["traffic"] > 20


def test_a_replica_dies(told):
    """Its streams end with an error, the others go on; what had sent nothing is answered, and right."""
    seen = told["death"]
    assert seen["running"] == 16
    assert set(seen["ends"]) == {"done", "error"}
    assert sum(seen["ends"].values()) == 16
    assert seen["whole"] == [200] * 8
    assert seen["same"]
    assert seen["active"]
    assert seen["loaded"] == 200
    assert seen["back"], "no replica took its place"
    assert seen["seen"] == [0.75]


def test_the_holder_of_the_state_dies(told):
    seen = told["holder"]
    assert set(seen["while_gone"]) == {0.75}
    assert seen["seen"] == [0.125]
    assert seen["kept"] == {"a": 0.125}


def test_a_third_replica(told):
    assert told["third"] == {"there": True, "seen": [0.125]}


def test_the_application_of_the_environment(told):
    assert told["app"] == "Application"


def test_serve_on_ray(cluster_python, real, tiny_model, tiny_adapter_a, tmp_path):
    """`llamafu serve --ray`: two replicas until SIGTERM, and no process of it stays."""
    (tmp_path / "adapters").mkdir()
    shutil.copy(tiny_adapter_a, tmp_path / "adapters" / "a.gguf")
    python, environment = cluster_python
    flags = ["--adapters", tmp_path / "adapters", "--lora", "a=0.5", "--ray", "--replicas", "2", "--n-ctx", "1024"]
    command = [python, "-m", "llamafu", "serve", "-m", tiny_model, *flags, "--port", free_port(), "--api-key", "the-api-key"]
    with subprocess.Popen(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", env=environment
    ) as process:
        try:
            line = process.stdout.readline()
            assert "listening on http://127.0.0.1:" in line, process.stderr.read()[-5000:]
            assert line.strip().endswith(", 2 replicas")
            answer = httpx.get(f"{line.split()[2].rstrip(',')}/v1/lora", headers={"X-Api-Key": "the-api-key"}, timeout=60)
            assert [(card["id"], card["scaling"]) for card in answer.json()["data"]] == [("a", 0.5)]
            process.terminate()
            assert process.wait(120) == 0
        finally:
            process.kill()
