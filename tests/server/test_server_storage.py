"""A server's folder while it runs: what appears in it, is sent to it and goes; and what is told of it and of requests."""

import json
import shutil
import time

import httpx
import pytest
from helpers import one_server
from helpers.served import wait_for
from helpers.serving import ADMIN, API, FakeEngine, serving

from llamafu.errors import InvalidAdapterFileError, LoraIncompatibleError
from llamafu.examples.adapters import example_adapters
from llamafu.server.storage.last_use import last_use, note_use

HI = [{"role": "user", "content": "ahoy there"}]
# Fixtures.
shared = one_server.shared
url = one_server.url
engine = one_server.engine
folder = one_server.folder
user = one_server.user
raw = one_server.raw


# -- the folder ---------------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path):
    """A server of its own, with its engine and folder."""
    one_server.fill(tmp_path)
    engine = FakeEngine()
    with (
        serving(engine, adapters=tmp_path, alias=("gpt",)) as address,
        httpx.Client(base_url=address, headers={"X-Admin-Key": ADMIN}) as client,
    ):
        yield client, engine, tmp_path


def test_new_adapters_appear_and_deleted_ones_go(own):
    raw, engine, folder = own
    shutil.copy(folder / "pirate.gguf", folder / "new.gguf")
    (folder / "broken.gguf").write_bytes(b"bad")
    assert wait_for(lambda: "new" in engine.adapters)
    assert "broken" not in engine.adapters
    engine.set_lora_adapters({"new": 1.0})
    refused = raw.delete("/v1/lora/new")
    assert (refused.status_code, refused.json()["detail"]) == (409, "the adapter 'new' is active; unload it first")
    engine.set_lora_adapters({})
    assert raw.delete("/v1/lora/new").json() == {"id": "new", "object": "lora", "deleted": True}
    assert not (folder / "new.gguf").exists()
    assert "new" not in engine.adapters
    (folder / "shout.gguf").unlink()
    assert wait_for(lambda: "shout" not in engine.adapters)


def test_what_is_no_adapter_is_not_deleted(own, tiny_model):
    """A base model that lies in the folder, and a name that a file and a folder share."""
    raw, _, folder = own
    shutil.copy(tiny_model, folder / "base.gguf")
    (folder / "pirate").mkdir()
    (folder / "pirate" / "adapter_config.json").write_text("{}", encoding="utf-8")
    for name, words in (("base", "no adapter but a base model"), ("pirate", "pirate.gguf and pirate/")):
        refused = raw.delete(f"/v1/lora/{name}")
        assert refused.status_code == 409
        assert words in refused.json()["detail"]
    assert {"base.gguf", "pirate.gguf", "pirate"} <= {path.name for path in folder.iterdir()}


def test_adapters_active_from_the_start(folder):
    engine = FakeEngine()
    with serving(engine, adapters=folder, lora=(("pirate", 0.5),)):
        assert engine.active_lora_adapters == {"pirate": 0.5}


PIRATE = example_adapters()["pirate"].read_bytes()


def test_upload(raw, engine, folder):
    answer = raw.post("/v1/lora/upload", files={"file": ("mine.gguf", PIRATE)})
    assert (answer.status_code, answer.json()["id"]) == (200, "mine")
    assert (folder / "mine.gguf").read_bytes() == PIRATE
    assert engine.adapters["mine"] == folder / "mine.gguf"
    assert raw.post("/v1/lora/upload", files={"file": ("x", PIRATE)}, data={"name": "other"}).json()["id"] == "other"


