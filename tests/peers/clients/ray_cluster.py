"""A cluster on Ray, from its start to its end: what its clients see, as JSON on the last line.

Arguments: the model, a folder of adapters, a free port. Ray's own packages are in this environment only.
"""

import contextlib
import json
import os
import re
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import httpx
import openai
import ray
from ray import serve

from llamafu import Engine
from llamafu.adapters import inspect_adapter
from llamafu.client import RateLimitError, TabbyClient
from llamafu.engine.benchmark import write_random_adapter
from llamafu.ray import build_app
from llamafu.service import LoraLoadRequest

MODEL, FOLDER, PORT = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
URL = f"http://127.0.0.1:{PORT}"
API, ADMIN = "the-api-key", "the-admin-key"
OPTIONS = {"n_ctx": 4096, "bank_rank": 16, "max_sequences": 8, "max_queue": 12}
PROMPTS = ("Hello", "The ship", "One two three")
STATES = ({}, {"a": 1.0}, {"b": 0.5}, {"a": 0.3, "b": 1.0})
told = {}


def say(text):
    print(f"{time.perf_counter():8.1f} {text}", file=sys.stderr, flush=True)


def deploy(replicas):
    app = build_app(
        MODEL, adapters=FOLDER, num_replicas=replicas, api_key=(API,), admin_key=(ADMIN,), lora={"a": 0.5}, **OPTIONS
    )
    serve.run(app)


def client(key=ADMIN, timeout=120):
    return httpx.Client(base_url=URL, headers={"X-Api-Key": key}, timeout=timeout)


def replicas():
    """Names of the replicas that answer, by their metrics."""
    with client() as http:
        return sorted(set(re.findall(r'llamafu_engine_running\{replica="(\w+)"\}', http.get("/metrics").text)))


def counted(name):
    """A number of every replica, added up."""
    with client() as http:
        found = re.findall(rf"^{name}\{{[^}}]*\}} (\S+)$", http.get("/metrics").text, re.MULTILINE)
    return sum(map(float, found))


def wait_for(condition, seconds=240):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(httpx.HTTPError, AttributeError):
            if condition():
                return True
        time.sleep(0.2)
    return False


def kill(deployment, name):
    ray.kill(ray.get_actor(f"SERVE_REPLICA::default#{deployment}#{name}", namespace="serve"), no_restart=True)


def complete(http, prompt, tokens=12, **more):
    body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, **more}
    return http.post("/v1/completions", json=body)


def text_of(answer):
    return answer.json()["choices"][0]["text"]


def stream(prompt, tokens, **more):
    """Texts of the events, and how the stream ended: done, error, or cut."""
    body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True, **more}
    text, end = "", "cut"
    try:
        with client() as http, http.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code != 200:
                return "", str(answer.status_code)
            for line in answer.iter_lines():
                if line == "data: [DONE]":
                    end = "done"
                elif line.startswith("data: "):
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        end = "error"
                    else:
                        text += event["choices"][0]["text"]
    except httpx.HTTPError:
        pass
    return text, end


def operations():
    """The five operations of the service, by the Python client."""
    with TabbyClient(URL, admin_key=ADMIN, timeout=120) as tabby:
        listed = [card.id for card in tabby.lora.list().data]
        first = {card.id: card.scaling for card in tabby.lora.get_active().data}
        loaded = tabby.lora.load(LoraLoadRequest.of({"b": 0.25, "nobody": 1.0}))
        actives = [{card.id: card.scaling for card in tabby.lora.get_active().data} for _ in range(8)]
        tabby.lora.unload()
        after = [len(tabby.lora.get_active().data) for _ in range(8)]
        with tabby.lora.using(LoraLoadRequest.of({"a": 1.0})):
            within = [card.id for card in tabby.lora.get_active().data]
        tabby.lora.load(LoraLoadRequest.of({"a": 0.5}))
    told["operations"] = {
        "listed": listed,
        "first": first,
        "success": loaded.success,
        "failure": loaded.failure,
        "actives": actives,
        "after": after,
        "within": within,
    }


def openai_package():
    with openai.OpenAI(base_url=f"{URL}/v1", api_key=API, max_retries=0) as ask:
        chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8, "temperature": 0}
        whole = ask.chat.completions.create(model="a", **chat).choices[0].message.content
        parts = [
            part.choices[0].delta.content or ""
            for part in ask.chat.completions.create(model="a", stream=True, **chat)
            if part.choices
        ]
        try:
            ask.chat.completions.create(model="nobody", **chat)
            refused = ""
        except openai.NotFoundError as error:
            refused = str(error)
        told["openai"] = {
            "models": [model.id for model in ask.models.list()],
            "whole": whole,
            "streamed": "".join(parts),
            "refused": refused,
            "embedded": len(ask.embeddings.create(model="tiny", input="hi").data[0].embedding),
        }


