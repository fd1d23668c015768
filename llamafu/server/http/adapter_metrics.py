"""Numbers of adapters for routers in front of several servers, by vLLM's names where it has one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from llamafu.server.http.metrics import table

if TYPE_CHECKING:
    from llamafu.engine.bank_contents import BankContents
    from llamafu.server.protocols import ServedEngine


def adapter_metrics(stats: Any, engine: ServedEngine) -> str:
    """Return them as Prometheus reads them.

    `vllm:lora_requests_info` is what gateways choose by: which adapters run and wait, and how many may be resident. Its value
    is the time of the snapshot, as in vLLM. A bank holds rank units and not adapters, so `max_lora` is how many of the
    largest registered rank it takes.
    """
    bank, use, adapters = engine.bank_contents(), engine.adapter_use(), engine.adapters
    most = bank.units // max((info.rank for info in adapters.values()), default=1)
    info = {
        "max_lora": str(most),
        "running_lora_adapters": ",".join(use.running),
        "waiting_lora_adapters": ",".join(use.waiting),
    }
    loaded = [(_labels_of(name, adapters[name], bank), 1.0) for name in sorted(adapters)]
    free = bank.units - sum(bank.ranks.values())
    lines = [
        *table("vllm:lora_requests_info", "gauge", [(info, time.time())]),
        *table("vllm:num_requests_running", "gauge", [({}, float(stats.running))]),
        *table("vllm:num_requests_waiting", "gauge", [({}, float(stats.queued))]),
        *table("llamafu_adapter_loaded", "gauge", loaded),
        *table("llamafu_bank_units", "gauge", [({}, float(bank.units))]),
        *table("llamafu_bank_free_units", "gauge", [({}, float(free))]),
    ]
    return "\n".join([*lines, ""])


def _labels_of(name: str, info: Any, bank: BankContents) -> dict[str, str]:
    """Return an adapter's rank, where it is, and whether it stays there."""
    level = "bank" if info.digest in bank.ranks else "disk"
    return {"adapter": name, "rank": str(info.rank), "level": level, "pinned": str(info.digest in bank.pinned).lower()}
