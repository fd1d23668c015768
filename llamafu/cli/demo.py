"""`llamafu demo`: one question, answered with several mixes of adapters."""

from __future__ import annotations

import argparse
import hashlib
import queue
import re
import shutil
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llamafu._native.cpu import usable_cpus
from llamafu.cli.arguments import EXAMPLE, model_path
from llamafu.cli.side_by_side import SideBySide
from llamafu.cli.style import BOLD, DIM, Style, colour
from llamafu.errors import LlamafuError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from llamafu.engine import Engine
    from llamafu.engine.request_handle import Event
    from llamafu.generation.completion import AppliedLora, Completion
    from llamafu.lora.scales import LoraScales
    from llamafu.model.llamafu import Llamafu

_QUESTION = "Tell me about the sea."
_N_CTX, _MAX_TOKENS = 1024, 60
_BATCH_N_CTX = 2048
_FADE_STEPS = 24
_WIDTH, _INDENT = 88, "  "
_MEGA = 1e6


@dataclass(frozen=True, slots=True)
class _Mix:
    """Scales of adapters by name, with the title and the colour of their heading."""

    title: str
    colour: int
    lora: LoraScales


def _fade(step: int) -> float:
    """Return a scale that falls from 1 to 0 over the first `_FADE_STEPS` tokens."""
    return max(0.0, 1.0 - step / _FADE_STEPS)


_MIXES = (
    _Mix("base", 75, {}),
    _Mix("pirate", 178, {"pirate": 1.0}),
    _Mix("shout", 170, {"shout": 1.0}),
    _Mix("pirate and shout", 167, {"pirate": 1.0, "shout": 1.0}),
    _Mix("half a pirate", 143, {"pirate": 0.5}),
    _Mix("a pirate who fades away, token by token", 109, {"pirate": _fade}),
)


def add_parser(subparsers: Any) -> None:
    """Add `demo`."""
    text = (
        "A real model (SmolLM2-135M-Instruct, 92 MB, fetched once) answers one question as it is, with two adapters, with both "
        "at once, at half strength, and with a scale that changes while it speaks; then all of these in one batch."
    )
    parser = subparsers.add_parser("demo", help="hear two adapters change a model's voice", description=text)
    parser.add_argument("--question", type=_question, default=_QUESTION, metavar="TEXT", help="what to ask (%(default)s)")
    parser.set_defaults(run=_run)


def _question(text: str) -> str:
    if not text.strip():
        message = "the question is empty"
        raise argparse.ArgumentTypeError(message)
    return text


def _run(arguments: argparse.Namespace) -> int:
    from llamafu.examples.adapters import example_adapters
    from llamafu.model.llamafu import Llamafu

    style = Style(sys.stdout)
    messages = [{"role": "user", "content": arguments.question}]
    with Llamafu(model_path(EXAMPLE), n_ctx=_N_CTX, n_threads=_half_of_cpus()) as llm:
        for path in example_adapters().values():
            llm.load_lora_adapter(path)
        sys.stdout.write(_introduction(llm, arguments.question, style))
        began = time.perf_counter()
        answers = [_answer(llm, messages, mix, style) for mix in _MIXES]
        seconds = time.perf_counter() - began
        for adapter in llm.lora_adapters:
            adapter.unload()
        again = llm.chat(messages, temperature=0, max_tokens=_MAX_TOKENS)
    sys.stdout.write(f"\n{len(answers)} voices of one model: {_speed(answers, seconds)}.\n")
    sys.stdout.write(style(_proof(answers[0], again), BOLD) + "\n")
    _together(messages, style)
    return 0


def _together(messages: list[dict[str, str]], style: Style) -> None:
    """Answer with every mix in one batch, and print how long it took."""
    from llamafu.engine import Engine
    from llamafu.examples.adapters import example_adapters

    sys.stdout.write("\n" + style(f"The same {len(_MIXES)} again, in one batch", BOLD) + "\n\n")
    sys.stdout.flush()
    with Engine(model_path(EXAMPLE), max_sequences=len(_MIXES), n_ctx=_BATCH_N_CTX, n_threads=_half_of_cpus()) as engine:
        for path in example_adapters().values():
            engine.add_adapter(path)
        began = time.perf_counter()
        answers = _answers(engine, messages, style)
        seconds = time.perf_counter() - began
        stats = engine.stats()
    steps = stats.mixed_steps + stats.plain_steps + stats.fallback_steps
    sys.stdout.write(f"\n{len(answers)} voices in one batch: {_speed(answers, seconds)}; {stats.mixed_steps} of {steps} steps ")
    sys.stdout.write("had rows with different adapters or scales.\n")
    if stats.kernel == "python":
        sys.stdout.write('Without numba; this makes it faster: pip install "llamafu[fast]"\n')
    for reason in stats.fallback_reasons:
        sys.stdout.write(f"Not always mixed: {reason}.\n")


