"""A server takes models and adapters from the hub at its start, and fetches nothing for its clients."""

import contextlib
from functools import partial
from unittest import mock

import httpx
import pytest
from helpers.hub_repositories import Repository, hub_package
from helpers.serving import ADMIN, FakeEngine, serving

from llamafu.cli.main import main
from llamafu.engine import Engine
from llamafu.server.settings import load

KEY = {"X-Admin-Key": ADMIN}
REFUSED = "this server fetches nothing from the Hugging Face hub for its clients: start it with --lora NAME=hf:OWNER/REPO"


@pytest.mark.parametrize(
    ("given", "lora", "fetched"),
    [
        (["x=hf:o/r"], (("x", 1.0),), (("x", "hf:o/r"),)),
        (["x=hf:o/r:F16=0.5"], (("x", 0.5),), (("x", "hf:o/r:F16"),)),
        (["x=hf:o/r@v1/a.gguf=0", "y=0.5"], (("x", 0.0), ("y", 0.5)), (("x", "hf:o/r@v1/a.gguf"),)),
    ],
)
def test_adapters_of_the_hub_among_the_active(given, lora, fetched):
    settings = load({"model": "m", "lora": given, "adapters": "folder"}, {})
    assert (settings.lora, settings.hub_adapter) == (lora, fetched)


def test_places_of_settings(tmp_path):
    config = tmp_path / "serve.toml"
    config.write_text('lora = {x = "hf:o/r=0.5"}', encoding="utf-8")
    for settings in (load({"model": "m"}, {}, config), load({"model": "m"}, {"LLAMAFU_SERVE_LORA": "x=hf:o/r=0.5"})):
        assert (settings.lora, settings.hub_adapter) == ((("x", 0.5),), (("x", "hf:o/r"),))
    settings = load({"model": "m", "lora": ["x=0.5"], "hub_adapter": ["x=hf:o/r", "y=hf:o/s"], "mix": ["z=x:1,y:0.5"]}, {})
    assert settings.hub_adapter == (("x", "hf:o/r"), ("y", "hf:o/s"))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"lora": ["hf:o/r"]}, "hub_adapter: '=hf:o/r' is not NAME=hf:OWNER/REPO"),
        ({"lora": ["x=hf:o"]}, "'hf:o' is no reference to the Hugging Face hub"),
        ({"lora": ["x=hf:o/r=2"]}, "the scale 2 of 'x' is not within 0 to 1"),
        ({"lora": ["x=hf:o/r=y"]}, "is no"),
        ({"hub_adapter": ["x=a.gguf"]}, "'x=a.gguf' is not NAME=hf:OWNER/REPO"),
        ({"hub_adapter": ["a/b=hf:o/r"]}, "with a name of letters"),
        ({"hub_adapter": ["x=hf:o/r", "x=hf:o/s"]}, "hub_adapter names 'x' more than once"),
        ({"hub_adapter": ["m=hf:o/r"]}, "hub_adapter: the name 'm' is the base model's"),
        ({"hub_adapter": ["x=hf:o/r"], "lora": ["y"]}, "lora was given without adapters"),
        ({"hub_adapter": ["x=hf:o/r"], "ray": "yes"}, "hub_adapter is not for ray"),
    ],
)
def test_settings_that_are_refused(given, told):
    with pytest.raises(ValueError, match=told):
        load({"model": "m", **given}, {})


@pytest.fixture(scope="module")
def client():
    with serving(FakeEngine()) as url, httpx.Client(base_url=url, headers=KEY) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/completions", {"prompt": "x", "lora": {"hf:o/r": 1}}, "lora"),
        ("/v1/completions", {"prompt": "x", "lora": [{"name": "hf:o/r", "scale": 1}]}, "lora[0].name"),
        ("/v1/completions", {"prompt": "x", "model": "hf:o/r"}, "model"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "model": "hf:o/r"}, "model"),
        ("/v1/lora/load", {"loras": [{"name": "hf:o/r"}]}, "loras[0].name"),
        ("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "hf:o/r/x.gguf"}, "lora_path"),
        ("/v1/load_lora_adapter", {"lora_name": "hf:o/r", "lora_path": "hf:o/r"}, "lora_name"),
        ("/lora-adapters", [{"name": "hf:o/r", "scale": 1}], "lora[0].name"),
        ("/v1/mixes", {"name": "z", "lora": {"hf:o/r": 1}}, "lora"),
        ("/v1/mixes", {"name": "hf:o/r", "lora": {"pirate": 1}}, "name"),
    ],
)
def test_clients_cannot_make_it_fetch(client, tmp_path, path, body, field):
    with hub_package({"o/r": Repository({"x.gguf": b""})}, tmp_path) as hub:
        answer = client.post(path, json=body)
    assert answer.status_code == 400, answer.text
    told = answer.json()["detail"]
    assert told.startswith(field)
    assert REFUSED in told
    assert hub.fetched == []


def test_the_command(tiny_dir, real, tmp_path, capsys):
    """Both are fetched before the engine opens; the names are served and active as if they were the folder's."""
    files = {name: (tiny_dir / f"{name}.gguf").read_bytes() for name in ("tiny", "a")}
    repositories = {"t/m": Repository({"tiny-F32.gguf": files["tiny"]}), "t/a": Repository({"a.gguf": files["a"]})}
    flags = ["-m", "hf:t/m", "--lora", "x=hf:t/a=0.5", "--no-auth", "--n-ctx", "64", "--threads", "1", "--max-sequences", "1"]
    seen = {}

    def serve(engine, settings, guard, tell):
        del guard, tell
        seen.update(adapters=set(engine.adapters), active=dict(engine.active_lora_adapters), model=settings.model)
        return True

    with contextlib.ExitStack() as stack:
        stack.enter_context(hub_package(repositories, tmp_path))
        stack.enter_context(mock.patch("llamafu.server.run.serve", serve))
        stack.enter_context(mock.patch("llamafu.engine.Engine", partial(Engine, kernel="none")))  # nothing is to be compiled
        stack.enter_context(mock.patch("llamafu.cli.serve._log_requests"))
        stack.enter_context(mock.patch("llamafu.libraries.openmp.shorten_openmp_spin"))
        assert main(["serve", *flags, "--library", str(real.path)]) == 0
        capsys.readouterr()
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "x.gguf").write_bytes(files["a"])
        assert main(["serve", *flags, "--adapters", str(tmp_path / "folder")]) == 1
        assert "--hub-adapter names 'x', which is an adapter in the folder" in capsys.readouterr().err
    assert seen == {"adapters": {"x"}, "active": {"x": 0.5}, "model": seen["model"]}
    assert seen["model"].endswith("tiny-F32.gguf")
