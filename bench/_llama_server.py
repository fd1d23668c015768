"""The other side: `llama-server` of llama.cpp, K requests at once, each with adapters of its own.

Its requests go out from K threads over plain sockets: each thread sends one request and waits for the whole answer, so the
client takes no part in the work between the first byte and the last.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NAME = "llama-server"
MARKER = "<__media__>"
"""Stands for a picture in a prompt; a server draws its own marker unless it is told one."""
_PATIENCE = 120  # seconds until it has to be ready, and for one answer


@dataclass(frozen=True)
class Answer:
    """What one request made, by the server's own account."""

    tokens: tuple[int, ...]
    timings: dict[str, float]


class LlamaServer:
    """A running server with `adapters` loaded and none applied; a context manager."""

    def __init__(
        self,
        tools: Path,
        model: Path,
        adapters: Sequence[Path],
        *,
        slots: int,
        n_ctx: int,
        threads: int,
        flash_attn: str,
        unified: bool = True,
        cache: bool = False,
        projector: Path | None = None,
        gpu_layers: int = 0,
    ) -> None:
        """Start it; `unified` shares one memory among the slots, `cache` lets it keep prompts, `projector` lets it see."""
        self.port = _free_port()
        self.flags = [
            *("-np", str(slots), "-c", str(n_ctx), "-t", str(threads), "-tb", str(threads), "-fa", flash_attn),
            *("--kv-unified" if unified else "--no-kv-unified", "--cont-batching", "--no-webui"),
            *(() if cache else ("--no-cache-prompt", "-cram", "0")),
            *(() if projector is None else ("--mmproj", str(projector), "--no-mmproj-offload")),
            *(("-ngl", str(gpu_layers)) if gpu_layers else ()),
        ]
        lora = ["--lora", ",".join(map(str, adapters)), "--lora-init-without-apply"] if adapters else []
        command = [str(tools / NAME), "-m", str(model), *self.flags, *lora, "--host", "127.0.0.1", "--port", str(self.port)]
        environment = {**os.environ, "LLAMA_MEDIA_MARKER": MARKER}  # else it draws one for each run
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the server
        self._process = subprocess.Popen(
            command, stdout=self._log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
        )
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process. Idempotent."""
        self._process.kill()
        self._process.wait()
        self._log.close()

    def cpu_seconds(self) -> float:
        """Processor time that the server has used so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text("utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def run(self, requests: Sequence[Mapping[str, Any]]) -> tuple[float, list[Answer]]:
        """Send all `requests` at once; seconds from the first byte sent to the last answer's end, and the answers."""
        bodies = [json.dumps(request).encode() for request in requests]
        answers: list[bytes | BaseException] = [b""] * len(bodies)
        gate = threading.Barrier(len(bodies) + 1)
        ends = [0.0] * len(bodies)

        def ask(i: int) -> None:
            gate.wait()
            try:
                answers[i] = self._post("/completion", bodies[i])
            except OSError as error:
                answers[i] = error
            ends[i] = time.perf_counter()

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(bodies))]
        for thread in threads:
            thread.start()
        gate.wait()
        began = time.perf_counter()
        for thread in threads:
            thread.join()
        return max(ends) - began, [_read(answer) for answer in answers]

    def _post(self, path: str, body: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=_PATIENCE) as connection:
            head = (
                f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            )
            connection.sendall(head.encode() + body)
            pieces = []
            while piece := connection.recv(1 << 16):
                pieces.append(piece)
        return b"".join(pieces)

    def _wait(self) -> None:
        limit = time.monotonic() + _PATIENCE
        while time.monotonic() < limit:
            if self._process.poll() is not None:
                break
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                    connection.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
                    if connection.recv(64).startswith(b"HTTP/1.1 200"):
                        return
            except OSError:
                pass
            time.sleep(0.05)
        self._log.seek(0)
        tail = self._log.read().decode("utf-8", "replace").splitlines()[-5:]
        message = f"{NAME} did not get ready; its last lines: {' | '.join(tail)}"
        raise SystemExit(message)


def request(prompt: str, tokens: int, adapter: int | None, picture: bytes | None = None) -> dict[str, Any]:
    """Body of a greedy request for exactly `tokens` tokens with one adapter at 1.0, or with none; `picture`: a file's bytes."""
    seen = [] if picture is None else [base64.b64encode(picture).decode()]
    return {
        "prompt": {"prompt_string": prompt, "multimodal_data": seen} if seen else prompt,
        "n_predict": tokens,
        "temperature": 0,
        "samplers": ["top_k", "temperature"],  # its fastest way to the greedy token
        "top_k": 1,
        "ignore_eos": True,
        "cache_prompt": False,
        "return_tokens": True,
        "lora": [] if adapter is None else [{"id": adapter, "scale": 1.0}],
    }


def _read(answer: bytes | BaseException) -> Answer:
    if isinstance(answer, BaseException):
        raise answer
    head, _, body = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        message = f"{NAME} answered {head.splitlines()[:1]}: {body[:200]!r}"
        raise SystemExit(message)
    fields = json.loads(body)
    return Answer(tuple(fields["tokens"]), fields["timings"])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
