"""Numbers for Prometheus: requests, tokens by adapter, and what the engine counts."""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

from llamafu.engine.histogram import SECONDS, HistogramCounts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from llamafu.generation.completion import Completion

KIND = "text/plain; version=0.0.4; charset=utf-8"
_BASE = ""
"""The label of requests that ran without an adapter."""
_COUNTERS = frozenset(
    "finished cancelled failed prompt_tokens completion_tokens cached_tokens draft_tokens draft_tokens_held "
    "batch_sizes page_ins page_in_seconds prefix_hits preemptions mixed_steps "
    "plain_steps fallback_steps fallback_reasons failed_steps".split()
)
"""What the engine only counts up."""
_MOST_NAMES = 200
"""Names of ignored fields that are counted by name: clients may invent any number. The others go by no name."""


class Metrics:
    """Counts since the server started. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._finished: Counter[str] = Counter()
        self._prompt: Counter[str] = Counter()
        self._completion: Counter[str] = Counter()
        self._ignored: Counter[str] = Counter()

    def answered(self, route: str, status: int) -> None:
        """Count a request; `route` is the pattern of its path, not the path."""
        with self._lock:
            self._requests[route, status] += 1

    def finished(self, completion: Completion) -> None:
        """Count an answer for every adapter that made it."""
        with self._lock:
            for name in [one.name for one in completion.lora] or [_BASE]:
                self._finished[name] += 1
                self._prompt[name] += completion.usage.prompt_tokens
                self._completion[name] += completion.usage.completion_tokens

    def ignored(self, names: Iterable[str]) -> list[str]:
        """Count fields of one request that were ignored; return those that never were before."""
        new = []
        with self._lock:
            for name in names:
                known = name in self._ignored
                if not known and len(self._ignored) < _MOST_NAMES:
                    new.append(name)
                self._ignored[name if known or len(self._ignored) < _MOST_NAMES else ""] += 1
        return new

    def text(self, stats: object = None, adapters: Mapping[str, Mapping[str, Any]] | None = None) -> str:
        """Return everything as Prometheus reads it; of `stats`, a dataclass, every number; of `adapters`, size and last use."""
        with self._lock:
            requests = [({"route": route, "status": str(status)}, count) for (route, status), count in self._requests.items()]
            tables = {
                "answers": [({"adapter": name}, count) for name, count in self._finished.items()],
                "prompt_tokens": [({"adapter": name}, count) for name, count in self._prompt.items()],
                "completion_tokens": [({"adapter": name}, count) for name, count in self._completion.items()],
            }
            ignored = [({"field": name}, count) for name, count in self._ignored.items()]
        lines = list(table("llamafu_http_requests_total", "counter", requests))
        lines += table("llamafu_ignored_fields_total", "counter", ignored)
        for name, rows in tables.items():
            lines += table(f"llamafu_{name}_total", "counter", rows)
        for name, fact in (("llamafu_adapter_bytes", "size"), ("llamafu_adapter_last_used_timestamp_seconds", "last_used")):
            known = {adapter: facts[fact] for adapter, facts in (adapters or {}).items() if facts[fact] is not None}
            lines += table(name, "gauge", [({"adapter": adapter}, float(number)) for adapter, number in known.items()])
        if dataclasses.is_dataclass(stats):
            for each in dataclasses.fields(stats):
                value, name = getattr(stats, each.name), f"llamafu_engine_{each.name}"
                if isinstance(value, HistogramCounts):
                    lines += _histogram(f"{name.removesuffix('_histogram')}_seconds", value)
                else:
                    lines += table(name, "counter" if each.name in _COUNTERS else "gauge", list(_rows(value)))
        return "\n".join([*lines, ""])


def _rows(value: Any) -> Iterator[tuple[Mapping[str, str], float]]:
    """Return the rows of one of the engine's numbers: itself, a row a key, or a row a quantile."""
    if isinstance(value, bool | int | float):
        yield {}, float(value)
    elif isinstance(value, dict):
        for key, count in value.items():
            yield {"key": str(key)}, float(count)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for each in dataclasses.fields(value):
            yield {"quantile": each.name}, float(getattr(value, each.name))


def table(name: str, kind: str, rows: Iterable[tuple[Mapping[str, str], float]]) -> Iterator[str]:
    """Yield the lines of one metric; none where it has no rows."""
    written = [f"{name}{_labels(labels)} {number:.17g}" for labels, number in rows]
    if written:
        yield f"# TYPE {name} {kind}"
        yield from written


def _histogram(name: str, counts: HistogramCounts) -> Iterator[str]:
    yield f"# TYPE {name} histogram"
    for bound, count in zip(SECONDS, counts.at_most, strict=True):
        yield f'{name}_bucket{{le="{bound:g}"}} {count}'
    yield f'{name}_bucket{{le="+Inf"}} {counts.count}'
    yield f"{name}_sum {counts.total:.17g}"
    yield f"{name}_count {counts.count}"


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(text)}"' for name, text in labels.items()) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
