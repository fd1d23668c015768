"""One workload, K greedy requests at once, as each side runs it. Every run has prompts of its own, so no cache can help."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from _bare import BareLoop
from _llama_server import LlamaServer, request

from llamafu.engine import Engine, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from llamafu.lora.scales import Scale

TOKENS = 64
ROOM = 128  # tokens of memory for each sequence
_runs = itertools.count()


@dataclass(frozen=True)
class Setting:
    """What both sides have in common."""

    model: str
    path: Path
    adapters: Sequence[Path]
    k: int
    threads: int
    flash_attn: Literal["on", "off"]
    library: Path | None
    """The folder of the libllama for our side; None takes the one that Llamafu finds."""
    gpu_layers: int = 0
    tokens: int = TOKENS
    """New tokens of each request, of `server_sides` and of `engine_side` where it is told."""


@dataclass(frozen=True)
class Run:
    """One run of one side."""

    seconds: float
    answers: list[tuple[int, ...]]

    @property
    def rate(self) -> float:
        """New tokens of all requests by the time from the first request's start to the last one's end."""
        return sum(map(len, self.answers)) / self.seconds


def prompts(k: int) -> list[str]:
    """`k` prompts that differ from the first characters on, and from those of every run before; 18 tokens each."""
    run = next(_runs)
    return [f"{i:02d}{run:04d} Once upon a time there was a little fox who" for i in range(k)]


def server_sides(
    setting: Setting, tools: Path, stack: ExitStack, texts: list[str] | None = None
) -> dict[str, Callable[[], Run]]:
    """`llama-server` with a slot for each request: all adapters different, all the same. New prompts, or always `texts`."""
    server = stack.enter_context(
        LlamaServer(
            tools,
            setting.path,
            setting.adapters,
            slots=setting.k,
            n_ctx=ROOM * setting.k,
            threads=setting.threads,
            flash_attn=setting.flash_attn,
            gpu_layers=setting.gpu_layers,
        )
    )
    print(f"   llama-server {' '.join(server.flags)} --lora ({len(setting.adapters)} files) --lora-init-without-apply")

    def run(choose: Callable[[int], int]) -> Run:
        bodies = [request(prompt, setting.tokens, choose(i)) for i, prompt in enumerate(texts or prompts(setting.k))]
        seconds, answers = server.run(bodies)
        return Run(seconds, [answer.tokens for answer in answers])

    return {"server distinct": lambda: run(lambda i: i), "server same": lambda: run(lambda _: 0)}


def open_engine(setting: Setting, stack: ExitStack, kernel: Literal["auto", "compiled", "python", "none"] = "auto") -> Engine:
    """Make an engine with the setting's adapters registered as "0", "1", and so on."""
    engine = stack.enter_context(
        Engine(
            setting.path,
            max_sequences=setting.k,
            bank_rank=max(128, 8 * setting.k),
            n_ctx=ROOM * setting.k,
            n_threads=setting.threads,
            flash_attn=setting.flash_attn,
            library=setting.library,
            kernel=kernel,
            n_gpu_layers=setting.gpu_layers,
        )
    )
    for i, path in enumerate(setting.adapters):
        engine.add_adapter(path, name=str(i))
    return engine


def engine_side(
    engine: Engine, k: int, choose: Callable[[int], dict[str, Scale]], texts: list[str] | None = None, *, tokens: int = TOKENS
) -> Callable[[], Run]:
    """The engine with `k` requests at once; request i runs with the adapters `choose(i)`. New prompts, or always `texts`."""

    def run() -> Run:
        requests = [
            Request(prompt=prompt, lora=choose(i), max_tokens=tokens, temperature=0, ignore_eos=True)
            for i, prompt in enumerate(texts or prompts(k))
        ]
        began = time.perf_counter()
        done = engine.complete_many(requests)
        return Run(time.perf_counter() - began, [completion.tokens for completion in done])

    return run


def bare_side(setting: Setting, stack: ExitStack) -> Callable[[], Run]:
    """A bare loop of llama_decode with the first adapter for all: see `_bare.py`."""
    return _elsewhere(_serve_bare, setting, stack)


def python_side(setting: Setting, stack: ExitStack) -> Callable[[], Run]:
    """An engine without compiled code, mixed."""
    return _elsewhere(_serve_python, setting, stack)


def _elsewhere(serve: Callable[[Setting, Any], None], setting: Setting, stack: ExitStack) -> Callable[[], Run]:
    """Run a side in a process of its own.

    libgomp counts the threads of all its users in a process, and beyond the number of CPUs it lets them sleep at every
    barrier, which slows all.
    """
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    child = spawn.Process(target=serve, args=(setting, theirs), daemon=True)
    child.start()

    def end() -> None:
        ours.send(None)
        child.join()

    stack.callback(end)

    def run() -> Run:
        ours.send(prompts(setting.k))
        seconds, answers = ours.recv()
        return Run(seconds, answers)

    return run


def _serve_bare(setting: Setting, pipe: Any) -> None:
    """Answer the lists of prompts that come through `pipe`, until None comes."""
    with open_bare(setting) as bare:
        while (texts := pipe.recv()) is not None:
            began = time.perf_counter()
            made = bare.run([bare.tokenize(text) for text in texts], TOKENS, setting.adapters[0])
            pipe.send((time.perf_counter() - began, [tuple(answer) for answer in made]))


def _serve_python(setting: Setting, pipe: Any) -> None:
    """Answer the lists of prompts that come through `pipe`, until None comes."""
    with ExitStack() as stack:
        engine = open_engine(setting, stack, "python")
        while (texts := pipe.recv()) is not None:
            run = engine_side(engine, setting.k, lambda i: {str(i): 1.0}, texts)()
            pipe.send((run.seconds, run.answers))


def open_bare(setting: Setting) -> BareLoop:
    """Make the bare loop's context."""
    return BareLoop(
        setting.path,
        setting.library,
        sequences=setting.k,
        n_ctx=ROOM * setting.k,
        threads=setting.threads,
        flash_attn=setting.flash_attn,
    )


def in_turn(sides: dict[str, Callable[[], Run]], rounds: int) -> dict[str, list[float]]:
    """Run every side once for warmth, then in turn `rounds` times; tokens per second by side."""
    for side in sides.values():
        side()
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            rates[name].append(side().rate)
    return rates


def agreement(one: Any, other: Any) -> int:
    """How many tokens two answers have in common from the start."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
