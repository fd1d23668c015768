"""`llamafu complete`: continue a prompt."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any

from llamafu.cli.arguments import add_adapters, add_model, add_sampling, open_model, sampling
from llamafu.generation.media.prompt import MARKER

if TYPE_CHECKING:
    import argparse


def add_parser(subparsers: Any) -> None:
    """Add `complete`."""
    text = "Continue PROMPT with a model and its adapters, and write the text to standard output as it comes."
    parser = subparsers.add_parser("complete", help="continue a prompt", description=text)
    parser.add_argument("prompt", metavar="PROMPT")
    add_model(parser, n_ctx=2048, media=True)
    add_adapters(parser)
    add_sampling(parser)
    for kind in ("image", "audio"):
        parser.add_argument(
            f"--{kind}",
            action="append",
            dest="media",
            default=[],
            metavar="FILE",
            help=f"{kind} for a marker {MARKER} of PROMPT, or before it where it has none (repeatable; needs --mmproj)",
        )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print JSON: text, tokens, usage, timings in seconds, adapters with digest and scales",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    prompt, options = arguments.prompt, sampling(arguments)
    options["media"] = arguments.media
    if MARKER not in prompt:
        prompt = MARKER * len(arguments.media) + prompt
    with open_model(arguments) as llm:
        if arguments.json:
            completion = dataclasses.asdict(llm.complete(prompt, **options))
            for name in ("logprobs", "prompt_logprobs", "end_logprob"):  # no flag asks for them
                del completion[name]
            sys.stdout.write(json.dumps(completion, indent=2) + "\n")
            return 0
        with llm.stream(prompt, **options) as stream:
            for piece in stream:
                sys.stdout.write(piece)
                sys.stdout.flush()
    sys.stdout.write("\n")
    return 0
