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
from llamafu.generation.media.medium import read_medium
from llamafu.generation.messages import arguments_of
from llamafu.generation.tools.function_tools import FunctionTools

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from llamafu.generation.completion import Completion
    from llamafu.generation.tool_call import ToolCall
    from llamafu.model.llamafu import Llamafu

_HELP = """\
/lora NAME=SCALE ...   exactly these adapters from now on, such as /lora pirate=0.5 shout=0.2; files are loaded
/lora off              the base model
/lora                  what is loaded, and what acts
/image FILE            show a picture with the next message (--mmproj); /audio FILE plays a sound
/clear                 forget the conversation
/exit                  leave (so do Ctrl-D, and Ctrl-C at the prompt; Ctrl-C ends an answer)"""
_ANSWER_TOKENS = 512
_MOST_ROUNDS = 8
"""Answers to one message that may call tools; then the user is asked again."""
_LONGEST_SHOWN = 400
"""Characters of a tool's result that are shown; the model gets all of it."""
_YELLOW = colour(220)
_MEDIA = {"/image": "image", "/audio": "audio"}


def add_parser(subparsers: Any) -> None:
    """Add `chat`."""
    text = "Talk with a model. Lines from a pipe are answered one by one; exit status 1 when one of them could not be."
    parser = subparsers.add_parser(
        "chat", help="talk with a model", description=text, epilog=_HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model(parser, n_ctx=2048, media=True)
    add_adapters(parser)
    parser.add_argument("--system", metavar="TEXT", help="what the model is told before the conversation")
    parser.add_argument(
        "--tools",
        metavar="FILE.py",
        help="functions of a Python file that the model may call; they are run, and their results sent back",
    )
    add_sampling(parser)
    parser.set_defaults(run=_run, max_tokens=_ANSWER_TOKENS)


def _run(arguments: argparse.Namespace) -> int:
    is_interactive = sys.stdin.isatty()
    tools = None if arguments.tools is None else FunctionTools.of_file(arguments.tools)
    with warnings.catch_warnings(), open_model(arguments) as llm:
        warnings.showwarning = _note  # type: ignore[assignment] # without the line of source code that Python adds
        conversation = _Conversation(llm, arguments, tools)
        if is_interactive:
            conversation.say(f"{llm.path.name}; /help shows the commands")
        for line in _typed(conversation) if is_interactive else (line.rstrip("\r\n") for line in sys.stdin):
            if line.strip() == "/exit":
                break
            try:
                conversation.take(line.strip())
            except (LlamafuError, TypeError) as error:
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

    def __init__(self, llm: Llamafu, arguments: argparse.Namespace, tools: FunctionTools | None) -> None:
        self._llm = llm
        self._arguments = arguments
        self._tools = tools
        self._style = Style(sys.stderr)
        self._messages: list[dict[str, Any]] = []
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
        elif command in _MEDIA and rest:
            self._attach(_MEDIA[command], rest)
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

    def _attach(self, kind: str, path: str) -> None:
        """Keep an image or a sound for the next message; it is read now, so that a wrong one is told now."""
        try:
            read_medium(path)
        except (LlamafuError, OSError) as error:
            self.failed(f"{path}: {error}")
            return
        self._attached.append({"type": kind, kind: path})
        self.say(f"{path} goes with the next message")

    def _clear(self) -> None:
        self._attached: list[dict[str, Any]] = []
        system = self._arguments.system
        self._messages = [] if system is None else [{"role": "system", "content": system}]

    def _answer(self, line: str) -> None:
        """Let the model answer, and again with the results of the tools that it calls; an error changes nothing."""
        content = [*self._attached, {"type": "text", "text": line}] if self._attached else line
        messages = [*self._messages, {"role": "user", "content": content}]
        for _ in range(_MOST_ROUNDS):
            completion = self._say_next(messages)
            calls = completion.tool_calls if completion.finish_reason == "tool_calls" else ()
            messages.append(_as_message(completion, calls))
            if not calls:
                self._explain_end(completion)
                break
            messages += map(self._result_of, calls)
        else:
            self.say(f"(stopped after {_MOST_ROUNDS} answers that called tools)")
        self._messages = messages
        self._attached = []

    def _result_of(self, call: ToolCall) -> dict[str, Any]:
        """Show a call, run it, show its result, and return the message of it."""
        assert self._tools is not None  # noqa: S101 - without tools no answer has calls
        self.say(f"{call.name}({call.arguments})")
        try:
            result = self._tools.call(call)
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            result = "error: the user stopped it"
        self.say(f"= {result if len(result) <= _LONGEST_SHOWN else f'{result[:_LONGEST_SHOWN]}...'}")
        return {"role": "tool", "tool_call_id": call.id, "name": call.name, "content": result}

    def _say_next(self, messages: list[dict[str, Any]]) -> Completion:
        """Let the model say the next message, and print it as it comes."""
        tools = None if self._tools is None else self._tools.descriptions
        try:
            stream = self._llm.stream_chat(messages, tools=tools, **sampling(self._arguments))
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
        completion = stream.completion
        if completion.text or not completion.tool_calls:
            sys.stdout.write("\n")
        return completion

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


def _as_message(completion: Completion, calls: Sequence[ToolCall]) -> dict[str, Any]:
    """Return an answer as a message of the history. Arguments that are no JSON, of which the result tells, are left out."""
    message: dict[str, Any] = {"role": "assistant", "content": completion.text}
    if completion.reasoning:
        message["reasoning_content"] = completion.reasoning
    if calls:
        message["tool_calls"] = written = []
        for call in calls:
            function = {"name": call.name, "arguments": call.arguments}
            if arguments_of({"function": function}) is None:
                function["arguments"] = "{}"
            written.append({"id": call.id, "type": "function", "function": function})
    return message


def _note(message: Warning | str, *_: Any) -> None:
    sys.stderr.write(f"llamafu: note: {message}\n")
