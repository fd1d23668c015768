"""At least 5,000 requests that no client should send: by schemathesis from the served document, and malformed by the byte."""

import os
import shutil
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
import requests
import schemathesis
from helpers.openapi_answers import MAY_COME
from helpers.raw_http import cases, send, statuses
from helpers.served import ADMIN, served
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.generation import GenerationMode

SEED = int(os.environ.get("LLAMAFU_FUZZ_SEED", "1"))
EXAMPLES = 60  # for each operation, in either mode
MALFORMED = 3000
LEAST = 5000
MOST_GROWTH = 64 << 20  # bytes
_CHECKS = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance"),
    *("response_schema_conformance", "negative_data_rejection"),
)
load_all_checks()


@pytest.fixture
def server(real, tiny_model, tiny_adapter_a, tiny_adapter_b, tmp_path):
    shutil.copy(tiny_adapter_a, tmp_path / "a.gguf")
    shutil.copy(tiny_adapter_b, tmp_path / "0.gguf")  # the name that is made up first
    flags = ("--adapters", tmp_path, "--library", real.path, "--n-ctx", 2048, "--max-time", 0.1, "--ping", 0.5)
    with served(tiny_model, *flags) as running:
        assert running.url, running.log
        yield running


def resident(server):
    return psutil.Process(server.process.pid).memory_info().rss


def by_schema(server, examples, found):
    """Send what schemathesis makes of the document; return how many requests of which status."""
    checks = [CHECKS.get_one(name) for name in _CHECKS]
    session, counts = requests.Session(), Counter()
    for each in schemathesis.openapi.from_url(f"{server.url}/openapi.json").get_all_operations():
        operation = each.ok()
        for mode in GenerationMode:

            @seed(SEED)
            @settings(
                max_examples=examples,
                database=None,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate],
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def run(case):
                # Its own connection: an idle one may be closed at the moment it is used.
                headers = {"X-Admin-Key": ADMIN, "Connection": "close"}
                answer = case.call(headers=headers, session=session, timeout=20)
                counts[answer.status_code] += 1
                case.validate_response(answer, checks=checks)

            try:
                run()
            except Unsatisfiable:
                pass  # nothing of it can be wrong: it takes nothing
            except BaseExceptionGroup as group:
                found += [f"{operation.label}: {error!r}" for error in group.exceptions]
            except Exception as error:  # noqa: BLE001 - all of them are told at the end
                found.append(f"{operation.label}: {error!r}")
    return counts


def by_bytes(server, count, found):
    """Send malformed HTTP over eight connections at a time; return how many requests of which status."""
    where = urlsplit(server.url)

    def one(raw):
        try:
            return raw, statuses(send((where.hostname, where.port), raw))
        except TimeoutError:
            pass
        try:  # once more: this machine may have been asleep
            return raw, statuses(send((where.hostname, where.port), raw))
        except TimeoutError:
            return raw, ["hang"]

    counts, sent, kinds = Counter(), 0, defaultdict(Counter)
    with ThreadPoolExecutor(8) as pool:
        for raw, came in pool.map(one, cases(SEED, count)):
            sent += raw.requests
            counts.update(came or ["closed"])
            kinds[raw.kind].update(came or ["closed"])
            if not set(came) <= MAY_COME:
                found.append(f"{raw.kind}: {came} for {raw}"[:600])
    return sent, counts, kinds


def test_no_request_breaks_it(server, capsys):
    found = []
    by_bytes(server, 300, found)  # what it keeps once it is warm
    before = resident(server)
    by_document = by_schema(server, EXAMPLES, found)
    sent, malformed, kinds = by_bytes(server, MALFORMED, found)
    good = httpx.post(
        f"{server.url}/v1/completions", json={"prompt": "a", "max_tokens": 1}, headers={"X-Admin-Key": ADMIN}, timeout=20
    )
    growth = resident(server) - before
    with capsys.disabled():
        print(f"\nseed {SEED}: {by_document.total()} requests by the document: {dict(by_document)}")  # noqa: T201
        print(f"{sent} malformed ones: {dict(malformed)}; memory {growth / 2**20:+.1f} MiB")  # noqa: T201
        for kind, counts in kinds.items():
            print(f"  {kind:<16}{dict(counts)}")  # noqa: T201
    first = next((index for index, line in enumerate(server.log) if line.startswith("Traceback")), len(server.log))
    trace = server.log[first : first + 60]
    assert not found, "\n".join([*found[:20], *trace])
    assert not trace, "\n".join(trace)
    assert good.status_code == 200
    assert by_document.total() + sent >= LEAST
    assert growth < MOST_GROWTH
