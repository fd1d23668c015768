"""`llamafu adapters`: what is in a folder of adapters, and taking something out of it."""

from __future__ import annotations

import datetime as dt
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamafu.errors import LoraNotFoundError

if TYPE_CHECKING:
    import argparse

    from llamafu.server.folder import Found


def add_parser(subparsers: Any) -> None:
    """Add `adapters` with `list` and `rm`."""
    text = "List a folder of adapters with their sizes and last uses, or remove one. Needs neither a model nor libllama."
    parser = subparsers.add_parser("adapters", help="list a folder of adapters, or remove one", description=text)
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="every adapter, its size, and when `llamafu serve` last used it")
    listing.add_argument("folder", type=Path, metavar="DIR", help="folder of adapters, GGUF files and PEFT folders")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(run=_list)
    removing = actions.add_parser("rm", help="delete an adapter; a server that has it forgets it within seconds")
    removing.add_argument("folder", type=Path, metavar="DIR", help="folder of adapters")
    removing.add_argument("name", metavar="NAME", help="its name, as `list` shows it")
    removing.set_defaults(run=_remove)


def _list(arguments: argparse.Namespace) -> int:
    from llamafu._last_use import last_use
    from llamafu.server.folder import AdapterFolder

    rows = [(found, last_use(found.path)) for found in AdapterFolder(arguments.folder).scan().values()]
    if arguments.json:
        report = [
            {"name": found.name, "path": str(found.path), "size": found.nbytes, "last_used": used} for found, used in rows
        ]
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
        return 0
    width = max([len("adapter"), *(len(found.name) for found, _ in rows)])
    sys.stdout.write(f"{'adapter':<{width}}  {'size':>10}  last use\n" if rows else "no adapters\n")
    sys.stdout.writelines(_line(found, used, width) for found, used in rows)
    return 0


def _remove(arguments: argparse.Namespace) -> int:
    from llamafu._last_use import forget_use
    from llamafu.server.folder import AdapterFolder
    from llamafu.service.errors import NotFoundError

    folder = AdapterFolder(arguments.folder)
    try:
        path = folder.path_of(arguments.name)
        folder.delete(arguments.name)
    except NotFoundError as error:
        message = f"{error} in {arguments.folder} (adapters: {', '.join(folder.scan()) or 'none'})"
        raise LoraNotFoundError(message) from error
    forget_use(path)
    sys.stdout.write(f"removed {path}\n")
    return 0


def _line(found: Found, used: float | None, width: int) -> str:
    when = "never recorded" if used is None else f"{dt.datetime.fromtimestamp(used).astimezone():%Y-%m-%d %H:%M}"
    return f"{found.name:<{width}}  {found.nbytes / 1e6:>7.1f} MB  {when}\n"
