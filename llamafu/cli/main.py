"""`llamafu COMMAND`: find the command, run it, and turn what goes wrong into one line and an exit status."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import logging
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

from llamafu._version import __version__
from llamafu.errors import LlamafuError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

COMMANDS = tuple("demo complete chat inspect check convert compare merge bake sweep adapters serve bench lib doctor".split())
"""Modules of `llamafu.cli`, in the order of `--help`.

Each has `add_parser(subparsers)`, which sets the default `run`: a function of the parsed arguments that returns the
exit status. They import what is heavy (NumPy included) inside `run`.
"""

FAILED, USAGE, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141
_SIGNALLED = 128
"""Plus the signal's number: the status of what it ended, as a shell has it."""


class Parser(argparse.ArgumentParser):
    """An argument parser that knows `--debug` at every level, so that it may stand anywhere on the line."""

    def __init__(self, **options: Any) -> None:  # argparse makes subparsers with options of its own
        super().__init__(**{"allow_abbrev": False, **options})
        self.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks and the library's log"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0, 1 (failed), 2 (usage), 130 (Ctrl-C) or 141 (the reader of a pipe left).

    It is 128 + the number of a signal that ended it.
    """
    try:
        words = sys.argv[1:] if argv is None else argv
        return _run(_parser(words).parse_args(words))
    except SystemExit as stop:  # --help, --version, or a usage error; argparse has printed what there is to say
        return stop.code if isinstance(stop.code, int) else USAGE


def _run(arguments: argparse.Namespace) -> int:
    debug = getattr(arguments, "debug", False)
    _route_logs(debug=debug)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a model may say what the terminal's encoding cannot
    try:
        with _ended_in_order():
            status: int = arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # What is still buffered must not raise once more at exit.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (LlamafuError, OSError) as error:
        return _failed(str(error), debug=debug)
    except Exception as error:  # noqa: BLE001 - a bug of ours is one line too, and says how to see more
        return _failed(f"{type(error).__name__}: {error} (this is a bug; --debug shows where)", debug=debug)
    return status


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the command like Ctrl-C does, so that nothing unfinished stays on the disk."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(_SIGNALLED + number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    before = {number: signal.signal(number, end) for number in numbers if signal.getsignal(number) is signal.SIG_DFL}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _parser(words: Sequence[str] = ()) -> Parser:
    """Make the parser for a command line: with every command, or the one that it begins with, which is faster."""
    parser = Parser(prog="llamafu", description="LoRA adapters on llama.cpp: load, swap, blend, scale and inspect them.")
    parser.add_argument("--version", action="version", version=f"llamafu {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in words[:1] if words and words[0] in COMMANDS else COMMANDS:
        importlib.import_module(f"llamafu.cli.{name}").add_parser(subparsers)
    return parser


def _failed(message: str, *, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exc()
    sys.stderr.write(f"llamafu: error: {' '.join(message.split())}\n")
    return FAILED


def _route_logs(*, debug: bool) -> None:
    """Keep the library's chatter off the terminal unless it is asked for."""
    logger = logging.getLogger("llamafu")
    if debug:
        logging.basicConfig(level=logging.DEBUG, format="%(name)s: %(message)s")
    elif not logger.handlers:
        logger.addHandler(logging.NullHandler())