@pytest.mark.parametrize(
    ("form", "problem"),
    [
        ({"files": {"file": ("pirate.gguf", PIRATE)}}, "already"),
        ({"files": {"file": ("../x.gguf", PIRATE)}, "data": {"name": "../x"}}, "no adapter's name"),
        ({"files": {"file": ("x.gguf", PIRATE[:-1])}}, "x.gguf: "),
        ({"files": {"file": ("x.gguf", b"bad")}}, "x.gguf: "),
        ({"files": {"thing": ("x.gguf", PIRATE)}}, "'thing'"),
        ({"files": {"file": ("x.gguf", PIRATE)}, "data": {"more": "x"}}, "'more'"),
        ({"files": [("file", ("x.gguf", PIRATE)), ("file", ("y.gguf", PIRATE))]}, "form cannot be read"),
        ({"json": {}}, "multipart/form-data"),
        ({"content": b"--x", "headers": {"Content-Type": "multipart/form-data"}}, "form cannot be read"),
        ({"content": b"junk", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}, ""),
    ],
)
def test_uploads_that_are_refused_leave_nothing(raw, folder, engine, form, problem):
    before = sorted(folder.iterdir())
    answer = raw.post("/v1/lora/upload", **form)
    assert answer.status_code == 400
    assert problem in answer.json()["detail"]
    assert str(folder) not in answer.json()["detail"]
    assert sorted(folder.iterdir()) == before
    assert set(engine.adapters) == {"pirate", "shout"}


@pytest.mark.parametrize(("name", "status"), [("smol", 409), ("gpt", 409), ("pirate", 400)])
def test_an_adapter_that_model_could_not_name_is_not_taken(own, name, status):
    """The base model's name, an alias of it, and an adapter's; no word of these refusals is a field of the request."""
    raw, engine, folder = own
    told = raw.post("/v1/lora/upload", files={"file": (f"{name}.gguf", PIRATE)})
    assert (told.status_code, told.json()["error"]["param"]) == (status, None)
    assert not (folder / "smol.gguf").exists()
    shutil.copy(folder / "pirate.gguf", folder / "smol.gguf")
    told = raw.post("/v1/load_lora_adapter", json={"lora_name": "smol", "lora_path": "smol"})
    assert (told.status_code, told.json()["detail"]) == (
        409,
        "the name 'smol' is the base model's, and `model` would not mean the adapter; give another name",
    )
    assert wait_for(lambda: "smol" in engine.adapters)  # a file that is there can be used by `lora`


def test_where_the_folder_is_is_not_told(raw, engine, folder, monkeypatch):
    """An adapter that was damaged after it was registered: a request says which, not where it lies."""

    def refuse(request, loop=None):
        message = f"{folder / 'pirate.gguf'}: truncated"
        raise InvalidAdapterFileError(message)

    monkeypatch.setattr(engine, "open_stream", refuse)
    told = raw.post("/v1/completions", json={"prompt": "a", "model": "pirate"})
    assert (told.status_code, told.json()["detail"]) == (400, "pirate.gguf: truncated")
    assert str(folder) not in told.text


def test_an_upload_that_the_engine_refuses_leaves_nothing(raw, folder, engine, monkeypatch):
    def refuse(path, *, name=None):
        message = "does not fit"
        raise LoraIncompatibleError(message)

    monkeypatch.setattr(engine, "add_adapter", refuse)
    assert raw.post("/v1/lora/upload", files={"file": ("x.gguf", PIRATE)}).status_code == 400
    assert not (folder / "x.gguf").exists()


def test_an_upload_that_is_too_large(folder):
    engine = FakeEngine()
    with serving(engine, adapters=folder, max_upload=1000) as address, httpx.Client(base_url=address) as client:
        files = {"file": ("x.gguf", b"x" * 100_000)}
        assert client.post("/v1/lora/upload", files=files, headers={"X-Admin-Key": ADMIN}).status_code == 413


# -- what is told about it ----------------------------------------------------------------------------------------


