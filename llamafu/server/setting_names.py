"""The names in settings: which adapters, mixes and aliases there are, and references to the hub among them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamafu.hub.local import is_reference

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence


def check_names(named: Mapping[str, Sequence[str]], *, base: Collection[str], has_folder: bool) -> None:
    """Refuse names that are given twice or taken, and adapters that are nowhere; `ValueError`.

    named: the names of the settings `lora`, `mix`, `hub_adapter` and `alias`.
    base: the base model's names.
    has_folder: whether there is a folder of adapters.
    """
    fetched = {*named["hub_adapter"]}
    sought = {"lora": {*named["lora"]} - fetched, "mix": set() if fetched else {*named["mix"]}}
    for setting, names in named.items():
        if twice := sorted({name for name in names if names.count(name) > 1}):
            message = f"{setting} names {', '.join(map(repr, twice))} more than once"
            raise ValueError(message)
        if sought.get(setting) and not has_folder:
            message = f"{setting} was given without adapters, the folder to find them in"
            raise ValueError(message)
    for setting in ("mix", "hub_adapter"):
        if taken := sorted({*base} & {*named[setting]}):
            message = f"{setting}: the name {', '.join(map(repr, taken))} is the base model's; give another one"
            raise ValueError(message)


def take_hub_adapters(found: dict[str, tuple[str, list[str]]]) -> None:
    """Move references to the hub from the texts of `lora` to those of `hub_adapter`, in settings that were found.

    `pirate=hf:owner/repo=0.5` becomes `pirate=0.5` and `pirate=hf:owner/repo`.
    """
    place, texts = found.get("lora", ("", []))
    split = [_split(text) for text in texts]
    if fetched := [reference for _, reference in split if reference is not None]:
        found["lora"] = (place, [text for text, _ in split])
        found["hub_adapter"] = (place, [*found.get("hub_adapter", (place, []))[1], *fetched])


def _split(text: str) -> tuple[str, str | None]:
    """Return NAME=SCALE and NAME=REFERENCE of a value of `lora`, None for one without a reference."""
    if is_reference(text):
        return text, f"={text}"  # the name is missing, which the reader of `hub_adapter` tells
    name, _, rest = text.partition("=")
    if not is_reference(rest):
        return text, None
    reference, sign, scale = rest.rpartition("=")
    return (f"{name}={scale}", f"{name}={reference}") if sign else (name, f"{name}={rest}")
