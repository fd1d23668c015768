"""Stopping: a signal under running streams loses nothing that was finished, and the process ends with status 0."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from llamafu.client import AsyncTabbyClient

PROGRAM = """
import gc
import sys
from helpers.serving import API, FakeEngine
from llamafu.server.auth.keys import Guard, KeyRing
from llamafu.server.run import serve
from llamafu.server.settings import Settings

engine = FakeEngine()
engine.pace = float(sys.argv[1])
settings = Settings(model="smol.gguf", port=0, grace=float(sys.argv[2]))


def tell(text):
    assert gc.get_freeze_count() > 10_000, "collecting garbage looks at everything that the server is made of"
    print(text, flush=True)


print(serve(engine, settings, Guard(lambda: KeyRing([API])), tell), flush=True)
assert gc.get_freeze_count() == 0
"""

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")


@pytest.fixture
def start():
    processes = []

    def run(pace, grace):
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        command = [sys.executable, "-c", PROGRAM, str(pace), str(grace)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
        return processes[-1], processes[-1].stdout.readline().split()[-1]

    yield run
    for process in processes:
        process.kill()
        process.communicate()


async def stream_and_stop(process, url, count, words):
    """Start streams, send SIGTERM once all of them speak, and return their texts and how they ended."""
    speaking = 0

    async def one(client):
        nonlocal speaking
        pieces, reason = [], None
        async for chunk in client.completions.stream(" ".join(["x"] * words), max_tokens=words):
            speaking += chunk.text != "" and not pieces
            if speaking == count:
                speaking += 1
                process.send_signal(signal.SIGTERM)
            pieces.append(chunk.text)
            reason = next((choice.finish_reason for choice in chunk.choices), reason)
        return len("".join(pieces).split()), reason

    async with AsyncTabbyClient(url, api_key="my-api-key") as client:
        return await asyncio.gather(*(one(client) for _ in range(count)))


def test_streams_that_can_finish_do(start):
    process, url = start(0.01, 20)
    ends = asyncio.run(stream_and_stop(process, url, 16, 40))
    assert ends == [(40, "stop")] * 16
    assert process.wait(5) == 0
    assert process.stdout.read() == "True\n"


def test_streams_that_cannot_finish_are_ended_in_good_order(start):
    process, url = start(0.05, 1)
    ends = asyncio.run(stream_and_stop(process, url, 16, 120))
    assert {reason for _, reason in ends} == {"length"}
    assert all(0 < count < 120 for count, _ in ends)
    assert process.wait(5) == 0


def test_nothing_runs(start):
    process, url = start(0, 20)
    assert httpx.get(f"{url}/health").status_code == 200
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 0


def test_an_address_that_is_taken(start):
    _, url = start(0, 1)
    program = PROGRAM.replace("port=0", f"port={url.rpartition(':')[2]}")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", program, "0", "1"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=20, check=False)
    assert (done.returncode, done.stdout) == (0, "False\n")
    assert "address already in use" in done.stderr
