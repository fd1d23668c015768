"""`llamafu serve` beside upstream's llama-server: the same requests, and what is in the answers of both.

`LLAMAFU_LLAMA_SERVER` names the program, if it is not on the path.
"""

import json
import os
import shutil
import socket
import subprocess
import time

import httpx
import pytest
from helpers.served import ADMIN, served

PROGRAM = os.environ.get("LLAMAFU_LLAMA_SERVER") or shutil.which("llama-server")
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs llama-server, on the path or in LLAMAFU_LLAMA_SERVER")
HI = [{"role": "user", "content": "hello"}]
GREEDY = {"temperature": 0, "max_tokens": 4}
THEIRS_ALONE = {"timings", "system_fingerprint", "task_name", "prompt_prefix"}
"""Fields that only llama-server has; OpenAI's clients do without them."""


@pytest.fixture(scope="module")
def both(real, tiny_model, tiny_adapter_a, tiny_adapter_b, tmp_path_factory):
    """Clients of llama-server and of ours, over one model and the same adapters, numbered alike."""
    folder = tmp_path_factory.mktemp("adapters")
    shutil.copy(tiny_adapter_a, folder / "a.gguf")
    shutil.copy(tiny_adapter_b, folder / "b.gguf")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [PROGRAM, "-m", tiny_model, "--lora", tiny_adapter_a, "--lora", tiny_adapter_b, "--port", str(port)]
    command += ["--host", "127.0.0.1", "-t", "1", "-c", "2048", "-np", "1"]
    with (
        served(tiny_model, "--adapters", folder, "--library", real.path, "--n-ctx", 2048) as ours,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as their_client,
        httpx.Client(base_url=ours.url, headers={"Authorization": f"Bearer {ADMIN}"}, timeout=20) as our_client,
    ):
        try:
            wait_until_healthy(process, their_client)
            yield their_client, our_client
        finally:
            process.kill()


def wait_until_healthy(process, client):
    end = time.monotonic() + 30
    while time.monotonic() < end:
        assert process.poll() is None, "llama-server ended"
        try:
            if client.get("/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    pytest.fail("llama-server was not ready in 30 s")


def assert_has_all(theirs, ours, where=""):
    """Check that what llama-server answers is in our answer, by the same names and of the same kinds."""
    if isinstance(theirs, dict):
        assert isinstance(ours, dict), where
        for name in theirs.keys() - THEIRS_ALONE:
            assert name in ours, f"{where}.{name}"
            assert_has_all(theirs[name], ours[name], f"{where}.{name}")
    elif isinstance(theirs, list):
        assert isinstance(ours, list), where
        assert len(theirs) == len(ours), where
        for index, (one, other) in enumerate(zip(theirs, ours, strict=True)):
            assert_has_all(one, other, f"{where}[{index}]")
    elif isinstance(theirs, int | float) and not isinstance(theirs, bool):
        assert isinstance(ours, int | float), where
    else:
        assert type(theirs) is type(ours), where


def test_the_list_and_setting_it(both):
    for scales in ([{"id": 0, "scale": 0.5}], [{"id": 0, "scale": 0.25}, {"id": 1, "scale": 1.0}], []):
        theirs, ours = (client.post("/lora-adapters", json=scales) for client in both)
        assert (theirs.status_code, theirs.json()) == (ours.status_code, ours.json()) == (200, {"success": True})
        theirs, ours = (client.get("/lora-adapters").json() for client in both)
        assert_has_all(theirs, ours)
        assert [(row["id"], row["scale"]) for row in theirs] == [(row["id"], row["scale"]) for row in ours]
    theirs, ours = (client.post("/lora-adapters", json={"id": 0}) for client in both)
    assert theirs.status_code == ours.status_code == 400


@pytest.mark.parametrize("lora", [[], [{"id": 0, "scale": 0.5}], [{"id": 1, "scale": 1.0}, {"id": 0, "scale": 0.25}]])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "hello", **GREEDY}),
        ("/v1/chat/completions", {"messages": HI, **GREEDY}),
    ],
)
def test_answers_under_mixes(both, path, body, lora):
    """The tokens, too: one model, one mix, greedy."""
    for client in both:
        client.post("/lora-adapters", json=[])  # to llama-server an empty list in a request is none at all
    theirs, ours = (client.post(path, json={**body, "lora": lora}).json() for client in both)
    assert_has_all(theirs, ours)
    for key in ("finish_reason", "index", "text", "message"):
        assert theirs["choices"][0].get(key) == ours["choices"][0].get(key), key
    for key in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert theirs["usage"][key] == ours["usage"][key]


def test_streams(both):
    body = {"messages": HI, "stream": True, "lora": [{"id": 0, "scale": 0.5}], **GREEDY}
    theirs, ours = (client.post("/v1/chat/completions", json=body) for client in both)
    assert theirs.headers["content-type"].partition(";")[0] == ours.headers["content-type"].partition(";")[0]
    for response in (theirs, ours):
        assert response.text.endswith("data: [DONE]\n\n")
    first, last = ([response.text.split("\n\n")[place] for response in (theirs, ours)] for place in (0, -3))
    assert all('"role":"assistant"' in event for event in first)
    assert all('"finish_reason":"length"' in event for event in last)


