"""A server on the loopback that answers by a script, byte for byte: what a test needs of networks, and no more."""

import contextlib
import json
import socket
import struct
import threading
import time


class Request:
    """What came in: method, path, headers (names in lower case) and body."""

    def __init__(self, head, body):
        first, *lines = head.decode("latin-1").split("\r\n")
        self.method, self.path, _ = first.split(" ")
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self.body = body

    @property
    def json(self):
        return json.loads(self.body)


class ScriptedServer:
    """Gives each request the next reply of `replies`; the last one serves all further ones.

    A reply is bytes or `function(socket, request)`, which may do whatever a bad network does.
    """

    def __init__(self, *replies):
        self.replies = list(replies)
        self.requests = []
        self.gone = threading.Event()
        """Set when a client closed a connection that a reply was still being sent on."""
        self._sockets = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._sockets:
            each.close()
        self._thread.join(5)

    def _accept(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        with connection, contextlib.suppress(OSError):
            while (request := self._read(connection)) is not None:
                self.requests.append(request)
                reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
                try:
                    if isinstance(reply, bytes):
                        connection.sendall(reply)
                    else:
                        reply(connection, request)
                except OSError:
                    self.gone.set()
                    return
                if not isinstance(reply, bytes) or b"Connection: close" in reply:
                    return

    def _read(self, connection):
        data = b""
        while b"\r\n\r\n" not in data:
            if not (piece := connection.recv(65536)):
                return None
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        request = Request(head, body)
        while len(request.body) < int(request.headers.get("content-length", 0)):
            request.body += connection.recv(65536)
        return request


def answer(body=None, status=200, *, kind="application/json", **headers):
    """Return a whole response; bytes go out as they are, anything else as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", f"Content-Type: {kind}", f"Content-Length: {len(content)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def events(*texts, line_end="\n", done=True):
    """Return a response that is a stream of completion chunks, one a text."""
    datas = [json.dumps({"choices": [{"index": 0, "text": text, "finish_reason": None}]}, ensure_ascii=False) for text in texts]
    datas += ['{"choices":[{"index":0,"text":"","finish_reason":"stop"}]}', "[DONE]"] if done else []
    return STREAM_HEAD + "".join(f"data: {data}{line_end}{line_end}" for data in datas).encode()


def dripping(content, pause, size=1):
    """Return a reply that sends a few bytes at a time."""

    def reply(connection, _):
        for start in range(0, len(content), size):
            connection.sendall(content[start : start + size])
            time.sleep(pause)

    return reply


def reset(content=b""):
    """Return a reply that sends `content` and then resets the connection."""

    def reply(connection, _):
        connection.sendall(content)
        time.sleep(0.05)  # a reset overtakes what was not read yet
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    return reply


def stalled(content=b"", seconds=20):
    """Return a reply that sends `content` and then nothing, until the client goes away."""

    def reply(connection, _):
        connection.sendall(content)
        connection.settimeout(seconds)
        if not connection.recv(1):
            raise ConnectionResetError

    return reply
