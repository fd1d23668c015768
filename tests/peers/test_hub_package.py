"""References to the hub with the real huggingface_hub package, against a server of the routes that it asks for.

The package reads its settings from the environment when it is imported, so each case runs in a process of its own.
"""

import json
import os
import subprocess
import sys

import httpx
import pytest
from helpers import hub_repositories
from helpers.hub_repositories import TOKEN, Repository, hub_server
from helpers.peft_folders import arrays_of, write_folder
from helpers.served import API, served

SAY = """
import json, sys
from llamafu.adapters import AdapterReader, read_base
from llamafu.errors import HubError
from llamafu.hub.local import local_adapter, local_model, local_projector

found = []
for kind, path in json.loads(sys.argv[1]):
    try:
        found.append([str({"model": local_model, "adapter": local_adapter, "projector": local_projector}[kind](path)), None])
    except HubError as error:
        found.append([str(error), error.code.name])
print(json.dumps(found))
"""
COMPLETE = """
import sys
from llamafu import Llamafu
with Llamafu.from_pretrained("tiny/model-GGUF:f32", n_ctx=64, n_threads=1) as llm:
    adapter, folder = llm.load_lora_adapter("hf:tiny/pirate:F32"), llm.load_lora_adapter("hf:tiny/peft-pirate")
    print(llm.path.name, adapter.name, folder.name, llm.complete("Once", lora={adapter: 1.0}, max_tokens=2).lora[0].scale)
"""


@pytest.fixture(scope="module")
def server(tiny_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("peft") / "pirate"
    write_folder(folder, arrays_of())
    model, a, b = ((tiny_dir / f"{name}.gguf").read_bytes() for name in ("tiny", "a", "b"))
    parts = {f"big/m-Q8_0-0000{n}-of-00002.gguf": bytes([n]) * 9 for n in (1, 2)}
    repositories = {
        "tiny/model-GGUF": Repository({"tiny-F32.gguf": model, **parts, "mmproj-f16.gguf": b"m", "README.md": b"#"}),
        "tiny/pirate": Repository({"pirate-F32.gguf": a, "b.gguf": b}, others={"feature/x": {"old.gguf": a}}),
        "tiny/peft-pirate": Repository(
            {path.name: path.read_bytes() for path in folder.iterdir()} | {"optimizer.pt": b"0" * 99}
        ),
        "tiny/private": Repository({"a.gguf": a}, needs="token"),
        "tiny/gated": Repository({"a.gguf": a}, needs="access"),
    }
    with hub_server(repositories) as running:
        yield running


@pytest.fixture
def child(server, tmp_path, monkeypatch):
    """Run a program that has the server as its hub, and an empty cache; return its output."""
    server.status = 0
    server.asked.clear()
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")

    def run(program, *arguments, **settings):
        command = [sys.executable, "-c", program, *arguments]
        environment = {**os.environ, **settings}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def places(child, *asked, **settings):
    return json.loads(child(SAY, json.dumps(asked), **settings))


def test_only_what_is_needed_is_fetched_and_found_again_offline(child, server, tmp_path):
    asked = [
        ("model", "hf:tiny/model-GGUF:F32"),
        ("model", "hf:tiny/model-GGUF:q8_0"),
        ("projector", "hf:tiny/model-GGUF"),
        ("adapter", "hf:tiny/pirate/b.gguf"),
        ("adapter", "hf:tiny/pirate@feature%2Fx"),
        ("adapter", "hf:tiny/peft-pirate"),
    ]
    found = places(child, *asked)
    ends = ["tiny-F32.gguf", "m-Q8_0-00001-of-00002.gguf", "mmproj-f16.gguf", "b.gguf", "old.gguf"]
    assert [place.rpartition("/")[2] for place, _ in found[:-1]] == ends
    assert all(code is None and place.startswith(str(tmp_path / "hf" / "hub" / "models--tiny--")) for place, code in found)
    fetched = {line.rpartition("/")[2] for line in server.asked if line.startswith("GET") and "/resolve/" in line}
    assert fetched == {*ends, "m-Q8_0-00002-of-00002.gguf", "adapter_config.json", "adapter_model.safetensors"}
    server.asked.clear()
    assert places(child, *asked, HF_HUB_OFFLINE="1") == found
    assert server.asked == []
    server.status = 503
    assert places(child, *asked) == found
    assert places(child, *asked, HF_ENDPOINT="http://127.0.0.1:9") == found


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "http://127.0.0.1:9 cannot be reached"),
    ],
)
def test_nothing_cached_and_no_network(child, settings, told):
    ((said, code),) = places(child, ("adapter", "hf:tiny/pirate/b.gguf"), **settings)
    assert (said, code) == (f"hf:tiny/pirate/b.gguf is not in the hub's cache, and cannot be fetched: {told}", "HUB_FAILED")


