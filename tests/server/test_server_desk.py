"""The mixing desk as files, and the facts that it shows; in a browser it is tested in `peers/test_desk.py`."""

import re
import shutil
from pathlib import Path

import httpx
import numpy as np
import pytest
from helpers.served import ADMIN, API, served
from helpers.serving import FakeEngine, serving

from llamafu import server
from llamafu.adapters import inspect_adapter, read_adapter
from llamafu.examples.adapters import example_adapters
from llamafu.server.routes import adapter_info

PAGE = Path(server.__file__).parent / "page"


class Ranged(FakeEngine):
    scale_range = (-1.0, 2.0)


@pytest.fixture(scope="module")
def desk():
    with serving(Ranged()) as address, httpx.Client(base_url=address) as client:
        yield client


def test_the_page_knows_the_scales(desk):
    page = desk.get("/")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert '<html lang="en" data-low="-1.0" data-high="2.0">' in page.text


def test_every_part_is_served_and_nothing_is_from_elsewhere(desk):
    page = desk.get("/")
    parts = {path.name for path in PAGE.iterdir()} - {"desk.html"}
    wanted = set(re.findall(r'(?:href|src)="/desk/([^"]+)"', page.text))
    kinds = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    for name in parts:
        answer = desk.get(f"/desk/{name}")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(kinds[name.rpartition(".")[2]])
        assert answer.headers["x-content-type-options"] == "nosniff"
        wanted |= set(re.findall(r'from "\./([^"]+)"', answer.text))
        assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", answer.text), name
        assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", answer.text), name
    assert wanted == parts
    assert "://" not in page.text
    assert not re.findall(r"<script>|<style>|\son\w+=|\sstyle=", page.text)  # the policy would refuse them


def test_the_policy_lets_nothing_in(desk):
    policy = dict(rule.split(" ", 1) for rule in desk.get("/").headers["content-security-policy"].split("; "))
    for rule in ("default-src", "base-uri", "form-action", "frame-ancestors", "trusted-types"):
        assert policy[rule] == "'none'"
    for rule in ("script-src", "style-src", "img-src", "connect-src"):
        assert policy[rule] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_adapter_a):
    folder = tmp_path_factory.mktemp("adapters")
    shutil.copy(tiny_adapter_a, folder / "a.gguf")
    return folder


@pytest.fixture(scope="module")
def client(real, tiny_model, folder):
    with served(tiny_model, "--adapters", folder, "--library", real.path, "--n-ctx", 512) as running:
        assert running.url, running.log
        with httpx.Client(base_url=running.url, headers={"X-Admin-Key": ADMIN}) as client:
            yield client


def test_facts_of_an_adapter(client, folder):
    path = folder / "a.gguf"
    info, file = inspect_adapter(path), read_adapter(path)
    facts = client.get("/v1/lora/a/info").json()
    assert (facts["id"], facts["object"], facts["scaling"], facts["last_used"]) == ("a", "lora.info", None, None)
    assert (facts["rank"], facts["alpha"], facts["bytes"]) == (info.rank, info.alpha, path.stat().st_size)
    assert (facts["digest"], facts["dtype"], facts["parameters"]) == (info.digest, info.tensors[0].dtype, info.parameter_count)
    assert (facts["targets"], facts["layers"]) == (list(info.target_modules), list(info.layers))
    norms = facts["norms"]
    assert np.shape(norms["frobenius"]) == np.shape(norms["spectral"]) == (len(norms["layers"]), len(norms["modules"]))
    tensor = next(tensor for tensor in info.tensors if tensor.layer == norms["layers"][-1])
    pair = file.pairs[tensor.name]
    change = tensor.strength * file.matrix(pair.b).astype(float) @ file.matrix(pair.a).astype(float)
    cell = norms["layers"].index(tensor.layer), norms["modules"].index(tensor.module)
    assert norms["frobenius"][cell[0]][cell[1]] == pytest.approx(np.linalg.norm(change), rel=1e-5)
    assert norms["spectral"][cell[0]][cell[1]] == pytest.approx(np.linalg.norm(change, 2), rel=1e-5)


def test_facts_follow_use_and_the_active_set(client):
    client.post("/v1/completions", json={"model": "a", "prompt": "Once", "max_tokens": 1})
    client.post("/v1/lora/load", json={"loras": [{"name": "a", "scaling": 0.5}]})
    facts = client.get("/v1/lora/a/info").json()
    assert facts["scaling"] == 0.5
    assert facts["last_used"] > 1e9
    client.post("/v1/lora/unload")


def test_an_api_key_is_told_of_active_adapters_and_of_no_uses(client):
    """As in the lists."""
    api = {"X-Admin-Key": "", "X-Api-Key": API}
    refused = client.get("/v1/lora/a/info", headers=api)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "permission_error")
    assert refused.json()["message"].startswith(
        "the adapter 'a' is not active; an api key may look at active ones, an admin key at all"
    )
    client.post("/v1/lora/load", json={"loras": [{"name": "a", "scaling": 0.5}]})
    facts = client.get("/v1/lora/a/info").json()
    assert facts.pop("last_used", None) is not None
    assert client.get("/v1/lora/a/info", headers=api).json() == facts
    client.post("/v1/lora/unload")


def test_facts_are_computed_once_for_a_content(tmp_path, monkeypatch):
    """In process, so that the computations can be counted."""

    class Informed(FakeEngine):
        def add_adapter(self, path, *, name=None):
            self.adapters[name] = inspect_adapter(path)

        def adapter_path(self, name):
            return tmp_path / f"{name}.gguf"

    computed = []
    monkeypatch.setattr(adapter_info, "facts_of", lambda file: computed.append(file.digest) or {"digest": file.digest})
    monkeypatch.setattr(adapter_info.AdapterInfoRoute, "_read", lambda self, name: read_adapter(tmp_path / f"{name}.gguf"))
    for name in ("one", "same"):
        shutil.copy(example_adapters()["pirate"], tmp_path / f"{name}.gguf")
    engine = Informed()
    with (
        serving(engine, adapters=tmp_path) as address,
        httpx.Client(base_url=address, headers={"X-Admin-Key": ADMIN}) as client,
    ):
        for name in ("one", "one", "same"):
            assert client.get(f"/v1/lora/{name}/info").json()["digest"] == computed[0]
        assert len(computed) == 1
        engine.adapters["ghost"] = inspect_adapter(example_adapters()["shout"])  # its file went a moment ago
        answer = client.get("/v1/lora/ghost/info")
        assert (answer.status_code, answer.json()["detail"]) == (404, "the adapter 'ghost' was deleted a moment ago")
