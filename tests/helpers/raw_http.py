"""Malformed HTTP as bytes, made from a seed, and a socket to send it by."""

import random
import re
import socket
import time
from dataclasses import dataclass

KEY = b"X-Admin-Key: my-admin-key\r\n"
DRIBBLE = 0.002
"""Seconds between the pieces of a slow request."""


@dataclass(frozen=True)
class Raw:
    """One connection's worth: what it is, its pieces, and whether this side closes its half after the last one."""

    kind: str
    pieces: tuple[bytes, ...]
    half_close: bool = True

    @property
    def requests(self):
        """How many requests it begins, at least one."""
        return max(1, sum(piece.count(b" HTTP/1.") for piece in self.pieces))


def send(address, raw, patience=10.0):
    """Send it and return all that comes back until the server closes; TimeoutError when it neither answers nor closes."""
    with socket.create_connection(address, timeout=patience) as connection:
        answer = bytearray()
        try:
            for index, piece in enumerate(raw.pieces):
                if index:
                    time.sleep(DRIBBLE)
                connection.sendall(piece)
            if raw.half_close:
                connection.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has refused already
        try:
            while piece := connection.recv(65536):
                answer += piece
        except ConnectionResetError:
            pass  # it closed with bytes of ours unread
        return bytes(answer)


def statuses(answer):
    """Return the status of every response in what came back."""
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3})[ \r]", answer)]


def post(path, body, *headers, length=None):
    """Return the bytes of a request, after which the server closes."""
    size = len(body) if length is None else length
    head = b"POST %b HTTP/1.1\r\nHost: x\r\n%bConnection: close\r\nContent-Length: %d\r\n" % (path, KEY, size)
    return head + b"".join(header + b"\r\n" for header in headers) + b"\r\n" + body


def get(path, *headers, close=True):
    """Return the bytes of a request without a body."""
    head = b"GET %b HTTP/1.1\r\nHost: x\r\n%b" % (path, KEY + (b"Connection: close\r\n" if close else b""))
    return head + b"".join(header + b"\r\n" for header in headers) + b"\r\n"


def chunked(path, body):
    """Return the bytes of a request whose body, in chunks, is `body` as it is."""
    head = b"POST %b HTTP/1.1\r\nHost: x\r\n%bConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head % (path, KEY) + body


def cases(seed, count):
    """Yield `count` of them; the same for the same seed."""
    chance = random.Random(seed)  # noqa: S311 - it is to be the same again
    for index in range(count):
        yield KINDS[index % len(KINDS)](chance)


JSON_PATHS = [
    *(b"/v1/completions", b"/v1/chat/completions", b"/v1/embeddings", b"/v1/token/encode", b"/v1/tokens/decode"),
    *(b"/completion", b"/infill", b"/tokenize", b"/detokenize", b"/apply-template"),
    *(b"/v1/lora/load", b"/v1/loras/load", b"/v1/load_lora_adapter", b"/v1/unload_lora_adapter", b"/lora-adapters"),
]
OWN_PATHS = {
    b'{"prompt"': b"/v1/completions",
    b'{"json_schema"': b"/v1/completions",
    b'{"messages"': b"/v1/chat/completions",
    b'{"input"': b"/v1/embeddings",
    b'{"text"': b"/v1/token/encode",
    b'{"tokens"': b"/v1/token/decode",
    b'{"loras"': b"/v1/lora/load",
    b"[{": b"/lora-adapters",
}
GET_PATHS = [
    b"/",
    b"/health",
    b"/openapi.json",
    b"/metrics",
    b"/v1/models",
    b"/v1/loras",
    b"/v1/lora",
    b"/lora-adapters",
    b"/props",
]
GOOD = b'{"prompt": "a", "max_tokens": 1}'


def junk(chance, most):
    return chance.randbytes(chance.randint(0, most))


def request_line(chance):
    line = chance.choice(
        [
            *(b"", b"GET", b"GET /", b"GET  / HTTP/1.1", b"GET / HTTP/9.9", b"GET / HTTP/1", b"GET / HTTP/1.1 more"),
            *(b"get / http/1.1", b"GET / \x00HTTP/1.1", b"PRI * HTTP/2.0", b"\x16\x03\x01\x02\x00", b"GET \xff\xfe HTTP/1.1"),
            *(b"A" * chance.choice([10, 5000, 100_000]), b"GET /" + b"a" * chance.choice([5000, 70_000]) + b" HTTP/1.1"),
            *(
                b"G\tET / HTTP/1.1",
                b"OPTIONS * HTTP/1.1",
                b"CONNECT x:1 HTTP/1.1",
                b"TRACE / HTTP/1.1",
                b"GET http://x/ HTTP/1.1",
            ),
            junk(chance, 300),
        ]
    )
    return Raw("request line", (line + b"\r\n" + chance.choice([b"", b"\r\n", b"Host: x\r\n\r\n", KEY + b"\r\n"]),))