def equality():
    """Answers beside those of one engine in this process."""
    with Engine(MODEL, adapters_dir=FOLDER, n_threads=1, **{**OPTIONS, "max_queue": 256}) as engine, client(API) as http:
        asked = [(prompt, lora) for prompt in PROMPTS for lora in STATES for _ in range(2)]
        expected = [engine.complete(p, lora=lora, max_tokens=12, temperature=0, ignore_eos=True).text for p, lora in asked]
        with ThreadPoolExecutor(8) as pool:
            got = list(pool.map(lambda one: text_of(complete(http, one[0], lora=one[1])), asked))
    told["equality"] = {"answers": len(asked), "different": sum(a != b for a, b in zip(expected, got, strict=True))}


def everything_else():
    """Each kind of route, by its status."""
    statuses = {}
    with client() as http:
        for path in ("/", "/health", "/openapi.json", "/v1/models", "/v1/mixes", "/props", "/lora-adapters", "/nowhere"):
            statuses[path] = http.get(path).status_code
        for path, body in (
            ("/tokenize", {"content": "hi"}),
            ("/v1/token/encode", {"text": "hi"}),
            ("/v1/messages", {"model": "a", "max_tokens": 4, "messages": [{"role": "user", "content": "hi"}]}),
            ("/v1/responses", {"model": "a", "max_output_tokens": 16, "input": "hi"}),
            ("/completion", {"prompt": "hi", "n_predict": 4}),
            ("/v1/completions", {"prompt": 7}),
        ):
            statuses[path] = http.post(path, json=body).status_code
        statuses["no key"] = httpx.get(f"{URL}/v1/models").status_code
        statuses["api key"] = httpx.post(f"{URL}/v1/lora/unload", headers={"X-Api-Key": API}).status_code
        statuses["too large"] = http.post("/v1/completions", content=b" " * (5 << 20)).status_code
        file = {"file": ("new.gguf", (FOLDER / "a.gguf").read_bytes())}
        statuses["upload"] = http.post("/v1/lora/upload", files=file).status_code
        statuses["new"] = [complete(http, "x", model="new").status_code for _ in range(6)]
        statuses["large"] = large(http)
        statuses["damaged"] = http.post("/v1/lora/upload", files={"file": ("bad.gguf", b"bad")}).status_code
        statuses["delete"] = http.delete("/v1/lora/new").status_code
        statuses["gone"] = [complete(http, "x", model="new").status_code for _ in range(6)]
    told["statuses"] = statuses


def large(http):
    """Upload an adapter that is handed over in several pieces, and say whether it arrived whole."""
    with tempfile.TemporaryDirectory() as tmp, Engine(MODEL, n_threads=1, n_ctx=64) as engine:
        path = Path(tmp) / "large.gguf"
        write_random_adapter(engine, path, rank=1500, seed=1)
        assert path.stat().st_size > 5 << 20
        answer = http.post("/v1/lora/upload", files={"file": ("large.gguf", path.read_bytes())})
        digests = {card["id"]: card.get("digest") for _ in range(6) for card in http.get("/v1/loras").json()["data"]}
        right = digests["large"] == inspect_adapter(path).digest
        return [answer.status_code, right, http.delete("/v1/lora/large").status_code]


def full():
    """More than all replicas run and let wait."""
    with ThreadPoolExecutor(60) as pool:
        found = list(pool.map(lambda number: stream(f"{number}", 300)[1], range(60)))
    told["full"] = {end: found.count(end) for end in set(found)}
    with ThreadPoolExecutor(60) as pool, TabbyClient(URL, api_key=API, retries=0, timeout=120) as tabby:

        def refused(number):
            try:
                tabby.completions.create(prompt=f"{number}", max_tokens=200, ignore_eos=True)
            except RateLimitError as error:
                return error.retry_after
            return None

        told["retry_after"] = sorted({each for each in pool.map(refused, range(60)) if each is not None})