def _answers(engine: Engine, messages: list[dict[str, str]], style: Style) -> list[Completion]:
    """Show all answers as they grow if the terminal can redraw lines; otherwise one by one when they are complete."""
    inbox: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()
    tickets = [
        engine.submit(
            engine.request_of_chat(messages, {"lora": mix.lora, "temperature": 0, "max_tokens": _MAX_TOKENS}),
            lambda event, index=index: inbox.put((index, event)),  # type: ignore[misc]
        )
        for index, mix in enumerate(_MIXES)
    ]
    if not SideBySide.fits(sys.stdout, len(_MIXES)):
        answers = [ticket.result() for ticket in tickets]
        for mix, answer in zip(_MIXES, answers, strict=True):
            sys.stdout.write(f"{mix.title}: {' '.join(answer.text.split())}\n")
        return answers
    with SideBySide([mix.title for mix in _MIXES], [colour(mix.colour) for mix in _MIXES], style) as shown:
        running = len(tickets)
        while running:
            index, event = inbox.get()
            if isinstance(event, str):
                shown.add(index, event)
            else:
                running -= 1
                shown.end(index)
    return [ticket.result() for ticket in tickets]


def _speed(answers: list[Completion], seconds: float) -> str:
    count = sum(answer.usage.completion_tokens for answer in answers)
    return f"{count} tokens in {seconds:.1f} s, {count / seconds:.0f} tokens/s"


def _half_of_cpus() -> int:
    """Return half of the usable CPUs: enough for a small model, and on a busy machine threads rarely wait for each other."""
    return max(1, usable_cpus() // 2)


def _introduction(llm: Llamafu, question: str, style: Style) -> str:
    lines = [style("One model, two LoRA adapters", BOLD), "", f"{_INDENT}model    {llm.path.name}"]
    for adapter in llm.lora_adapters:
        info = adapter.info
        about = f"rank {info.rank} on {' '.join(info.target_modules)}, {info.nbytes / _MEGA:.1f} MB, {adapter.digest[:8]}"
        lines.append(f"{_INDENT}adapter  {adapter.name:<7} {style(about, DIM)}")
    return "\n".join([*lines, "", f"Asked of each: {style(question, BOLD)}", ""])


def _answer(llm: Llamafu, messages: list[dict[str, str]], mix: _Mix, style: Style) -> Completion:
    """Print one answer word by word below its heading, then its speed and its adapters."""
    width = min(_WIDTH, shutil.get_terminal_size().columns)
    sys.stdout.write("\n" + style(f"── {mix.title} ".ljust(width, "─"), BOLD, colour(mix.colour)) + "\n")
    stream = llm.stream_chat(messages, lora=mix.lora, temperature=0, max_tokens=_MAX_TOKENS)
    column = 0
    for word, on_new_line in _words(stream):
        if column and (on_new_line or column + 1 + len(word) > width):
            sys.stdout.write("\n")
            column = 0
        lead = " " if column else _INDENT
        sys.stdout.write(lead + word)
        sys.stdout.flush()
        column += len(lead) + len(word)
    sys.stdout.write(f"\n{_INDENT}{style(_footer(stream.completion), DIM)}\n")
    return stream.completion


def _words(pieces: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """Yield each word once it is complete, and whether a line break precedes it."""
    rest = ""
    for piece in pieces:
        rest += piece
        while match := re.match(r"(\s*)(\S+)(?=\s)", rest):
            yield match[2], "\n" in match[1]
            rest = rest[match.end() :]
    if word := rest.strip():
        yield word, "\n" in rest[: rest.index(word)]


def _footer(completion: Completion) -> str:
    """Return speed, prompt size and adapters of an answer, from its completion."""
    usage, seconds = completion.usage, completion.timings.completion
    later = usage.completion_tokens - 1  # the time of the first token belongs to the prompt
    speed = f"{later / seconds:.0f} tokens/s" if later > 0 and seconds > 0 else "one token"
    prompt = f"prompt {usage.prompt_tokens} tokens, {usage.cached_tokens} cached"
    return "  ·  ".join([speed, prompt, *map(_applied, completion.lora)])


def _applied(lora: AppliedLora) -> str:
    scale = f"{lora.scale:g}" if lora.scale == lora.final_scale else f"{lora.scale:g} to {lora.final_scale:.2g}"
    return f"{lora.name} {lora.digest[:8]} at {scale}"


def _proof(first: Completion, again: Completion) -> str:
    """Confirm that the base model's answer is the same after all adapters were unloaded; raises LlamafuError if not."""
    content = again.text.encode()
    if again.lora or again.tokens != first.tokens or content != first.text.encode():
        message = (
            f"with all adapters unloaded the base model answers {again.text!r}, not {first.text!r} as at first; "
            "please report this with what `llamafu doctor --json` prints"
        )
        raise LlamafuError(message)
    digest = hashlib.sha256(content).hexdigest()[:8]
    return f"All adapters unloaded: the base answers as at first, byte for byte ({len(content)} bytes, SHA-256 {digest})."
