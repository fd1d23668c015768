"""Named mixes over HTTP: kept in the adapters folder, listed, chosen as `model` and in `lora`, refused and deleted."""

import json
import logging
from contextlib import contextmanager

import httpx
import pytest
from helpers import both_clients, one_server
from helpers.served import wait_for
from helpers.serving import ADMIN, API, FakeEngine, serving

from llamafu.client import LoraLoadRequest, Mix, ServerError, TabbyClient
from llamafu.lora.mix_files import MixFiles

CAPTAIN = {"pirate": 0.8, "shout": 0.3}
KEY = {"X-Admin-Key": ADMIN}
connect = both_clients.connect  # a fixture


@contextmanager
def running(folder, **options):
    engine = FakeEngine()
    with serving(engine, adapters=folder, **options) as url, httpx.Client(base_url=url, headers=KEY) as client:
        yield client, engine


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    one_server.fill(folder)
    with running(folder, alias=("gpt-4o",)) as (client, engine):
        yield client, engine, folder


@pytest.fixture
def client(shared):
    client, engine, folder = shared
    engine.reset()
    yield client
    for path in folder.glob("*.mix.json"):
        path.unlink()
    assert wait_for(lambda: not engine.mixes)


@pytest.fixture
def engine(shared, client):
    return shared[1]


@pytest.fixture
def folder(shared, client):
    return shared[2]


@pytest.fixture
def log(caplog):
    """What the server's log says."""
    with caplog.at_level(logging.WARNING, "llamafu.server"):
        yield lambda: [record.getMessage() for record in caplog.records if record.name == "llamafu.server"]