SETTINGS_OF_THEIRS = (
    *("adaptive_decay", "adaptive_target", "backend_sampling", "chat_format", "dynatemp_exponent", "dynatemp_range"),
    *("generation_prompt", "grammar_lazy", "grammar_triggers", "post_sampling_probs", "preserved_tokens", "reasoning_format"),
    *("reasoning_in_content", "speculative.types", "timings_per_token", "thinking_forced_open"),
)
"""Of samplers and a chat parser that are not here."""


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "hello", "n_predict": 4},
        {"prompt": [5, "hello", 6], "n_predict": 4, "return_tokens": True, "lora": [{"id": 0, "scale": 0.5}]},
        {"prompt": ["hello", [7, 8]], "n_predict": 3, "n_probs": 2},
        {"prompt": "hello", "n_predict": 30, "stop": ["a", "e", "o"]},
        {"prompt": "hello", "n_predict": 4, "grammar": 'root ::= "ab"'},
    ],
)
def test_its_own_completions(both, body):
    for client in both:
        client.post("/lora-adapters", json=[])
    answers = [client.post("/completion", json={"temperature": 0, "repeat_penalty": 1.0, **body}).json() for client in both]
    theirs, ours = (answer if isinstance(answer, list) else [answer] for answer in answers)
    for one, other in zip(theirs, ours, strict=True):
        for name in SETTINGS_OF_THEIRS:
            one["generation_settings"].pop(name, None)
        for name in ("lora", "samplers", "grammar"):
            other["generation_settings"][name] = one["generation_settings"].get(name)
        # It reports parts of a character together, by the last one's number; here each token has an entry.
        last = [answer.pop("completion_probabilities", [{}])[-1] for answer in (one, other)]
        assert last[0].keys() == last[1].keys()
        assert last[0].get("id") == last[1].get("id")
        assert_has_all(one, other)
        names = ["content", "tokens", "prompt", "stop_type", "stopping_word", "truncated"]
        names += ["tokens_predicted"] * (one["stop_type"] != "eos")  # it counts the end-of-text token
        for name in names:
            assert one[name] == other[name], name


def test_its_own_streams(both):
    body = {"prompt": "hello", "n_predict": 4, "temperature": 0, "stream": True}
    theirs, ours = (client.post("/completion", json=body).text.split("\n\n") for client in both)
    events = [[json.loads(line.removeprefix("data: ")) for line in lines if line] for lines in (theirs, ours)]
    assert [one["stop"] for one in events[0]][-1] is [one["stop"] for one in events[1]][-1] is True
    assert events[0][0].keys() <= events[1][0].keys()
    assert "".join(one["content"] for one in events[0]) == "".join(one["content"] for one in events[1])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"content": "hello world"}),
        ("/tokenize", {"content": "<s>hello", "add_special": True, "parse_special": False}),
        ("/tokenize", {"content": "hello é 漢", "with_pieces": True}),
        ("/tokenize", {"content": ["hello", 5, "you"]}),
        ("/detokenize", {"tokens": [0, 5, 80]}),
        ("/apply-template", {"messages": HI}),
    ],
)
def test_its_tokens_and_prompts(both, path, body):
    theirs, ours = (client.post(path, json=body).json() for client in both)
    assert theirs.items() <= ours.items()


def test_its_properties(both):
    theirs, ours = (client.get("/props").json() for client in both)
    for name in ("total_slots", "modalities", "chat_template", "bos_token", "eos_token", "is_sleeping"):
        assert type(theirs[name]) is type(ours[name]), name
    assert theirs["chat_template"] == ours["chat_template"]


def test_refusals_have_what_theirs_have(both):
    """Their error's code is the status; ours is a word, as OpenAI's."""
    theirs, ours = (client.post("/v1/chat/completions", json={}) for client in both)
    assert theirs.status_code == ours.status_code == 400
    assert theirs.json()["error"].keys() <= ours.json()["error"].keys()
    assert theirs.json()["error"]["type"] == ours.json()["error"]["type"]


@pytest.mark.parametrize("model", ["tiny-rank", "tiny-rank-qwen3"])
def test_ranking(real, tiny_dir, model):
    """The same pairs by the same head: its scores, by its own pooling, are ours."""
    path = tiny_dir / f"{model}.gguf"
    body = {"query": "the boat on the sea", "documents": ["ship", "tax law", "the ship on the water", "a"], "top_n": 3}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [PROGRAM, "-m", path, "--rerank", "--host", "127.0.0.1", "--port", str(port), "-t", "1", "-c", "512", "-np", "1"]
    with (
        served(path, "--library", real.path, "--n-ctx", 512) as ours,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client,
    ):
        try:
            wait_until_healthy(process, client)
            theirs = client.post("/v1/rerank", json=body).json()
        finally:
            process.kill()
        found = httpx.post(f"{ours.url}/v1/rerank", json=body, headers={"Authorization": f"Bearer {ADMIN}"}).json()
    assert_has_all({**theirs, "results": []}, {**found, "results": []})
    assert [result["index"] for result in found["results"]] == [result["index"] for result in theirs["results"]]
    scores = [result["relevance_score"] for result in theirs["results"]]
    assert [result["relevance_score"] for result in found["results"]] == pytest.approx(scores, abs=2e-3)
    assert found["usage"] == theirs["usage"]
