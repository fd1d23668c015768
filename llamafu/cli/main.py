"""`llamafu COMMAND`: parse the command line, run the command, and report a failure as one line and an exit status."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

from llamafu._util.system.processes import ending_signals, is_closed_pipe, piped_encoding
from llamafu._version import __version__
from llamafu.cli.parser import Parser
from llamafu.errors import LlamafuError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence
    from types import FrameType

COMMANDS = tuple("demo complete chat inspect check convert compare merge bake sweep adapters serve bench lib doctor".split())
"""Modules of `llamafu.cli`, in the order of `--help`.

Each has `add_parser(subparsers)`, which sets the default `run`: a function that takes the parsed arguments and returns
the exit status. Slow imports, such as NumPy's, are inside `run`, so that `--help` is fast.
"""

FAILED, USAGE, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141
_SIGNALLED = 128
"""128 plus the number of a signal is the exit status of a command that it ended, as in a shell."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    It is 0, 1 (failed), 2 (usage error), 130 (Ctrl-C), 141 (the reader of the pipe was closed), or 128 plus the number
    of the signal that ended the command.
    """
    try:
        words = sys.argv[1:] if argv is None else argv
        arguments, unknown = _parser(words).parse_known_args(words)
        if unknown:
            arguments.parser.refuse_unknown(unknown)
        return _run(arguments)
    except SystemExit as stop:  # --help, --version or a usage error: argparse has printed its text
        return stop.code if isinstance(stop.code, int) else USAGE


def _run(arguments: argparse.Namespace) -> int:
    debug = getattr(arguments, "debug", False)
    _route_logs(debug=debug)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A model's text may have characters that the terminal's encoding lacks; to files and pipes Windows would write ANSI.
        sys.stdout.reconfigure(errors="replace", encoding=None if sys.stdout.isatty() else piped_encoding())
    try:
        with _signals_as_exceptions():
            status: int = arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except (LlamafuError, OSError) as error:
        if isinstance(error, OSError) and is_closed_pipe(error):
            # Python flushes stdout at exit, which would raise again.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE
        return _failed(str(error), debug=debug)
    except Exception as error:  # noqa: BLE001 - a bug is reported as one line too
        return _failed(f"{type(error).__name__}: {error} (this is a bug; --debug shows where)", debug=debug)
    return status


@contextlib.contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    """Make the signals that end a program raise SystemExit, so that the command removes unfinished files before it ends."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(_SIGNALLED + number)

    numbers = ending_signals()
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    before = {number: signal.signal(number, end) for number in numbers if signal.getsignal(number) is signal.SIG_DFL}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _parser(words: Sequence[str] = ()) -> Parser:
    """Return the parser for a command line. It has only the command that the line names, if any, which is faster."""
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
    """Show the library's log with `--debug`, and no log otherwise."""
    logger = logging.getLogger("llamafu")
    if debug:
        logging.basicConfig(level=logging.DEBUG, format="%(name)s: %(message)s")
    elif not logger.handlers:
        logger.addHandler(logging.NullHandler())
