"""Images and sounds over HTTP, with adapters on; and images that are fetched, where that is allowed."""

from __future__ import annotations

import http.server
import threading

import httpx
import pytest
from helpers.media_made import data_url, picture, png, tone, wav
from helpers.serving import API, serving

from llamafu.engine import Engine
from llamafu.server import media_fetch
from llamafu.server.media_fetch import fetch, is_public

OPTIONS = {"max_tokens": 6, "temperature": 0, "ignore_eos": True, "logprobs": True, "top_logprobs": 5}
ONE, OTHER = png(picture(seed=1)), png(picture(seed=2))


@pytest.fixture(scope="module")
def engine(tiny_dir, folder):
    with Engine(tiny_dir / "tiny.gguf", mmproj_path=tiny_dir / "mmproj-both.gguf", n_ctx=1024, n_threads=1) as engine:
        yield engine


@pytest.fixture(scope="module")
def client(engine, folder):
    with serving(engine, adapters=folder) as address, httpx.Client(base_url=address, headers={"X-Api-Key": API}) as client:
        yield client


def asked(part, text="what is it", **fields):
    content = [{"type": "text", "text": text}, part]
    return {"messages": [{"role": "user", "content": content}], **OPTIONS, **fields}


def image(content=ONE, **fields):
    return {"type": "image_url", "image_url": {"url": data_url(content), **fields}}


def answered(client, path, body):
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response


def chosen(client, part, **fields):
    body = answered(client, "/v1/chat/completions", asked(part, **fields)).json()
    return body["choices"][0]["logprobs"]["content"], body["choices"][0]["message"]["content"]


def test_pixels_and_adapters_count(client, engine):
    base, text = chosen(client, image(), lora=[])
    assert chosen(client, image(OTHER), lora=[])[0] != base
    assert chosen(client, image(), lora=[{"name": "a", "scale": 1.0}])[0] != base
    assert chosen(client, image(), lora=[{"name": "a", "scale": 0.0}]) == (base, text)
    content = [{"type": "text", "text": "what is it"}, {"type": "image", "image": ONE}]
    alone = engine.chat([{"role": "user", "content": content}], lora={}, max_tokens=6, temperature=0, ignore_eos=True)
    assert alone.text == text


def test_sounds(client):
    data = data_url(wav(tone(1.0))).partition(",")[2]
    part = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    body = answered(client, "/v1/chat/completions", asked(part)).json()
    assert body["usage"]["prompt_tokens"] > 20


def test_the_other_routes(client):
    """What they are asked for is the same prompt, so that it is the same answer."""
    _, text = chosen(client, image(), lora=[])
    common = {"temperature": 0, "ignore_eos": True, "lora": []}
    parts = [{"type": "input_text", "text": "what is it"}, {"type": "input_image", "image_url": data_url(ONE)}]
    answer = answered(
        client, "/v1/responses", {"input": [{"role": "user", "content": parts}], "max_output_tokens": 6, **common}
    ).json()
    assert answer["output"][0]["content"][0]["text"] == text
    source = {"type": "base64", "media_type": "image/png", "data": data_url(ONE).partition(",")[2]}
    blocks = [{"type": "text", "text": "what is it"}, {"type": "image", "source": source}]
    body = {"model": "tiny", "max_tokens": 6, "messages": [{"role": "user", "content": blocks}], **common}
    assert answered(client, "/v1/messages", body).json()["content"][0]["text"] == text
    counted = answered(client, "/v1/messages/count_tokens", {"model": "tiny", "messages": body["messages"]}).json()
    assert counted["input_tokens"] > 16
    streamed = answered(client, "/v1/chat/completions", asked(image(), lora=[], stream=True)).text
    assert streamed.count("data: ") > 3
    assert (
        answered(client, "/apply-template", {"messages": asked(image())["messages"]}).json()["prompt"].count("<__media__>") == 1
    )


