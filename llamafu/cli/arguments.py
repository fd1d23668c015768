"""Arguments that several commands share, and the model with adapters that they open."""

from __future__ import annotations

import argparse
import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from llamafu.cli.device_arguments import add_devices, device_arguments
from llamafu.cli.progress import Progress
from llamafu.errors import LlamafuError, LoraError, LoraNotFoundError
from llamafu.generation.options import OPTION_SPECS
from llamafu.hub.local import is_reference, local_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from llamafu.generation.option_spec import OptionSpec
    from llamafu.generation.options import OptionArguments
    from llamafu.lora.handles import LoraAdapter
    from llamafu.model.llamafu import Llamafu

EXAMPLE = "example"
"""Given as a model, this word stands for the example model."""

_PARSERS: dict[str, tuple[Callable[[str], Any], str]] = {"int": (int, "N"), "float": (float, "X"), "texts": (str, "TEXT")}
"""For each kind of option that may be a flag: what reads its text, and what `--help` calls the value."""


@dataclass(frozen=True, slots=True)
class AdapterArgument:
    """An adapter of the command line, `PATH` or `PATH=SCALE`."""

    path: Path
    scale: float


def add_model(parser: argparse.ArgumentParser, *, n_ctx: int, media: bool = False) -> None:
    """Add `-m`, `--n-ctx` (with this default), `--threads`, `--library` and the options of devices; for `media` `--mmproj`."""
    parser.add_argument(
        "-m",
        "--model",
        required=True,
        help=f"GGUF model, or hf:OWNER/REPO:QUANT; the word {EXAMPLE!r} means SmolLM2-135M-Instruct, fetched once",
    )
    parser.add_argument("--n-ctx", type=at_least(2), default=n_ctx, metavar="N", help="context in tokens (%(default)s)")
    parser.add_argument("--threads", type=at_least(1), metavar="N", help="threads to compute with (default: every CPU)")
    if media:
        parser.add_argument("--mmproj", metavar="PATH", help="projector (mmproj) file of the model, for images or sounds")
    parser.add_argument("--library", metavar="PATH", help="libllama to use, a file or a folder (default: search)")
    add_devices(parser)


def add_adapters(parser: argparse.ArgumentParser) -> None:
    """Add `--lora` and `--scale-range`."""
    parser.add_argument(
        "--lora",
        type=adapter_argument,
        action="append",
        default=[],
        metavar="PATH[=SCALE]",
        help="adapter to apply, a path or hf:OWNER/REPO, at scale 1 unless given; 'pirate' and 'shout' are the examples "
        "(repeatable)",
    )
    parser.add_argument(
        "--scale-range",
        type=float,
        nargs=2,
        action=_ScaleRange,
        default=(0.0, 1.0),
        metavar=("LOW", "HIGH"),
        help="scales that are allowed (default: 0 1)",
    )
    parser.set_defaults(refuse=parser.error)


def add_sampling(parser: argparse.ArgumentParser, specs: Sequence[OptionSpec] = OPTION_SPECS) -> None:
    """Add a flag for each option that has one, with the default, the limits and the help text of its declaration."""
    for spec in specs:
        if not spec.flag:
            continue
        flag, text = f"--{spec.name.replace('_', '-')}", spec.doc.replace("%", "%%")
        metavar = _PARSERS[spec.kind][1]
        if spec.kind == "texts":
            parser.add_argument(
                flag, type=option(spec), action="append", default=[], metavar=metavar, help=f"{text} (repeatable)"
            )
        else:
            default = "" if spec.default is None else " (%(default)s)"
            parser.add_argument(flag, type=option(spec), default=spec.default, metavar=metavar, help=text + default)


def sampling(arguments: argparse.Namespace, specs: Sequence[OptionSpec] = OPTION_SPECS) -> OptionArguments:
    """Return the options of `add_sampling` as the keyword arguments of `complete` and its like."""
    return cast("OptionArguments", {spec.name: getattr(arguments, spec.name) for spec in specs if spec.flag})


