"""`llamafu chat`: a conversation with a model, whose adapters can be changed during it."""

from __future__ import annotations

import argparse
import contextlib
import sys
import warnings
from typing import TYPE_CHECKING, Any

from llamafu.cli.arguments import (
    adapter_argument,
    add_adapters,
    add_model,
    add_sampling,
    load_adapters,
    open_model,
    sampling,
    scale_problem,
)
from llamafu.cli.style import BOLD, DIM, Style, colour
from llamafu.errors import ContextOverflowError, LlamafuError
from llamafu.generation.completion import Piece

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llamafu.generation.completion import Completion
    from llamafu.model.llamafu import Llamafu

_HELP = """\
/lora NAME=SCALE ...   exactly these adapters from now on, such as /lora pirate=0.5 shout=0.2; files are loaded
/lora off              the base model
/lora                  what is loaded, and what acts
/clear                 forget the conversation
/exit                  leave (so do Ctrl-D, and Ctrl-C at the prompt; Ctrl-C ends an answer)"""
_ANSWER_TOKENS = 512
_YELLOW = colour(220)


def add_parser(subparsers: Any) -> None:
    """Add `chat`."""
    text = "Talk with a model. Lines from a pipe are answered one by one; exit status 1 when one of them could not be."
    parser = subparsers.add_parser(
        "chat", help="talk with a model", description=text, epilog=_HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model(parser, n_ctx=2048)
    add_adapters(parser)
    parser.add_argument("--system", metavar="TEXT", help="what the model is told before the conversation")
    add_sampling(parser)
    parser.set_defaults(run=_run, max_tokens=_ANSWER_TOKENS)


def _run(arguments: argparse.Namespace) -> int:
    is_interactive = sys.stdin.isatty()
    with warnings.catch_warnings(), open_model(arguments) as llm:
        warnings.showwarning = _note  # type: ignore[assignment] # without the line of source code that Python adds
        conversation = _Conversation(llm, arguments)
        if is_interactive:
            conversation.say(f"{llm.path.name}; /help shows the commands")
        for line in _typed(conversation) if is_interactive else (line.rstrip("\r\n") for line in sys.stdin):
            if line.strip() == "/exit":
                break
            try:
                conversation.take(line.strip())
            except LlamafuError as error:
                conversation.failed(str(error))
    return 1 if conversation.failures and not is_interactive else 0


def _typed(conversation: _Conversation) -> Iterator[str]:
    """Yield the lines typed at a prompt that shows the active adapters, until the end of the input."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives input() history and editing
    while True:
        try:
            line = input(f"\n{conversation.mix}> ")
        except (EOFError, KeyboardInterrupt):
            sys.stdout.write("\n")
            return
        yield line


class _Conversation:
    """The messages so far; each line of input is a command or a new message."""

    def __init__(self, llm: Llamafu, arguments: argparse.Namespace) -> None:
        self._llm = llm
        self._arguments = arguments
        self._style = Style(sys.stderr)
        self._messages: list[dict[str, str]] = []
        self._clear()
        self._is_thinking = False  # reasoning was printed last
        self.failures = 0

    @property
    def mix(self) -> str:
        """The active adapters and their scales, or "base"."""
        return " + ".join(f"{name} {scale:g}" for name, scale in self._llm.active_lora_adapters.items() if scale) or "base"

    def take(self, line: str) -> None:
        """Run the command in `line`, or answer it as a message."""
        command, _, rest = line.partition(" ")
        if not line:
            return
        if not line.startswith("/"):
            self._answer(line)
        elif command == "/lora":
            self._lora(rest.split())
        elif line == "/clear":
            self._clear()
            self.say("forgotten")
        elif line == "/help":
            self.say(_HELP)
        else:
            self.failed(f"there is no {line}; /help shows the commands")

    def say(self, text: str) -> None:
        """Print a remark to stderr, so that stdout has answers only."""
        sys.stdout.flush()
        sys.stderr.write(self._style(text, DIM) + "\n")

    def failed(self, text: str) -> None:
        """Print an error and count it."""
        self.failures += 1
        sys.stdout.flush()
        sys.stderr.write(f"{self._style('llamafu: error:', BOLD, _YELLOW)} {' '.join(text.split())}\n")

    def _clear(self) -> None:
        system = self._arguments.system
        self._messages = [] if system is None else [{"role": "system", "content": system}]

    def _answer(self, line: str) -> None:
        messages = [*self._messages, {"role": "user", "content": line}]
        try:
            stream = self._llm.stream_chat(messages, **sampling(self._arguments))
        except ContextOverflowError as error:
            numbers = str(error).partition(";")[0]
            message = f"{numbers}; /clear forgets the conversation, and a larger --n-ctx gives it more room"
            raise ContextOverflowError(message) from error
        with stream:
            try:
                for piece in stream:
                    self._show(piece)
            except KeyboardInterrupt:
                if not sys.stdin.isatty():
                    raise
                stream.close()
        sys.stdout.write("\n")
        completion = stream.completion
        thoughts = {"reasoning_content": completion.reasoning} if completion.reasoning else {}
        self._messages = [*messages, {"role": "assistant", "content": completion.text, **thoughts}]
        self._explain_end(completion)

    def _show(self, piece: str) -> None:
        """Print a piece of an answer; reasoning goes to stderr, so that stdout has answers only."""
        reasoning = piece.reasoning if isinstance(piece, Piece) else ""
        if reasoning:
            sys.stderr.write(self._style(reasoning, DIM))
            sys.stderr.flush()
        if self._is_thinking and len(piece):
            sys.stderr.write("\n")
            sys.stderr.flush()
        self._is_thinking = (self._is_thinking or bool(reasoning)) and not len(piece)
        sys.stdout.write(piece)
        sys.stdout.flush()

    def _explain_end(self, completion: Completion) -> None:
        if completion.finish_reason == "cancelled":
            self.say("(stopped)")
        elif completion.finish_reason == "length":
            used = completion.usage
            if used.completion_tokens != self._arguments.max_tokens:
                self.say(f"(the context is full, {used.total_tokens} tokens; /clear forgets the conversation)")
            else:
                self.say(f"(stopped after {used.completion_tokens} tokens; --max-tokens allows more)")

    def _lora(self, words: list[str]) -> None:
        if words == ["off"]:
            self._llm.clear_all_lora_adapters()
        elif words:
            try:
                adapters = [adapter_argument(word) for word in words]
            except argparse.ArgumentTypeError as error:
                self.failed(str(error))
                return
            if problem := scale_problem(adapters, self._arguments.scale_range):
                self.failed(problem)
                return
            self._llm.set_lora_adapters(load_adapters(self._llm, adapters))
        loaded = ", ".join(adapter.name for adapter in self._llm.lora_adapters) or "none"
        self.say(f"acting: {self.mix} (loaded: {loaded})")


def _note(message: Warning | str, *_: Any) -> None:
    sys.stderr.write(f"llamafu: note: {message}\n")