def put(path, content):
    """Write a file that appears whole."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_bytes(content)
    unfinished.replace(path)


def captain(client, **body):
    return client.post("/v1/mixes", json={"name": "captain", "lora": CAPTAIN, **body})


def acting(answer):
    return {used["name"]: used["scale"] for used in answer.json()["lora"]}


def test_a_mix_is_kept_listed_used_and_deleted(client, engine, folder):
    answer = captain(client, lora=[{"name": "pirate", "scale": 0.8}, {"id": 1, "scale": 0.3}])
    assert answer.status_code == 200
    card = answer.json()
    created = int((folder / "captain.mix.json").stat().st_mtime)
    assert card == {"id": "captain", "object": "mix", "created": created, "owned_by": "llamafu", "lora": CAPTAIN}
    assert json.loads((folder / "captain.mix.json").read_text("utf-8")) == {"lora": CAPTAIN}
    assert client.get("/v1/mixes", headers={"X-Api-Key": API}).json() == {"object": "list", "data": [card]}
    models = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
    assert list(models) == ["smol", "gpt-4o", "pirate", "shout", "captain"]
    assert (models["captain"]["parent"], models["captain"]["lora"], models["captain"]["created"]) == ("smol", CAPTAIN, created)
    assert client.get("/v1/models/captain").json() == models["captain"]
    assert [card["id"] for card in client.get("/v1/loras").json()["data"]] == ["pirate", "shout"]
    for body, wanted in (
        ({"model": "captain"}, CAPTAIN),
        ({"lora": {"captain": 0.5}}, {"pirate": 0.4, "shout": 0.15}),
        (
            {"lora": [{"name": "captain", "scale": 0.5}, {"id": 1, "scale": 0.1}], "model": "pirate"},
            {"pirate": 0.4, "shout": 0.25},
        ),
    ):
        told = client.post("/v1/completions", json={"prompt": "ahoy", **body})
        assert acting(told) == pytest.approx(wanted)
        assert told.json()["choices"][0]["text"] == "Arrr ahoy"
        assert client.post("/v1/embeddings", json={"input": "a", **body}).status_code == 200
    used = {card["id"]: card["last_used"] for card in client.get("/v1/loras").json()["data"]}
    assert all(used.values()), "the use of a mix is one of its adapters"
    deleted = client.delete("/v1/mixes/captain")
    assert deleted.json() == {"id": "captain", "object": "mix", "deleted": True}
    assert not (folder / "captain.mix.json").exists()
    assert client.post("/v1/completions", json={"prompt": "a", "model": "captain"}).status_code == 404
    again = client.delete("/v1/mixes/captain")
    assert (again.status_code, again.json()["detail"]) == (404, "no such mix: 'captain' (mixes: none)")
    assert set(engine.adapters) == {"pirate", "shout"}


def test_a_mix_is_loaded_for_everybody(client, engine):
    captain(client)
    told = client.post("/v1/lora/load", json={"loras": [{"name": "captain", "scaling": 0.5}, {"name": "gone"}]})
    assert told.json() == {"success": ["captain"], "failure": ["gone"]}
    assert engine.active_lora_adapters == {"pirate": 0.4, "shout": 0.15}
    client.delete("/v1/mixes/captain")
    assert engine.active_lora_adapters == {"pirate": 0.4, "shout": 0.15}


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"name": "../x"}, 400, "'../x' is no mix's name; use letters, digits"),
        ({"name": ".x"}, 400, "is no mix's name"),
        ({"name": "x" * 201}, 400, "of at most 200 bytes"),
        ({"name": ""}, 400, "name is ''; give a string that is not empty"),
        ({"name": 7}, 400, "name is 7"),
        ({"name": "pirate"}, 409, "the name 'pirate' is an adapter's; give the mix another one"),
        ({"name": "smol"}, 409, "the name 'smol' is the base model's"),
        ({"name": "gpt-4o"}, 409, "the name 'gpt-4o' is the base model's"),
        ({"lora": {"gone": 0.5}}, 404, "no such adapter: 'gone'"),
        ({"lora": [{"id": 9}]}, 404, "no such adapter: id 9 (lora[0])"),
        ({"lora": {}}, 400, "lora names no adapter; a mix is made of at least one"),
        ({"lora": []}, 400, "lora names no adapter"),
        ({"lora": {"pirate": 1.5}}, 400, "lora['pirate'] is 1.5; give a finite number from 0 to 1"),
        ({"lora": [{"name": "pirate"}, {"id": 0}]}, 400, "lora names 'pirate' twice"),
        ({"lora": "pirate"}, 400, "lora is a string; give a list of objects with name and scale, or an object"),
        ({"lora": None}, 400, "lora is missing"),
        ({"lora": dict.fromkeys(map(str, range(1001)), 1)}, 400, "lora names 1,001 adapters, of at most 1,000"),
        ({"overwrite": "yes"}, 400, "overwrite is 'yes'; give true or false"),
        ({"loras": {}}, 400, "'loras' is not a field; did you mean 'lora'?"),
    ],
)
def test_what_is_no_mix(client, engine, folder, body, status, says):
    answer = captain(client, **body)
    assert (answer.status_code, says in answer.json()["detail"]) == (status, True), answer.text
    assert engine.mixes == {}
    assert not list(folder.glob("*.mix.json"))


def test_a_mix_of_mixes_is_none(client):
    captain(client)
    answer = client.post("/v1/mixes", json={"name": "admiral", "lora": {"captain": 0.5}})
    assert (answer.status_code, answer.json()["detail"]) == (404, "no such adapter: 'captain'")


def test_an_api_key_changes_nothing(client):
    assert captain(client).status_code == 200
    user, body = {"X-Api-Key": API}, {"name": "x", "lora": CAPTAIN}
    assert httpx.post(f"{client.base_url}/v1/mixes", json=body, headers=user).status_code == 403
    assert httpx.delete(f"{client.base_url}/v1/mixes/captain", headers=user).status_code == 403
    assert httpx.get(f"{client.base_url}/v1/mixes").status_code == 401


def test_another_mix_of_the_name_needs_to_be_meant(client, engine):
    captain(client)
    assert captain(client).status_code == 200, "the same again"
    refused = captain(client, lora={"pirate": 1})
    assert refused.status_code == 409
    assert refused.json()["detail"] == "there is a mix 'captain' already; give another name, or overwrite: true"
    assert engine.mixes == {"captain": CAPTAIN}
    assert captain(client, lora={"pirate": 1}, overwrite=True).json()["lora"] == {"pirate": 1.0}
    assert engine.mixes == {"captain": {"pirate": 1.0}}


def test_an_adapter_of_a_mix_is_not_deleted(client, engine, folder):
    captain(client)
    refused = client.delete("/v1/lora/shout")
    assert refused.status_code == 409
    assert refused.json()["detail"] == (
        "the adapter 'shout' is part of the mix 'captain'; delete the mix first (DELETE /v1/mixes/NAME)"
    )
    assert (folder / "shout.gguf").exists()


def test_a_name_of_a_mix_is_no_adapters(client, engine, folder):
    captain(client)
    told = client.post("/v1/lora/upload", files={"file": ("captain.gguf", (folder / "pirate.gguf").read_bytes())})
    assert told.status_code == 400
    assert "the name 'captain' is taken by a mix" in told.json()["detail"]
    assert not (folder / "captain.gguf").exists()


def test_files_that_people_write(client, engine, folder, log):
    damaged = {
        "text": "no json",
        "list": "[1]",
        "empty": '{"lora": {}}',
        "more": '{"lora": {"pirate": 1}, "name": "x"}',
        "nan": '{"lora": {"pirate": NaN}}',
        "word": '{"lora": {"pirate": "1"}}',
        "twice": '{"lora": {"pirate": 1, "pirate": 0.5}}',
        "deep": "[" * 100_000,
        "large": " " * 1_000_001,
        "pirate": "{}",
        "smol": '{"lora": {"pirate": 1}}',
        "a?b": '{"lora": {"pirate": 1}}',
        "wild": '{"lora": {"pirate": 7}}',
        "latin": b'{"lora": {"pir\xe9te": 1}}',
    }
    for name, content in damaged.items():
        put(folder / f"{name}.mix.json", content if isinstance(content, bytes) else content.encode())
    (folder / "link.mix.json").symlink_to(folder.parent / "outside.json")
    (folder.parent / "outside.json").write_text('{"lora": {"pirate": 1}}', "utf-8")
    (folder / ".hidden.mix.json").write_text("no json", "utf-8")
    (folder / "good.mix.json").write_text('{"lora": {"pirate": 1, "shout": 0.5}}', "utf-8")
    names = {*damaged, "link"}
    assert wait_for(lambda: all(any(f"{name}.mix.json" in line or repr(name) in line for line in log()) for name in names)), (
        log()
    )
    assert engine.mixes == {"good": {"pirate": 1.0, "shout": 0.5}}
    assert len(log()) == len(names), "each is told of once"
    assert not any("hidden" in line for line in log())
    told = client.post("/v1/mixes", json={"name": "text", "lora": CAPTAIN})
    assert told.status_code == 409, "a file that is there is not replaced unasked"
    (folder / "text.mix.json").write_text('{"lora": {"shout": 0.25}}', "utf-8")
    assert wait_for(lambda: engine.mixes.get("text") == {"shout": 0.25})
    (folder / "good.mix.json").write_text('{"lora": {"shout": 1}}', "utf-8")
    assert wait_for(lambda: engine.mixes.get("good") == {"shout": 1.0})
    (folder / "good.mix.json").write_text("no mix any more", "utf-8")
    assert wait_for(lambda: "good" not in engine.mixes)
    assert client.delete("/v1/mixes/good").status_code == 200
    assert not (folder / "good.mix.json").exists()
    (folder / "text.mix.json").unlink()
    assert wait_for(lambda: not engine.mixes)
    (folder / ".hidden.mix.json").unlink()


def test_a_mix_waits_for_its_adapters(client, engine, folder, log):
    """An adapter that is gone from the folder takes the mix along, and brings it back."""
    captain(client)
    (folder / "shout.gguf").rename(folder / "shout.away")
    assert wait_for(lambda: not engine.mixes)
    for body in ({"model": "captain"}, {"lora": {"captain": 1}}):
        told = client.post("/v1/completions", json={"prompt": "a", **body})
        assert told.status_code == 404
        assert "the mix 'captain' cannot be used: no adapter 'shout'" in told.json()["detail"]
    assert client.delete("/v1/lora/pirate").status_code == 409
    assert wait_for(lambda: any("the mix 'captain' cannot be used: no adapter 'shout'" in line for line in log()))
    assert client.get("/v1/mixes").json()["data"] == []
    (folder / "shout.away").rename(folder / "shout.gguf")
    assert wait_for(lambda: engine.mixes == {"captain": CAPTAIN})
    assert acting(client.post("/v1/completions", json={"prompt": "a", "model": "captain"})) == CAPTAIN


def test_mixes_of_the_settings(tmp_path, log):
    one_server.fill(tmp_path)
    (tmp_path / "captain.mix.json").write_text('{"lora": {"pirate": 1}}', "utf-8")
    (tmp_path / "kept.mix.json").write_text('{"lora": {"shout": 1}}', "utf-8")
    with running(tmp_path, mix=(("captain", CAPTAIN),), lora=(("captain", 0.5),)) as (client, engine):
        assert engine.active_lora_adapters == {"pirate": 0.4, "shout": 0.15}
        assert engine.mixes == {"captain": CAPTAIN, "kept": {"shout": 1.0}}
        assert wait_for(lambda: log() == ["captain.mix.json is not taken: --mix gives another one of its name"]), log()
        for refused in (captain(client, overwrite=True), client.delete("/v1/mixes/captain")):
            assert refused.status_code == 409
            assert "the mix 'captain' is one of the server's settings (--mix)" in refused.json()["detail"]
        assert client.get("/v1/mixes").json()["data"][0]["created"] > 0
    assert json.loads((tmp_path / "captain.mix.json").read_text("utf-8")) == {"lora": {"pirate": 1}}


def test_without_a_folder(tmp_path):
    with running(None) as (client, engine):
        engine.add_adapter(tmp_path, name="pirate")
        told = captain(client, lora={"pirate": 1})
        assert (told.status_code, told.json()["detail"]) == (
            404,
            "this server has no folder of adapters to keep mixes in; start it with --adapters",
        )
        assert client.delete("/v1/mixes/captain").status_code == 404


def test_what_cannot_be_written_changes_nothing(client, engine, monkeypatch):
    def fail(*_):
        message = "the disk is full"
        raise OSError(message)

    captain(client)
    with monkeypatch.context() as patch:
        patch.setattr(MixFiles, "write", fail)
        assert captain(client, lora={"shout": 1}, overwrite=True).status_code == 500
        assert client.post("/v1/mixes", json={"name": "new", "lora": CAPTAIN}).status_code == 500
    assert engine.mixes == {"captain": CAPTAIN}


def test_the_clients(client, engine, connect):
    admin = connect(str(client.base_url), admin_key=ADMIN)
    mix = admin.mixes.add("captain", CAPTAIN)
    assert (mix.id, mix.lora, mix.created > 0) == ("captain", CAPTAIN, True)
    assert isinstance(mix, Mix)
    assert admin.mixes.list() == (mix,)
    assert admin.mixes.add("captain", {"shout": 1}, overwrite=True).lora == {"shout": 1.0}
    assert admin.chat.create([{"role": "user", "content": "a"}], model="captain").lora[0].name == "shout"
    admin.lora.load(LoraLoadRequest.of({"captain": 0.5}))
    assert engine.active_lora_adapters == {"shout": 0.5}
    admin.mixes.add("Mr. 100% & co", CAPTAIN)
    admin.mixes.remove("Mr. 100% & co")
    admin.mixes.remove("captain")
    assert admin.mixes.list() == ()


def test_a_client_says_what_it_cannot_read(client, engine, monkeypatch):
    with TabbyClient(str(client.base_url), api_key=API, retries=0) as user:
        monkeypatch.setattr(type(engine), "mixes", {"captain": {"pirate": float("nan")}})
        with pytest.raises(ServerError, match=r"data\[0\].lora.pirate is"):
            user.mixes.list()
