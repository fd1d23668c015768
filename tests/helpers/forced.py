"""An engine whose requests are made to say given tokens, and what their logits are compared with."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from llamafu import Llamafu
from llamafu.engine import Engine, Request

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

# F32 memory and no flash attention: then company changes only the last bits.
STRICT = {"n_threads": 1, "flash_attn": "off", "type_k": "f32", "type_v": "f32"}
LARGEST_DIFFERENCE = 1e-3
LARGEST_KL = 1e-6


@dataclass
class Case:
    """A request with what it is made to say; `rows` gets its logits after the prompt and after each said token.

    The prompt is token ids, or a text with a marker for each of `media`.
    """

    prompt: list[int] | str
    said: list[int]
    lora: Mapping[str, Any] = field(default_factory=dict)
    priority: int = 0
    rows: list[np.ndarray] = field(default_factory=list)
    media: Sequence[object] = ()

    def request(self) -> Request:
        options = {"lora": self.lora, "priority": self.priority, "media": self.media}
        return Request(prompt=self.prompt, max_tokens=len(self.said) + 1, temperature=0, **options)


@contextmanager
def forced(monkeypatch: Any) -> Iterator[dict[int, Case]]:
    """Let every sequence of every engine note its logits and say what its case says; cases by the id of their request."""
    scripts: dict[int, Case] = {}

    class TokenSampler:
        is_complete = False
        seed = 0

        def __init__(self, _model: Any, request: Request, _prompt: Sequence[int], *_: None) -> None:
            self.case = scripts[id(request)]

        def pick(self, _context: Any, _row: int, logits: np.ndarray) -> tuple[int, None]:
            self.case.rows.append(logits.copy())
            step = len(self.case.rows) - 1
            return (self.case.said[step] if step < len(self.case.said) else 0), None

        def close(self) -> None:
            pass

    with monkeypatch.context() as patch:
        patch.setattr("llamafu.engine.sequence_pool.TokenSampler", TokenSampler)
        yield scripts


def run_forced(engine: Engine, monkeypatch: Any, cases: Sequence[Case]) -> list[Any]:
    """Run cases at once and return their completions; each case then has its rows."""
    with forced(monkeypatch) as scripts:
        requests = []
        for case in cases:
            case.rows.clear()
            requests.append(case.request())
            scripts[id(requests[-1])] = case
        completions = engine.complete_many(requests)
    for case in cases:
        assert len(case.rows) == len(case.said) + 1
    return completions


def alone(llm: Llamafu, case: Case) -> np.ndarray:
    """Return the logits of the same request by itself, with plain libllama adapters."""
    llm._session.cache.clear()
    return llm.next_logits(case.prompt, case.said, lora=case.lora, media=case.media)


def kl(reference: np.ndarray, ours: np.ndarray) -> np.ndarray:
    """Divergence of each row from the reference's, in nats."""

    def logs(rows: np.ndarray) -> np.ndarray:
        rows = rows.astype(np.float64) - rows.max(axis=-1, keepdims=True)
        return rows - np.log(np.exp(rows).sum(axis=-1, keepdims=True))

    p, q = logs(reference), logs(ours)
    return (np.exp(p) * (p - q)).sum(axis=-1)


def check(cases: Sequence[Case], references: Sequence[np.ndarray], *, largest: float = LARGEST_DIFFERENCE) -> None:
    """Every row of every case is its reference's."""
    for number, (case, reference) in enumerate(zip(cases, references, strict=True)):
        ours = np.array(case.rows)
        difference, divergence = np.abs(ours - reference).max(axis=-1), kl(reference, ours)
        assert difference.max() <= largest, f"case {number}: {case.lora}: differs by {difference}"
        assert divergence.max() <= LARGEST_KL, f"case {number}: {case.lora}: diverges by {divergence}"


def opened(model: Path, adapters: Sequence[Path], **options: Any) -> tuple[Engine, Llamafu]:
    """Open an engine, and the plain model beside it, with the same adapters."""
    engine = Engine(model, **{**STRICT, "n_ctx": 1024, "n_batch": 128, "bank_dtype": "f32", **options})
    n_ctx, mmproj = max(512, options.get("n_ctx", 0)), options.get("mmproj_path")
    llm = Llamafu(model, n_ctx=n_ctx, n_batch=128, mmproj_path=mmproj, **STRICT)
    for path in adapters:
        engine.add_adapter(path)
        llm.load_lora_adapter(path)
    return engine, llm