def test_each_refusal_has_its_words(child, server):
    asked = ["hf:tiny/nothing", "hf:tiny/private", "hf:tiny/gated", "hf:tiny/pirate@v9", "hf:tiny/pirate:Q4_K_M"]
    none, private, gated, revision, quantisation = places(child, *(("adapter", path) for path in asked))
    for said, code in (none, private):
        assert "the hub has no such model, or it is private and the token (HF_TOKEN, `hf auth login`) does not open it" in said
        assert code == "FILE_NOT_FOUND"
    assert f"it is gated: ask for access at {server.endpoint}/tiny/gated" in gated[0]
    assert revision == ["hf:tiny/pirate@v9: tiny/pirate has no branch, tag or commit 'v9'", "FILE_NOT_FOUND"]
    assert "no adapter has the quantisation Q4_K_M (there are: F32, b.gguf)" in quantisation[0]
    opened = places(child, ("adapter", "hf:tiny/private"), ("adapter", "hf:tiny/gated"), HF_TOKEN=TOKEN)
    assert [code for _, code in opened] == [None, None]
    assert not any(TOKEN in said for said, _ in (*opened, private, gated))


def test_a_model_with_its_adapters(child, real):
    assert child(COMPLETE, LLAMAFU_LIB=str(real.path)) == "tiny-F32.gguf pirate-F32 peft-pirate 1.0\n"


def test_the_server_is_started_with_both(child, real):
    flags = ("--lora", "x=hf:tiny/pirate:F32=0.5", "--hub-adapter", "y=hf:tiny/peft-pirate", "--library", real.path)
    with served("hf:tiny/model-GGUF:F32", *flags) as running:
        assert running.url, running.log
        with httpx.Client(base_url=running.url, headers={"X-Api-Key": API}) as client:
            assert {model["id"] for model in client.get("/v1/models").json()["data"]} == {"tiny-F32", "x", "y"}
            assert [(one["id"], one["scaling"]) for one in client.get("/v1/lora").json()["data"]] == [("x", 0.5)]
            answer = client.post("/v1/completions", json={"model": "y", "prompt": "Once", "max_tokens": 2})
            assert [one["name"] for one in answer.json()["lora"]] == ["y"]
            assert client.post("/v1/completions", json={"model": "hf:tiny/pirate", "prompt": "Once"}).status_code == 400


def test_the_fake_package_has_the_real_ones_names():
    import inspect

    import huggingface_hub
    from huggingface_hub import constants, errors

    assert constants.HF_HUB_ETAG_TIMEOUT > 0
    for kind in hub_repositories.ERRORS:
        assert issubclass(getattr(errors, kind.__name__), Exception)
    assert issubclass(errors.GatedRepoError, errors.RepositoryNotFoundError)
    for name in ("model_info", "hf_hub_download", "snapshot_download"):
        fake = inspect.signature(getattr(hub_repositories.HubPackage, name)).parameters
        assert set(fake) - {"repo", "name"} <= set(inspect.signature(getattr(huggingface_hub.HfApi, name)).parameters)
