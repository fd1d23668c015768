"""One declaration of each option: what is derived from it, and what static type checkers need written out agrees with it."""

import argparse
import contextlib
from dataclasses import dataclass, field, fields

import numpy as np
import pytest

from llamafu._native.device_options import DeviceOptions
from llamafu.cli.arguments import add_sampling, sampling
from llamafu.client import options as client
from llamafu.engine.request import Request
from llamafu.generation.chat_options import CHAT_OPTION_SPECS, ChatArguments, ChatOptions
from llamafu.generation.option_spec import about, list_options, specs_of
from llamafu.generation.options import OPTION_SPECS, OptionArguments, Options
from llamafu.server.schemas.reading import read_body
from llamafu.server.schemas.requests import CompletionBody
from llamafu.service import InvalidRequestError


@dataclass(frozen=True)
class MadeUp:
    """Options that are none of ours, one of each kind that is checked."""

    depth: "int" = field(default=3, metadata=about("so many levels", low=1, high=5))
    heat: "float | None" = field(default=None, metadata=about("in degrees; None is off", low=0.0, above=True))
    words: "str | Sequence[str]" = field(default=(), metadata=about("texts", flag=False))  # noqa: F821 - never evaluated


IN_PYTHON = {"logits_processor", "stopping"}
"""Functions, which no request can hold."""


def annotations(arguments):
    return {name: getattr(found, "__forward_arg__", found) for name, found in arguments.__annotations__.items()}


def test_type_checkers_see_the_options_as_they_are():
    assert annotations(OptionArguments) == {spec.name: spec.annotation for spec in OPTION_SPECS}
    assert annotations(ChatArguments) == {spec.name: spec.annotation for spec in (*OPTION_SPECS, *CHAT_OPTION_SPECS)}


def test_the_client_has_every_option_that_json_can_say():
    """`None` is the server's choice; left out are those that HTTP takes in another form, or that a server does not take."""
    for arguments, specs in ((client.GenerationArguments, OPTION_SPECS), (client.ChatGenerationArguments, CHAT_OPTION_SPECS)):
        written = annotations(arguments)
        for spec in specs:
            own = {"media", "lora", "logprobs", "json_schema", "chat_template", "generic_tools", *IN_PYTHON}
            if spec.name not in own:
                assert written[spec.name] == f"{spec.annotation.removesuffix(' | None')} | None"


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint8])
def test_whole_numbers_of_numpy_are_whole_numbers(kind):
    """They become ints, so that nothing computes with 32 bits later, and JSON can say them; truth values stay refused."""
    found = Request(prompt="x", top_k=kind(40), seed=kind(7), max_tokens=kind(5), priority=kind(1), prompt_logprobs=kind(0))
    whole = (found.top_k, found.seed, found.max_tokens, found.priority, found.prompt_logprobs)
    assert whole == (40, 7, 5, 1, 0)
    assert {type(each) for each in whole} == {int}
    placed = DeviceOptions(n_gpu_layers=kind(3), main_gpu=kind(1), n_ubatch=kind(64))
    assert {type(each) for each in (placed.n_gpu_layers, placed.main_gpu, placed.n_ubatch)} == {int}
    for wrong in (True, np.True_, np.float64(3.0), 3.0, "3"):
        with pytest.raises(ValueError, match="top_k=.* is not a whole number"):
            Options(top_k=wrong)


@pytest.mark.parametrize(("options", "specs"), [(Options, OPTION_SPECS), (ChatOptions, CHAT_OPTION_SPECS)])
def test_every_option_is_described(options, specs):
    assert [spec.name for spec in specs] == [one.name for one in fields(options)]
    for spec in specs:
        assert f"\n{spec.name}: {spec.annotation} = {spec.default!r}" in options.__doc__
        assert f"\n    {spec.doc}" in options.__doc__
        assert "\n" not in spec.doc
        assert not spec.doc.endswith(".")
        spec.check(spec.default)


def test_a_new_option_is_known_from_its_declaration():
    depth, heat, words = specs_of(MadeUp)
    assert (depth.kind, heat.kind, words.kind) == ("int", "float", "texts")
    assert (depth.limits, heat.limits, words.limits) == ("from 1 to 5", "above 0", "")
    assert (depth.is_optional, heat.is_optional, words.flag) == (False, True, False)
    assert list_options("Made up.", (depth, heat)).splitlines()[2:] == [
        "depth: int = 3, from 1 to 5",
        "    so many levels",
        "heat: float | None = None, above 0",
        "    in degrees; None is off",
    ]


@pytest.mark.parametrize(
    ("place", "legal", "illegal", "message"),
    [
        (0, (1, 5), (0, 6, True, 2.0, None), "depth={!r} is not a whole number from 1 to 5"),
        (1, (None, 1, 1e300), (0, -1.0, True, float("nan"), "x"), "heat={!r} is not a number above 0"),
        (2, ((), None, "a", ["a", "b"]), ("",), "words={!r} is not a non-empty string; give a string or a sequence of them"),
    ],
)
def test_a_declared_range_is_checked(place, legal, illegal, message):
    spec = specs_of(MadeUp)[place]
    for value in legal:
        spec.check(value)
    for value in illegal:
        with pytest.raises(ValueError) as raised:  # noqa: PT011 - the message is compared as a whole
            spec.check(value)
        assert str(raised.value) == message.format(value)


def edges(spec):
    """Numbers at the limits of an option and just outside, and whether they are legal."""
    if spec.low is not None:
        yield from ((spec.low, not spec.above), (spec.low - 1, False))
    if spec.high is not None:
        yield from ((spec.high, True), (spec.high + 1, False))


def test_the_server_takes_every_option_that_json_can_say_within_its_limits():
    for spec in OPTION_SPECS:
        if spec.name not in {"media", "lora", *IN_PYTHON}:
            assert spec.name in CompletionBody.model_fields
        for value, legal in edges(spec):
            with contextlib.nullcontext() if legal else pytest.raises(InvalidRequestError, match=spec.name):
                read_body(CompletionBody, {"prompt": "Once", spec.name: value})


def test_the_command_line_follows():
    """Flags, their help, limits and defaults, and what the library is called with."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_sampling(parser, specs_of(MadeUp))
    assert "--depth N" in parser.format_help()
    assert "so many levels (3)" in parser.format_help()
    assert "--words" not in parser.format_help()
    assert sampling(parser.parse_args(["--heat", "2.5"]), specs_of(MadeUp)) == {"depth": 3, "heat": 2.5}
    with pytest.raises(argparse.ArgumentError, match="depth=6 is not a whole number from 1 to 5"):
        parser.parse_args(["--depth", "6"])
    parser = argparse.ArgumentParser()
    add_sampling(parser)
    assert Options(**sampling(parser.parse_args([]))) == Options(stop=[])