def test_metrics(own):
    raw, _, _ = own
    for body in ({"lora": {"pirate": 0.5}}, {"lora": {"pirate": 0.5}, "stream": True}, {}):
        raw.post("/v1/completions", json={"prompt": "a b", **body})
    raw.get("/v1/nothing/at/all")
    lines = raw.get("/metrics").text.splitlines()
    for line in (
        'llamafu_http_requests_total{route="/v1/completions",status="200"} 3',
        'llamafu_http_requests_total{route="none",status="404"} 1',
        'llamafu_answers_total{adapter="pirate"} 2',
        'llamafu_answers_total{adapter=""} 1',
        'llamafu_completion_tokens_total{adapter="pirate"} 6',
        "# TYPE llamafu_engine_running gauge",
        'llamafu_engine_batch_sizes{key="2"} 5',
        'llamafu_engine_ttft{quantile="p50"} 0.5',
    ):
        assert line in lines, line


def test_sizes_and_last_uses(own):
    raw, _, folder = own
    before = {card["id"]: card for card in raw.get("/v1/loras").json()["data"]}
    assert before["pirate"]["size"] == (folder / "pirate.gguf").stat().st_size
    assert before["pirate"]["last_used"] is None
    began = time.time()
    raw.post("/v1/completions", json={"prompt": "a", "lora": {"pirate": 0.5}})
    after = {card["id"]: card for card in raw.get("/v1/loras").json()["data"]}
    assert began <= after["pirate"]["last_used"] <= time.time()
    assert after["shout"]["last_used"] is None
    assert wait_for(lambda: last_use(folder / "pirate.gguf") == pytest.approx(after["pirate"]["last_used"]))
    lines = raw.get("/metrics").text.splitlines()
    assert f'llamafu_adapter_bytes{{adapter="shout"}} {before["shout"]["size"]}' in lines
    assert [line.split("{")[0] for line in lines if "last_used" in line and "#" not in line] == [
        "llamafu_adapter_last_used_timestamp_seconds"
    ]
    assert set(raw.get("/v1/loras", headers={"X-Admin-Key": API}).json()) == {"object", "data"}
    assert raw.delete("/v1/lora/pirate").status_code == 200
    assert last_use(folder / "pirate.gguf") is None


def test_last_uses_outlive_the_server(tmp_path):
    one_server.fill(tmp_path)
    engine, names = FakeEngine(), {"X-Admin-Key": ADMIN}
    with serving(engine, adapters=tmp_path) as address:
        note_use(tmp_path / "pirate.gguf", 1_700_000_000.0)  # an earlier run's
        cards = httpx.get(f"{address}/v1/loras", headers=names).json()["data"]
        assert [card["last_used"] for card in cards] == [1_700_000_000.0, None]
        httpx.post(f"{address}/v1/completions", json={"prompt": "a", "model": "shout"}, headers=names)
        assert wait_for(lambda: last_use(tmp_path / "shout.gguf"))


def test_the_access_log_has_no_prompt_and_no_key(raw, user, caplog):
    with caplog.at_level("INFO"):
        user.completions.create("my secret")
        raw.get("/v1/models?api_key=leaked")
        user._connection.http.get(f"{raw.base_url}/v1/nothing")
        assert wait_for(lambda: len([r for r in caplog.records if r.name == "llamafu.access"]) == 3)
    records = [json.loads(record.message) for record in caplog.records if record.name == "llamafu.access"]
    assert [(one["method"], one["path"], one["status"]) for one in records] == [
        ("POST", "/v1/completions", 200),
        ("GET", "/v1/models", 200),
        ("GET", "/v1/nothing", 404),
    ]
    logged = "".join(record.getMessage() for record in caplog.records if record.name.startswith("llamafu"))
    assert not [word for word in ("secret", "leaked", ADMIN, API) if word in logged]


def test_headers_and_origins(url):
    engine = FakeEngine()
    asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    with httpx.Client() as client:
        answer = client.get(f"{url}/health", headers=asked)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in answer.headers
        assert client.options(f"{url}/v1/completions", headers=asked).status_code == 405
        with serving(engine, allow_origin=("https://a.example",)) as address:
            allowed = client.options(f"{address}/v1/completions", headers=asked).headers
            assert allowed["access-control-allow-origin"] == "https://a.example"
            asked["Origin"] = "https://b.example"
            assert "access-control-allow-origin" not in client.get(f"{address}/health", headers=asked).headers
