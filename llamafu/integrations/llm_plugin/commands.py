"""`llm llamafu`: add a model, list the added ones, remove one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from llamafu.adapters.gguf.file_magic import HEAD_BYTES, describe_magic
from llamafu.adapters.recognise import why_no_adapter
from llamafu.errors import LlamafuError
from llamafu.integrations.llm_plugin import model_list
from llamafu.integrations.llm_plugin.model_list import DEFAULT_N_CTX, ModelEntry

_NAME = re.compile(r"[\w.:-]+")


def add_to(cli: Any) -> None:
    """Add the group of commands to llm's own."""
    cli.add_command(_group, name="llamafu")


@click.group()
def _group() -> None:
    """GGUF models on llama.cpp, and LoRA adapters as models of their own."""


@_group.command()
@click.argument("name")
@click.argument("path", type=click.Path(exists=True, dir_okay=False, resolve_path=True))
@click.option("--adapters", type=click.Path(exists=True, file_okay=False, resolve_path=True), help="folder of LoRA adapters")
@click.option("--n-ctx", type=click.IntRange(2), default=DEFAULT_N_CTX, show_default=True, help="tokens that the model holds")
def add(name: str, path: str, adapters: str | None, n_ctx: int) -> None:
    """Add the GGUF model at PATH as NAME, its adapters as NAME/ADAPTER. An added NAME is replaced."""
    if not _NAME.fullmatch(name):
        message = f"{name!r} is no name for a model; give letters, digits and . _ : - without spaces"
        raise click.ClickException(message)
    _demand_model(Path(path))
    entry = ModelEntry(name, path, adapters, n_ctx)
    model_list.write({**_entries(), name: entry})
    click.echo("\n".join([name, *(f"{name}/{adapter}" for adapter in entry.adapter_names())]))


@_group.command(name="list")
def list_models() -> None:
    """List the added models."""
    for entry in _entries().values():
        click.echo(f"{entry.name}\t{entry.path}\t{entry.adapters or '-'}\t{entry.n_ctx}")


@_group.command()
@click.argument("name")
def remove(name: str) -> None:
    """Forget the model NAME; its files stay."""
    entries = _entries()
    if name not in entries:
        message = f"no such model: {name!r} (models: {', '.join(entries) or 'none'})"
        raise click.ClickException(message)
    model_list.write({other: entry for other, entry in entries.items() if other != name})


def _demand_model(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head.startswith(b"GGUF"):
        message = f"{path} is no GGUF model, but {describe_magic(head)}"
        raise click.ClickException(message)
    if why_no_adapter(path) is None:
        message = f"{path} is an adapter; give the model that it is for, and the adapter's folder as --adapters"
        raise click.ClickException(message)


def _entries() -> dict[str, ModelEntry]:
    try:
        return model_list.read()
    except LlamafuError as error:
        raise click.ClickException(str(error)) from error
