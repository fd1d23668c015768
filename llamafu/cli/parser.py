"""The argument parser of every command: no abbreviations, `--debug` anywhere, and the flag that was meant by an unknown one."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from llamafu._util.suggestions import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

_ELSEWHERE = {
    **dict.fromkeys(("-n", "--predict", "--n-predict", "--max-new-tokens", "--num-predict"), "--max-tokens"),
    **dict.fromkeys(("-c", "--ctx-size", "--max-model-len"), "--n-ctx"),
    **dict.fromkeys(("-np", "--parallel", "--max-num-seqs"), "--max-sequences"),
    **dict.fromkeys(("--lora-modules", "--adapter", "--lora-dir"), "--adapters"),
    **dict.fromkeys(("-t", "--n-threads"), "--threads"),
    **dict.fromkeys(("-ub", "--ubatch-size"), "--n-ubatch"),
    **dict.fromkeys(("-a", "--served-model-name"), "--alias"),
    "--temp": "--temperature",
    "-s": "--seed",
    "-sys": "--system",
    "--lora-scaled": "--lora",
}
"""Flags of llama.cpp's and vLLM's commands, and ours for the same."""


class Parser(argparse.ArgumentParser):
    """An argument parser with `--debug`, also in every subparser, so that it may stand anywhere on the line."""

    def __init__(self, **options: Any) -> None:  # argparse passes options of its own to subparsers
        super().__init__(**{"allow_abbrev": False, **options})
        self.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks and the library's log"
        )
        self.set_defaults(parser=self)  # a subparser's own beats that of the parser around it

    def refuse_unknown(self, words: Sequence[str]) -> None:
        """End with a usage error for arguments that nobody took, naming the flag that was meant by the first unknown one."""
        unknown = next((word for word in words if word.startswith("-")), words[0]).partition("=")[0]
        flags = list(self._option_string_actions)
        meant = _ELSEWHERE.get(unknown)
        hint = f"; did you mean {meant!r}?" if meant in flags else did_you_mean(unknown, flags)
        self.error(f"unrecognized argument {unknown!r}{hint or '; --help lists what there is'}")

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        """Return how an unknown flag might be read: as `-m` with its value behind it, but not as the beginning of another.

        argparse does that with flags of one dash even without `allow_abbrev`: `-n 64` would be `-ngl 64`.
        """
        return [found for found in super()._get_option_tuples(option_string) if found[1] == option_string[:2]]
