"""`llamafu adapters`: what is in a folder of adapters, and taking something out of it."""

from __future__ import annotations

import datetime as dt
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamafu.errors import LoraError, LoraNotFoundError

if TYPE_CHECKING:
    import argparse

    from llamafu.server.storage.adapter_folder import FolderEntry


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
    removing.add_argument("name", metavar="NAME", help="its name, as `list` shows it: nothing but adapters is removed")
    removing.add_argument("--yes", action="store_true", help="do not ask; for scripts")
    removing.set_defaults(run=_remove, refuse=removing.error)


def _list(arguments: argparse.Namespace) -> int:
    from llamafu.adapters.recognise import why_no_adapter
    from llamafu.server.storage.adapter_folder import AdapterFolder, label
    from llamafu.server.storage.last_use import last_use

    folder = AdapterFolder(arguments.folder)
    everything, skipped = folder.entries(), folder.skipped()
    names = [found.name for found in everything]
    rows = [
        (label(found, alone=names.count(found.name) == 1), found, last_use(found.path), why_no_adapter(found.path))
        for found in everything
    ]
    if arguments.json:
        report = [
            {
                "name": name,
                "path": str(found.path),
                "size": found.nbytes,
                "last_used": used,
                "adapter": what is None,
                "what": what,
            }
            for name, found, used, what in rows
        ]
        report += [
            {"name": name, "path": str(folder.folder / name), "size": 0, "last_used": None, "adapter": False, "what": what}
            for name, what in skipped.items()
        ]
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
        return 0
    adapters = [(name, found.nbytes, _when(used)) for name, found, used, what in rows if what is None]
    others = [(name, found.nbytes, what) for name, found, _, what in rows if what is not None]
    width = max([len("no adapter" if others else "adapter"), *(len(name) for name, *_ in rows)])
    sys.stdout.write(f"{'adapter':<{width}}  {'size':>10}  last use\n" if adapters else "no adapters\n")
    sys.stdout.writelines(_line(*row, width) for row in adapters)
    if others:
        sys.stdout.write(f"\n{'no adapter':<{width}}  {'size':>10}  what it is\n")
        sys.stdout.writelines(_line(*row, width) for row in others)
    if skipped:
        sys.stdout.write("\nskipped\n")
        sys.stdout.writelines(f"{name}: {reason}\n" for name, reason in skipped.items())
    return 0


def _remove(arguments: argparse.Namespace) -> int:
    from llamafu.server.storage.adapter_folder import AdapterFolder
    from llamafu.server.storage.last_use import forget_use
    from llamafu.service.errors import InvalidRequestError, NotFoundError

    folder = AdapterFolder(arguments.folder)
    try:
        found = folder.to_remove(arguments.name)
        if not arguments.yes and not _is_agreed(found, arguments):
            sys.stderr.write("nothing was removed\n")
            return 1
        folder.delete(arguments.name)
    except NotFoundError as error:
        skipped = {name.removesuffix(".gguf"): reason for name, reason in folder.skipped().items()}
        reason = f"; it is skipped: {skipped[arguments.name]}" if arguments.name in skipped else ""
        message = f"{error} in {arguments.folder} (adapters: {', '.join(folder.scan()) or 'none'}){reason}"
        raise LoraNotFoundError(message) from error
    except InvalidRequestError as error:
        raise LoraError(str(error)) from error
    forget_use(found.path)
    sys.stdout.write(f"removed {found.path}\n")
    return 0


def _is_agreed(found: FolderEntry, arguments: argparse.Namespace) -> bool:
    """Ask on the terminal; where there is none, that is a usage error."""
    if not sys.stdin.isatty():
        arguments.refuse(f"{found.path} would be gone for good, and there is no terminal to ask on; --yes removes it unasked")
    sys.stderr.write(f"remove {found.path} ({found.nbytes / 1e6:.1f} MB) for good? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _when(used: float | None) -> str:
    return "never recorded" if used is None else f"{dt.datetime.fromtimestamp(used).astimezone():%Y-%m-%d %H:%M}"


def _line(name: str, nbytes: int, rest: str, width: int) -> str:
    return f"{name:<{width}}  {nbytes / 1e6:>7.1f} MB  {rest}\n"
