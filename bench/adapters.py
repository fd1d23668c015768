"""Loading an adapter, and changing adapters and scales: our time against libllama's own, in turn."""

from __future__ import annotations

import statistics
import sys
import time
from typing import TYPE_CHECKING

import _conditions as conditions

from llamafu import Llamafu
from llamafu.adapters import file as adapter_file
from llamafu.examples.model import example_model
from llamafu.model.session import state_switch

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 50
PIRATE = conditions.ADAPTERS / "pirate.gguf"


def load_bare(llm: Llamafu) -> None:
    """Nothing but libllama's loader, from the path."""
    library, model = llm._session.instance.library, llm._session.instance.model  # noqa: SLF001
    pointer = library.lib.llama_adapter_lora_init(model.pointer, str(PIRATE).encode())
    library.lib.llama_adapter_lora_free(pointer)


def load_first(llm: Llamafu) -> None:
    """Everything: reading, hashing, checking, comparing with the base, loading."""
    adapter_file._sound.clear()  # noqa: SLF001
    llm.load_lora_adapter(PIRATE).unload()


def load_known(llm: Llamafu) -> None:
    """The same when this content was checked before."""
    llm.load_lora_adapter(PIRATE).unload()


def change_times(llm: Llamafu, change: Callable[[int], object]) -> list[float]:
    """Seconds of a change of the active set, until the context has it (libllama's own call included)."""
    context = llm._session.instance.context  # noqa: SLF001
    times = []
    for i in range(ROUNDS):
        began = time.perf_counter()
        change(i)
        lora = llm._adapters.lora_set(None)  # noqa: SLF001
        state_switch(context, lora)(lora.state(lora.first))
        times.append(time.perf_counter() - began)
    return times


def main() -> int:
    """Print every figure beside its limit; exit status 1 when one is over."""
    conditions.show(
        f"adapters: pirate (rank 8, {PIRATE.stat().st_size / 1e6:.2f} MB, F16), {ROUNDS} rounds, both sides in turn"
    )
    good = True
    with Llamafu(example_model(), n_ctx=256) as llm:
        began = time.perf_counter()
        llm.load_lora_adapter(PIRATE).unload()
        print(f"   very first load of the process (imports, probing decode): {(time.perf_counter() - began) * 1e3:.1f} ms")
        times = conditions.in_turn(
            {
                "libllama alone": lambda: load_bare(llm),
                "unknown": lambda: load_first(llm),
                "known digest": lambda: load_known(llm),
            },
            ROUNDS,
        )
        for side, values in times.items():
            print(f"   load and free, {side:15} {conditions.milliseconds(values)}")
        good &= conditions.verdict("load, in all", statistics.median(times["unknown"]) * 1e3, 12, " ms")
        over = [a - b for a, b in zip(times["known digest"], times["libllama alone"], strict=True)]
        good &= conditions.verdict("load of a known digest, over libllama's own", statistics.median(over) * 1e3, 2, " ms")
        a = llm.load_lora_adapter(PIRATE)
        b = llm.load_lora_adapter(conditions.ADAPTERS / "shout.gguf")
        changes = {
            "change a scale": lambda i: a.apply((i % 10 + 1) / 10),
            "apply again": lambda i: llm.set_lora_adapters({a: 1.0} if i % 2 else {b: 1.0}),
        }
        for name, change in changes.items():
            values = change_times(llm, change)
            print(f"   {name:15} {conditions.milliseconds(values)}, libllama's call included")
            good &= conditions.verdict(name, statistics.median(values) * 1e3, 1, " ms")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
