"""Send many requests to a live server, and measure a plain stream beside them."""

import json
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx

from helpers.served import API

PATIENCE = 10.0
"""Seconds in which every request has to be answered whole."""
LEGAL = {200, 400, 404, 413, 429}
PLAIN = {"prompt": "hello", "max_tokens": 1500, "temperature": 0, "ignore_eos": True, "stream": True}


class Beside:
    """A plain client, streaming again and again until the block ends: `gaps`, in seconds, between events of one stream.

    `longest` is when the longest of them began and ended, by `time.perf_counter`.
    """

    def __init__(self, url):
        self._url = url
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._stream)
        self.gaps = []
        self.longest = (0.0, 0.0)
        self.failures = []

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stopped.set()
        self._thread.join()

    def _stream(self):
        headers = {"X-Api-Key": API}
        while not self._stopped.is_set():
            try:
                with httpx.stream("POST", f"{self._url}/v1/completions", json=PLAIN, headers=headers, timeout=60) as answer:
                    self._read(answer)
            except httpx.HTTPError as error:
                self.failures.append(repr(error))
                return

    def _read(self, answer):
        if answer.status_code == 429:
            time.sleep(0.05)
            return
        if answer.status_code != 200:
            self.failures.append(f"{answer.status_code}: {answer.read()[:300]}")
            self._stopped.set()
            return
        last = None
        for line in answer.iter_lines():
            now = time.perf_counter()
            if line.startswith("data: ") and '"error"' in line:
                self.failures.append(line[:300])
            if line.startswith("data: "):
                if last is not None:
                    self.gaps.append(now - last)
                    self.longest = max(self.longest, (last, now), key=lambda span: span[1] - span[0])
                last = now
            if self._stopped.is_set():
                return


def bombard(url, requests, *, workers=4):
    """Send all of them; return how many came back with which status by kind, every wrong answer, and when each was in flight.

    The last is a list of (begin, end, request), by `time.perf_counter`.
    """
    counts, wrong, flights = {}, [], []

    def one(wild):
        began = time.perf_counter()
        try:
            answer = client.post(url + wild.path, content=wild.body)
        except httpx.HTTPError as error:
            return wild, repr(error), "", (began, time.perf_counter())
        return wild, answer.status_code, answer.text, (began, time.perf_counter())

    headers = {"X-Api-Key": API, "Content-Type": "application/json"}
    with httpx.Client(headers=headers, timeout=60) as client, ThreadPoolExecutor(workers) as pool:
        for wild, status, text, (began, ended) in pool.map(one, requests):
            counts.setdefault(wild.kind, Counter())[status] += 1
            flights.append((began, ended, wild))
            seconds = ended - began
            broken = status == 200 and '"server_error"' in text
            if status not in LEGAL or broken or seconds > PATIENCE or (status != 200 and not _worded(text)):
                wrong.append(f"{wild.kind}: {status} after {seconds:.1f} s for {wild.path} {wild.body[:300]!r}: {text[:300]}")
    return counts, wrong, flights


def in_flight(flights, span):
    """Return a line for each request that was in flight in a span of time, with when it came and went, in ms from its begin."""
    began, ended = span
    return [
        f"{wild.kind}: {(first - began) * 1000:+.0f} to {(last - began) * 1000:+.0f} ms, "
        f"{len(wild.body):,} bytes for {wild.path}: {wild.body[:160]!r}"
        for first, last, wild in flights
        if first < ended and last > began
    ]


def _worded(text):
    """Whether an error says something, on one line."""
    message = json.loads(text)["error"]["message"]
    return bool(message) and "\n" not in message
