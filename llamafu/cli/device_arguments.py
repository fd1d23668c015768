"""Arguments that say which devices compute a model, from the table of `DeviceOptions`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, cast

from llamafu._native.device_options import DEVICE_OPTIONS, DeviceOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamafu._native.device_options import DeviceArguments, DeviceOption


def add_devices(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each option of devices."""
    group = parser.add_argument_group("devices")
    for each in DEVICE_OPTIONS:
        flags = filter(None, [each.flags, f"--{each.name.replace('_', '-')}"])
        group.add_argument(*flags, type=_reader(each), dest=each.name, metavar=each.metavar, help=each.doc)
    parser.set_defaults(refuse=parser.error)


def device_arguments(arguments: argparse.Namespace) -> DeviceArguments:
    """Return the options of devices that were given; options that do not go together are a usage error."""
    given = {each.name: value for each in DEVICE_OPTIONS if (value := getattr(arguments, each.name)) is not None}
    try:
        DeviceOptions.of(given)
    except ValueError as error:
        arguments.refuse(str(error))
    return cast("DeviceArguments", given)


def _reader(option: DeviceOption) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return option.parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read