def test_what_is_refused(client, tmp_path):
    (tmp_path / "a.png").write_bytes(ONE)
    for part, told in (
        (image(ONE[:60]), "cannot be decoded"),
        (image(b"plain text"), "no image or sound"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,?"}}, "no base64"),
        ({"type": "image_url", "image_url": {"url": "http://example.org/a.png"}}, "fetches no images"),
        ({"type": "image_url", "image_url": {"url": f"file://{tmp_path}/a.png"}}, "no data URL"),
        ({"type": "image_url", "image_url": {"url": str(tmp_path / "a.png")}}, "no data URL"),
        ({"type": "image", "image": str(tmp_path / "a.png")}, "give one of 'image_url', 'input_audio'"),
        ({"type": "audio", "audio": str(tmp_path / "a.png")}, "give one of 'image_url', 'input_audio'"),
        (
            {"type": "input_audio", "input_audio": {"data": data_url(ONE).partition(",")[2], "format": "wav"}},
            "this is an image",
        ),
        ({"type": "image_url"}, "image_url is None"),
    ):
        response = client.post("/v1/chat/completions", json=asked(part))
        assert response.status_code == 400, (part, response.text)
        assert told in response.json()["error"]["message"]
        assert "messages[0].content[1]" in response.json()["error"]["message"]
    response = client.post("/v1/chat/completions", json=asked(image(detail="high")))
    assert response.headers["Llamafu-Ignored"] == "messages[0].content[1].image_url.detail"
    many = {"messages": [{"role": "user", "content": [image()] * 65}]}
    assert "64" in client.post("/v1/chat/completions", json=many).json()["error"]["message"]


class _Pictures(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/one.png")
            self.end_headers()
        elif self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "http://10.0.0.1/one.png")
            self.end_headers()
        elif self.path == "/circle":
            self.send_response(302)
            self.send_header("Location", "/circle")
            self.end_headers()
        elif self.path in {"/one.png", "/large"}:
            content = ONE if self.path == "/one.png" else bytes(2000)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        else:
            self.send_error(404)

    def log_message(self, *_):
        pass


@pytest.fixture
def site():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Pictures)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_fetching(site, monkeypatch):
    with pytest.raises(ValueError, match="no public address"):
        fetch(f"{site}/one.png")
    monkeypatch.setattr(media_fetch, "is_public", lambda address: address == "127.0.0.1")
    monkeypatch.setattr(media_fetch, "MOST_BYTES", 3500)
    assert fetch(f"{site}/one.png") == ONE
    assert fetch(f"{site}/moved") == ONE
    for path, told in (("away", "no public address"), ("circle", "redirects more than"), ("none", "status 404")):
        with pytest.raises(ValueError, match=told):
            fetch(f"{site}/{path}")
    monkeypatch.setattr(media_fetch, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="more than 1,000 bytes"):
        fetch(f"{site}/large")
    with pytest.raises(ValueError, match="neither http nor https"):
        fetch("file:///etc/passwd")
    monkeypatch.setattr(media_fetch, "MOST_SECONDS", -1.0)
    with pytest.raises(TimeoutError):
        fetch(f"{site}/one.png")


def test_fetched_pictures_are_those_of_data_urls(engine, folder, site, monkeypatch):
    monkeypatch.setattr(media_fetch, "is_public", lambda address: address == "127.0.0.1")
    with (
        serving(engine, adapters=folder, fetch_media=True) as address,
        httpx.Client(base_url=address, headers={"X-Api-Key": API}) as client,
    ):
        part = {"type": "image_url", "image_url": {"url": f"{site}/one.png"}}
        assert chosen(client, part, lora=[]) == chosen(client, image(), lora=[])
        gone = client.post("/v1/chat/completions", json=asked({"type": "image_url", "image_url": {"url": f"{site}/none"}}))
        assert gone.status_code == 400
        assert "status 404" in gone.json()["error"]["message"]


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "::1",
        "10.1.2.3",
        "192.168.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "::ffff:10.0.0.1",
        "fe80::1%eth0",
        "224.0.0.1",
        "fd00::1",
    ],
)
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


def test_public_addresses():
    assert is_public("93.184.216.34")
    assert is_public("2606:4700:4700::1111")
