"""The base model by several names, and what is told of it."""

import httpx
import pytest
from helpers import one_server
from helpers.serving import ADMIN, FakeEngine, serving


@pytest.fixture
def folder_of_two(tmp_path):
    one_server.fill(tmp_path)
    return tmp_path


def test_aliases_and_facts_of_the_model(folder_of_two):
    with (
        serving(FakeEngine(), alias=("gpt-4o", "mine"), adapters=folder_of_two) as address,
        httpx.Client(base_url=address, headers={"X-Admin-Key": ADMIN}) as client,
    ):
        cards = {card["id"]: card for card in client.get("/v1/models").json()["data"]}
        assert list(cards) == ["smol", "gpt-4o", "mine", "pirate", "shout"]
        assert client.get("/models").json() == client.get("/v1/model/list").json() == client.get("/v1/models").json()
        assert client.get("/v1/model").json() == cards["smol"]
        for name in ("smol", "gpt-4o", "mine"):
            assert cards[name]["max_model_len"] == 1000
            assert cards[name]["meta"] == {"n_vocab": 300, "n_ctx_train": 2000, "n_embd": 2, "n_params": 600, "size": 1200}
            assert client.get(f"/models/{name}").json() == cards[name]
            told = client.post("/completions", json={"prompt": "a", "model": name}).json()
            assert (told["model"], told["choices"][0]["text"]) == (name, "a")
            assert client.post("/embeddings", json={"input": "a", "model": name}).json()["model"] == name
        assert (cards["pirate"]["parent"], cards["pirate"]["max_model_len"]) == ("smol", 1000)
        assert "meta" not in cards["pirate"]
        told = client.post("/v1/completions", json={"prompt": "a", "model": "gpt-4"})
        assert told.status_code == 404
        assert "it may be 'smol' or 'gpt-4o' or 'mine', or an adapter or a mix" in told.json()["detail"]
