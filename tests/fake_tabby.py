"""A small server that speaks as Llamafu's does: two adapters, an admin key, canned answers that name what is active."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from llamafu.errors import LoraNotFoundError
from llamafu.service import (
    APIError,
    AuthenticationError,
    LocalLoraService,
    LoraLoadRequest,
    NotFoundError,
    PermissionDeniedError,
)

KEYS = {"my-admin-key": "admin", "my-api-key": "api"}


class FakeEngine:
    """The adapter half of an engine."""

    scale_range = (0.0, 1.0)

    def __init__(self, paths):
        self.adapters = paths
        self.active_lora_adapters = {}

    def adapter_path(self, name):
        try:
            return self.adapters[name]
        except KeyError:
            raise LoraNotFoundError(name) from None

    def set_lora_adapters(self, scales, *, include_queued=False):  # noqa: ARG002 - the engine's signature
        self.active_lora_adapters = dict(scales)


class Handler(BaseHTTPRequestHandler):
    """Routes."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self._answer({})

    def do_POST(self):
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, body):
        try:
            answer = {"status": "healthy", "issues": []} if self.path == "/health" else self._route(body)
        except APIError as error:
            told = {"error": {"message": str(error), "type": error.code}, "detail": str(error), "message": str(error)}
            self._send(error.status, "application/json", json.dumps(told).encode())
            return
        if body.get("stream"):
            chunks = [{"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in answer.split("|")]
            chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            text = "".join(f": ping\n\ndata: {json.dumps(chunk)}\n\n" for chunk in chunks)
            self._send(200, "text/event-stream", f"{text}data: [DONE]\n\n".encode())
        else:
            self._send(200, "application/json", json.dumps(answer).encode())

    def _route(self, body):
        service = self.server.service
        given = {self.headers.get("X-Admin-Key"), self.headers.get("X-Api-Key")}
        rights = {KEYS.get(key) for key in given - {None}}
        if not rights or None in rights:
            message = "no such key"
            raise AuthenticationError(message)
        if self.path in {"/v1/lora/load", "/v1/lora/unload"} and "admin" not in rights:
            message = "this takes an admin key"
            raise PermissionDeniedError(message)
        match self.path:
            case "/v1/loras":
                return service.list().to_json()
            case "/v1/lora":
                return service.get_active().to_json()
            case "/v1/auth/permission":
                return {"permission": "admin" if "admin" in rights else "api"}
            case "/v1/chat/completions":
                return self._chat(body)
            case "/v1/lora/load":
                return service.load(LoraLoadRequest.from_json(body)).to_json()
            case "/v1/lora/unload":
                return service.unload() or {}
        message = f"no such route: {self.path}"
        raise NotFoundError(message)

    def _chat(self, body):
        scales = body["lora"] if "lora" in body else {card.id: card.scaling for card in self.server.service.get_active().data}
        voice = "Arrr, |it be Berlin." if scales.get("pirate") else "It is |Berlin."
        if body["stream"]:
            return voice
        message = {"role": "assistant", "content": voice.replace("|", "")}
        lora = [{"name": name, "digest": "", "scale": scale} for name, scale in scales.items()]
        return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "lora": lora}

    def _send(self, status, kind, content):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextmanager
def fake_tabby(paths):
    """Serve adapters {name: path} on the loopback, and give the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.service = LocalLoraService(FakeEngine({name: Path(path) for name, path in paths.items()}))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