def cancellation():
    before = counted("llamafu_engine_cancelled")
    body = {"prompt": "long", "max_tokens": 3000, "temperature": 0, "ignore_eos": True, "stream": True}
    with client() as http, http.stream("POST", "/v1/completions", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        running = counted("llamafu_engine_running")
    told["cancellation"] = {
        "ran": running,
        "ended": wait_for(lambda: counted("llamafu_engine_running") == 0, 30),
        "cancelled": counted("llamafu_engine_cancelled") - before,
    }


def loads_under_traffic():
    """Every request that follows a load runs with it, on whichever replica."""
    states = [{"a": 1.0}, {"b": 1.0}, {"a": 0.5, "b": 0.5}]
    with Engine(MODEL, adapters_dir=FOLDER, n_threads=1, **OPTIONS) as engine:
        by_state = [engine.complete("Once", lora=each, max_tokens=12, temperature=0, ignore_eos=True).text for each in states]
    ending, statuses = threading.Event(), []

    def traffic(number):
        with client(API) as http:
            while not ending.is_set():
                statuses.append(complete(http, f"{number}", lora={}).status_code)

    wrong, checked, seconds = 0, 0, []
    with ThreadPoolExecutor(10) as pool, client() as admin, client(API) as http:
        for number in range(4):
            pool.submit(traffic, number)
        for turn in range(6):
            scales = states[turn % 3]
            began = time.perf_counter()
            body = {"loras": [{"name": name, "scaling": scale} for name, scale in scales.items()]}
            assert admin.post("/v1/lora/load", json=body).status_code == 200
            seconds.append(time.perf_counter() - began)
            for answer in pool.map(lambda _: complete(http, "Once"), range(6)):
                checked += 1
                wrong += answer.status_code == 200 and text_of(answer) != by_state[turn % 3]
        ending.set()
    told["loads"] = {
        "checked": checked,
        "wrong": wrong,
        "statuses": sorted(set(statuses)),
        "traffic": len(statuses),
        "slowest": max(seconds),
    }


def death():
    """A replica dies under 16 streams, while requests that have sent nothing come to it, too."""
    names = replicas()
    with client() as http:
        active = http.get("/v1/lora").json()
        text = text_of(complete(http, "Once", lora={}))
    with ThreadPoolExecutor(32) as pool:
        streams = [pool.submit(stream, f"{number}", 600, lora={}) for number in range(16)]
        time.sleep(1.0)
        with client() as http:
            running = counted("llamafu_engine_running")
            kill("replicas", names[0])
            whole = list(pool.map(lambda _: complete(http, "Once", lora={}), range(8)))
        ends = [each.result()[1] for each in streams]
    with client() as http:
        actives = [http.get("/v1/lora").json() == active for _ in range(6)]
        loaded = http.post("/v1/lora/load", json={"loras": [{"name": "b", "scaling": 0.75}]}).status_code
    back = wait_for(lambda: len(replicas()) == len(names) and names[0] not in replicas())
    with client() as http:
        seen = [http.get("/v1/lora").json()["data"][0]["scaling"] for _ in range(12)]
    told["death"] = {
        "running": running,
        "ends": {end: ends.count(end) for end in set(ends)},
        "whole": [answer.status_code for answer in whole],
        "same": all(text_of(answer) == text for answer in whole if answer.status_code == 200),
        "active": all(actives),
        "loaded": loaded,
        "back": back,
        "seen": sorted(set(seen)),
    }


def holder_dies():
    """The holder of the state dies: its successor goes on with what was on the disk."""
    [name] = [each["name"] for each in _actors("state")]
    kill("state", name)
    with client() as http:
        while_gone = [http.get("/v1/lora").json()["data"][0]["scaling"] for _ in range(3)]
    with client() as http:
        assert wait_for(
            lambda: http.post("/v1/lora/load", json={"loras": [{"name": "a", "scaling": 0.125}]}).status_code == 200
        )
        seen = [http.get("/v1/lora").json()["data"][0]["scaling"] for _ in range(8)]
    kept = json.loads((FOLDER / ".llamafu-cluster.json").read_text())["active"]
    told["holder"] = {
        "while_gone": while_gone,
        "seen": sorted(set(seen)),
        "kept": kept,
    }


def _actors(deployment):
    from ray.util import list_named_actors

    prefix = f"SERVE_REPLICA::default#{deployment}#"
    found = [each["name"] for each in list_named_actors(all_namespaces=True) if each["name"].startswith(prefix)]
    return [{"name": name.removeprefix(prefix)} for name in found]


def third():
    """One replica more: it has the state of now."""
    deploy(3)
    there = wait_for(lambda: len(replicas()) == 3)
    with client() as http:
        seen = [http.get("/v1/lora").json()["data"][0]["scaling"] for _ in range(12)]
    told["third"] = {"there": there, "seen": sorted(set(seen))}


def from_environment():
    """What `serve run llamafu.ray:app` finds."""
    os.environ |= {"LLAMAFU_SERVE_MODEL": MODEL, "LLAMAFU_SERVE_REPLICAS": "2", "LLAMAFU_SERVE_API_KEY": API}
    from llamafu.ray import app

    told["app"] = type(app).__name__


def start_ray():
    """Start Ray, again where its own patience of 30 seconds was too short for a busy machine."""
    for attempt in range(4):
        try:
            log = "LLAMAFU_RAY_LOG" in os.environ
            ray.init(num_cpus=4, object_store_memory=100 * 2**20, include_dashboard=False, log_to_driver=log)
        except Exception as error:
            say(f"Ray did not start: {error}")
            ray.shutdown()
            if attempt == 3:
                raise
        else:
            return


def main():
    start_ray()
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": PORT})
        from_environment()
        deploy(2)
        steps = (
            operations,
            openai_package,
            equality,
            everything_else,
            full,
            cancellation,
            loads_under_traffic,
            death,
            holder_dies,
            third,
        )
        for step in steps:
            say(step.__name__)
            step()
            say(json.dumps(told))
    finally:
        serve.shutdown()
        ray.shutdown()
    print(json.dumps(told))


if __name__ == "__main__":
    main()