def header(chance):
    line = chance.choice(
        [
            *(
                b"no colon",
                b": nothing",
                b"a b: c",
                b"a\x00b: c",
                b"a: \x00",
                b"a: \xff\xfe\xc3",
                b" folded: x",
                b"a:\r\n folded",
            ),
            *(
                b"a: " + b"x" * chance.choice([8000, 70_000]),
                b"\r\n".join(b"h%d: x" % n for n in range(chance.choice([90, 3000]))),
            ),
            *(
                b"Authorization: Bearer \xff",
                b"Authorization: " + junk(chance, 40).hex().encode(),
                b"X-Admin-Key: \xe2\x82\xac",
            ),
            *(b"Host: y", b"Host: \xff", b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x", b"Upgrade: h2c"),
            *(b"Expect: 100-continue", b"Expect: the-impossible", b"Content-Length: 5", b"Range: bytes=0-1", b"Cookie: \x01"),
            b"j: " + junk(chance, 60),
        ]
    )
    return Raw("header", (get(chance.choice(GET_PATHS), line),))


def path(chance):
    target = chance.choice(
        [
            *(
                b"/v1/lora/%00",
                b"/v1/lora/%ff%fe",
                b"/v1/lora/..%2f..%2fetc",
                b"/v1/lora/" + b"a" * 5000,
                b"//",
                b"/../../etc/passwd",
            ),
            *(
                b"/v1/models?" + b"a=b&" * 500,
                b"/health#x",
                b"/v1/lora/%",
                b"/v1/lora/%zz",
                b"/%2e%2e/",
                b"*",
                b"/v1/lora/%E2%82%AC",
            ),
            b"/v1/lora/%" + junk(chance, 8).hex().encode(),
        ]
    )
    method = chance.choice([b"GET", b"DELETE", b"PUT", b"HEAD", b"PATCH", b"OPTIONS", b"POST"])
    return Raw("path", (b"%b %b HTTP/1.1\r\nHost: x\r\n%bConnection: close\r\n\r\n" % (method, target, KEY),))


def content_length(chance):
    told = chance.choice(
        [b"-1", b"+5", b"five", b"", b"1e3", b"0x10", b"5, 6", b"5, 5", b"9" * 30, b"\xd9\xa5", b" 5", b"5 5", b"1_0"]
    )
    body = chance.choice([GOOD, b"", junk(chance, 50)])
    head = b"POST %b HTTP/1.1\r\nHost: x\r\n%bConnection: close\r\nContent-Length: %b\r\n\r\n"
    return Raw("content length", (head % (chance.choice(JSON_PATHS), KEY, told) + body,))


def wrong_length(chance):
    length = chance.choice([0, 1, len(GOOD) - 1, len(GOOD) + 1, len(GOOD) + 1000, 10**9, 10**18])
    return Raw("wrong length", (post(chance.choice(JSON_PATHS), GOOD, length=length),))


def broken_chunks(chance):
    body = chance.choice(
        [
            *(b"zz\r\n{}\r\n0\r\n\r\n", b"5\r\n{}\r\n0\r\n\r\n", b"2\r\n{}0\r\n\r\n", b"2\r\n{}\r\n", b"-2\r\n{}\r\n0\r\n\r\n"),
            *(
                b"2;x=y\r\n{}\r\n0\r\n\r\n",
                b"2\r\n{}\r\n0\r\nTrailer: x\r\n\r\n",
                b"F" * 30 + b"\r\n{}\r\n0\r\n\r\n",
                b"",
                b"0\r\n\r\n",
            ),
            *(
                b"2\n{}\n0\n\n",
                b"0x2\r\n{}\r\n0\r\n\r\n",
                b"2" + b" " * 9000 + b"\r\n{}\r\n0\r\n\r\n",
                b"1\r\n{\r\n1\r\n}\r\n0\r\n\r\n",
            ),
            b"1\r\n{\r\n" * 300 + b"0\r\n\r\n",
            junk(chance, 60),
        ]
    )
    return Raw("chunks", (chunked(chance.choice(JSON_PATHS), body),))


def both_lengths(chance):
    return Raw(
        "both lengths", (post(b"/v1/completions", GOOD, b"Transfer-Encoding: " + chance.choice([b"chunked", b"gzip", b"x"])),)
    )


def json_text(chance):
    depth = chance.choice([100, 10_000, 200_000])
    number = chance.choice(
        [
            b"NaN",
            b"Infinity",
            b"-Infinity",
            b"1e999",
            b"-1e999",
            b"1" * 5000,
            b"1" * 400,
            b"1e-999",
            b"-0",
            b"01",
            b"+1",
            b".5",
            b"1.",
        ]
    )
    name = chance.choice([b"max_tokens", b"temperature", b"seed", b"n", b"lora", b"top_k", b"logprobs", b"frequency_penalty"])
    text = chance.choice(
        [
            b"\\ud800",
            b"\xff\xfe",
            b"\xc3",
            b"\xed\xa0\x80",
            b"\x00",
            b"\\u0000",
            b"\xef\xbf\xbf",
            b"\\x",
            b"\n",
            b"\xf0\x9f\x92\xa9",
        ]
    )
    body = chance.choice(
        [
            *(b"[" * depth, b'{"a":' * depth, b"[" * depth + b"]" * depth, b'{"prompt": ' + b"[" * depth + b"]" * depth + b"}"),
            *(b'{"prompt": "a", "%b": %b}' % (name, number), b'[{"id": %b, "scale": %b}]' % (number, number)),
            *(
                b'{"loras": [{"name": "a", "scaling": %b}]}' % number,
                b'{"tokens": [%b]}' % number,
                b'{"tokens": [-1, 99999999]}',
            ),
            *(b'{"prompt": "%b", "max_tokens": 1}' % text, b'{"text": "%b"}' % text, b'{"loras": [{"name": "%b"}]}' % text),
            *(b'{"messages": [{"role": "%b", "content": "%b"}], "max_tokens": 1}' % (text, text), b'{"input": "%b"}' % text),
            *(
                b'{"json_schema": '
                + b'{"items":' * min(depth, 10_000)
                + b"{}"
                + b"}" * min(depth, 10_000)
                + b', "prompt": "a"}',
            ),
            *(
                b'{"prompt": "a", "max_tokens": 1, "grammar": "root ::= %b"}' % text,
                b'{"prompt": "a", "prompt": 3}',
                b"",
                b"null",
            ),
            *(
                b"\xef\xbb\xbf" + GOOD,
                GOOD.decode().encode("utf-16"),
                b'{"prompt": "a"} x',
                b"'a'",
                b'"',
                b"{",
                b"tru",
                junk(chance, 80),
            ),
        ]
    )
    kind = chance.choice(
        [b"application/json", b"application/json", b"text/plain", b"\xff", b"application/json; charset=utf-16", b""]
    )
    own = [goal for field, goal in OWN_PATHS.items() if body.startswith(field)]  # where its fields are known, mostly
    goal = chance.choice([*(own * 9), *JSON_PATHS])
    return Raw("json", (post(goal, body, b"Content-Type: " + kind),), half_close=False)


def multipart(chance):
    boundary = chance.choice([b"x", b"", b"x" * 5000, b"\xff", b'"x"', b"x; boundary=y"])
    part = chance.choice(
        [
            *(
                b'Content-Disposition: form-data; name="file"; filename="a.gguf"',
                b'Content-Disposition: form-data; name="file"',
                b"x: y",
            ),
            *(b'Content-Disposition: form-data; name="file"; filename="../../z.gguf"', b"Content-Disposition: \xff\xfe", b""),
            *(
                b'Content-Disposition: form-data; name="file"; filename="\xff.gguf"',
                b"Content-Disposition: form-data",
                b"a" * 9000,
            ),
            *(
                b'Content-Disposition: form-data; name="name"',
                b"Content-Disposition: attachment; name=file; filename*=UTF-8''%ff",
            ),
        ]
    )
    content = chance.choice([b"", b"GGUF", b"GGUF\x03\x00\x00\x00" + b"\xff" * 16, junk(chance, 3000)])
    body = chance.choice(
        [
            *(
                b"--x\r\n%b\r\n\r\n%b\r\n--x--\r\n" % (part, content),
                b"--x\r\n%b\r\n\r\n%b" % (part, content),
                b"--x--\r\n",
                b"--x\r\n",
            ),
            *(
                b"--x\r\n%b\r\n\r\n%b\r\n" % (part, content) * 40 + b"--x--\r\n",
                b"--y\r\n\r\n",
                b"\r\n" * 50,
                junk(chance, 200),
            ),
        ]
    )
    kind = b"Content-Type: multipart/form-data; boundary=" + boundary
    return Raw("multipart", (post(b"/v1/lora/upload", body, kind),), half_close=False)


def pipelined(chance):
    good = [get(b"/health", close=False), get(b"/v1/models", close=False)]
    last = chance.choice([get(b"/health"), b"junk\r\n\r\n", get(b"/health", b"no colon"), post(b"/v1/completions", GOOD)])
    return Raw("pipelined", (b"".join(chance.choices(good, k=chance.randint(1, 6))) + last,), half_close=False)


def half_closed(chance):
    whole = post(b"/v1/completions", chance.choice([GOOD, b'{"prompt": "a", "stream": true}']))
    return Raw("half closed", (whole[: chance.randint(1, len(whole))],))


def slow(chance):
    whole = post(b"/v1/completions", GOOD)
    cuts = sorted(chance.sample(range(1, len(whole)), 5))
    return Raw("slow", tuple(whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)), half_close=False)


def flipped(chance):
    whole = bytearray(post(chance.choice(JSON_PATHS), GOOD, b"Content-Type: application/json"))
    for _ in range(chance.randint(1, 4)):
        whole[chance.randrange(len(whole))] = chance.randrange(256)
    return Raw("flipped bytes", (bytes(whole),))


KINDS = [
    *(request_line, header, path, content_length, wrong_length, broken_chunks, both_lengths, json_text, json_text, multipart),
    *(pipelined, half_closed, slow, flipped),
]
