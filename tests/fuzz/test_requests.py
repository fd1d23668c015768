"""Wild requests to a live server: the process lives, each is answered in time, and a plain stream goes on beside them.

A few of each kind in `make test`; LLAMAFU_FUZZ_COUNT says how many, and LLAMAFU_FUZZ_SEED which, in `make fuzz`.
"""

import os
import re
import shutil
from pathlib import Path

import httpx
import numpy as np
from helpers.bombarding import Beside, bombard, in_flight
from helpers.served import API, served
from helpers.wild_requests import KINDS, wild_requests

SEED = int(os.environ.get("LLAMAFU_FUZZ_SEED", "1"))
MOST_MEMORY = 1.5e9
"""Bytes of the server: what requests leave behind must not grow with their number."""
COUNT = int(os.environ.get("LLAMAFU_FUZZ_COUNT", "0")) or 6 * len(KINDS)


def test_no_request_ends_or_holds_up_the_server(real, tiny_model, tiny_adapter_a, tmp_path, capsys):
    shutil.copy(tiny_adapter_a, tmp_path / "a.gguf")
    flags = ("--adapters", tmp_path, "--library", real.path, "--n-ctx", 4096, "--max-queue", 64)
    with served(tiny_model, *flags) as server:
        assert server.url, server.log
        with Beside(server.url) as beside:
            counts, wrong, flights = bombard(server.url, wild_requests(SEED, COUNT))
        after = httpx.post(f"{server.url}/v1/completions", json={"prompt": "a", "max_tokens": 1}, headers={"X-Api-Key": API})
        alive = server.process.poll() is None
        memory = most_memory(server.process.pid)
    gaps = np.sort(beside.gaps) * 1000
    longest = max(ended - began for began, ended, _ in flights)
    lines = [
        f"seed {SEED}: {COUNT} requests, the longest {longest:.2f} s; between two tokens of a plain stream beside them:",
        f"  p50 {np.median(gaps):.1f}, p99 {np.quantile(gaps, 0.99):.1f}, at most {gaps[-1]:.1f} ms of {len(gaps)}",
        f"  the server took at most {memory / 1e6:.0f} MB",
        "  in flight beside the longest of these gaps:",
        *(f"    {line}" for line in in_flight(flights, beside.longest)),
        *(f"  {kind:<22}{dict(statuses)}" for kind, statuses in counts.items()),
    ]
    with capsys.disabled():
        print("", *lines, sep="\n")  # noqa: T201
    assert alive, server.log[-30:]
    assert not wrong, "\n".join([f"{len(wrong)} in all", *wrong[:20], *server.log[-20:]])
    assert not beside.failures, beside.failures
    assert after.status_code == 200
    assert memory < MOST_MEMORY


def most_memory(process):
    """Return the most bytes of memory that a process has had, 0 where the system does not tell."""
    status = Path(f"/proc/{process}/status")
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text("utf-8"))[1]) if status.exists() else 0