def option(spec: OptionSpec) -> Callable[[str], Any]:
    """Make an argument type that reads an option's value and checks it as `Options` does."""
    read = _PARSERS[spec.kind][0]

    def parse(text: str) -> Any:
        try:
            value = read(text)
            spec.check(value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return value

    return parse


def at_least(low: int) -> Callable[[str], int]:
    """Make an argument type: a whole number from `low` on."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < low:
            message = f"{text!r} is not a whole number of at least {low}"
            raise argparse.ArgumentTypeError(message)
        return int(text)

    return parse


def adapter_argument(text: str) -> AdapterArgument:
    """Read `PATH` or `PATH=SCALE`; the scale is 1 unless given. An existing file may have a = in its name."""
    path, equals, scale = text.rpartition("=")
    if not equals or Path(text).exists():
        path, scale = text, "1"
    before, colon, after = text.rpartition(":")
    if colon and not Path(text).exists() and Path(before).exists():
        message = f"{text!r} is no file, and {before!r} is one; a scale stands behind =: {before}={after}"
        raise argparse.ArgumentTypeError(message)
    try:
        value = float(scale)
    except ValueError as error:
        message = f"{scale!r} in {text!r} is no number; give PATH or PATH=SCALE, such as pirate.gguf=0.5"
        raise argparse.ArgumentTypeError(message) from error
    if not path:
        message = f"{text!r} names no adapter; give PATH or PATH=SCALE, such as pirate.gguf=0.5"
        raise argparse.ArgumentTypeError(message)
    return AdapterArgument(Path(path), value)


def scale_problem(adapters: Iterable[AdapterArgument], scale_range: tuple[float, float]) -> str | None:
    """Return the error for the first scale outside the range, NaN included; None where all are inside."""
    low, high = scale_range
    for adapter in adapters:
        if not low <= adapter.scale <= high:
            return (
                f"the scale {adapter.scale:g} of {adapter.path} is not within {low:g} to {high:g}; --scale-range allows others"
            )
    return None


def model_path(text: str) -> Path:
    """Return the path of the model that `-m` names; the example model, and one on the hub, are fetched if need be."""
    if is_reference(text):
        with Progress() as progress:
            path = local_model(text)
            progress.show(f"{text} is {path.name}")
        return path
    if text != EXAMPLE:
        return Path(text)
    from llamafu._util import paths
    from llamafu.examples import model

    with Progress() as progress:
        if not os.environ.get(model.ENVIRONMENT) and not (paths.model_dir() / model.NAME).is_file():
            progress.show("fetching the example model, SmolLM2-135M-Instruct (92 MB, once)")
        return model.example_model()


def open_model(arguments: argparse.Namespace) -> Llamafu:
    """Open the model of the command line with its adapters active. A scale outside the range is a usage error."""
    from llamafu.model.llamafu import Llamafu

    if problem := scale_problem(arguments.lora, arguments.scale_range):
        arguments.refuse(f"argument --lora: {problem}")
    with options_checked(arguments.refuse):
        llm = Llamafu(
            model_path(arguments.model),
            n_ctx=arguments.n_ctx,
            n_threads=arguments.threads,
            scale_range=arguments.scale_range,
            library=arguments.library,
            mmproj_path=getattr(arguments, "mmproj", None),
            **device_arguments(arguments),
        )
    try:
        llm.set_lora_adapters(load_adapters(llm, arguments.lora))
    except BaseException:
        llm.close()
        raise
    return llm


@contextmanager
def options_checked(refuse: Callable[[str], object]) -> Iterator[None]:
    """Call `refuse` with the message where the library finds an option illegal: a ValueError that is no LlamafuError."""
    try:
        yield
    except LlamafuError:
        raise
    except ValueError as error:
        refuse(str(error))


def load_adapters(llm: Llamafu, adapters: Iterable[AdapterArgument]) -> dict[LoraAdapter | str, float]:
    """Load the adapters that are not loaded yet and return {adapter: scale} for all of them.

    A path may also be the name of a loaded adapter or of an example. Raises what `Llamafu.load_lora_adapter` raises,
    `LoraNotFoundError` for an unknown name, `LoraError` for the same adapter twice.
    """
    scales: dict[LoraAdapter | str, float] = {}
    for argument in adapters:
        adapter = _load(llm, argument.path)
        if adapter in scales:
            message = f"the adapter {adapter.name!r} was given twice ({argument.path} is the same content); give it once"
            raise LoraError(message)
        scales[adapter] = argument.scale
    return scales


def _load(llm: Llamafu, path: Path) -> LoraAdapter:
    from llamafu.examples.adapters import example_adapters

    named = str(path)
    loaded = {adapter.name: adapter for adapter in llm.lora_adapters}
    if named in loaded:
        return loaded[named]
    if path.exists() or path.suffix or path.parent != Path():
        return llm.load_lora_adapter(path)
    examples = example_adapters()
    if named not in examples:
        message = (
            f"{named}: there is no such adapter file, nor is it the name of one (there are: {', '.join(loaded | examples)})"
        )
        raise LoraNotFoundError(message)
    return llm.load_lora_adapter(examples[named])


class _ScaleRange(argparse.Action):
    """Stores the two numbers if they are a legal range of scales."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        from llamafu.lora.scales import check_scale_range

        del parser, option_string
        try:
            setattr(namespace, self.dest, check_scale_range(tuple(values)))
        except ValueError as error:
            raise argparse.ArgumentError(self, str(error)) from error
