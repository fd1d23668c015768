"""`llamafu adapters`: list a folder of adapters, or delete one of them."""

from __future__ import annotations

import datetime as dt
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llamafu.errors import LoraError, LoraNotFoundError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

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


class _Row(NamedTuple):
    """One adapter of the folder, or something else in it."""

    name: str
    found: FolderEntry
    last_used: float | None
    why_no_adapter: str | None


def _list(arguments: argparse.Namespace) -> int:
    from llamafu.adapters.recognise import why_no_adapter
    from llamafu.server.storage.adapter_folder import AdapterFolder, label
    from llamafu.server.storage.last_use import last_use

    folder = AdapterFolder(arguments.folder)
    everything, skipped = folder.entries(), folder.skipped()
    names = [found.name for found in everything]
    rows = [
        _Row(label(found, alone=names.count(found.name) == 1), found, last_use(found.path), why_no_adapter(found.path))
        for found in everything
    ]
    sys.stdout.write(_as_json(rows, skipped, folder.folder) if arguments.json else _as_text(rows, skipped))
    return 0


def _as_json(rows: list[_Row], skipped: Mapping[str, str], folder: Path) -> str:
    report = [
        {
            "name": row.name,
            "path": str(row.found.path),
            "size": row.found.nbytes,
            "last_used": row.last_used,
            "adapter": row.why_no_adapter is None,
            "what": row.why_no_adapter,
        }
        for row in rows
    ]
    report += [
        {"name": name, "path": str(folder / name), "size": 0, "last_used": None, "adapter": False, "what": what}
        for name, what in skipped.items()
    ]
    return json.dumps(report, indent=2) + "\n"


def _as_text(rows: list[_Row], skipped: Mapping[str, str]) -> str:
    """Return a table of the adapters, one of what is no adapter, and what was skipped."""
    adapters = [(row.name, row.found.nbytes, _when(row.last_used)) for row in rows if row.why_no_adapter is None]
    others = [(row.name, row.found.nbytes, row.why_no_adapter) for row in rows if row.why_no_adapter is not None]
    width = max([len("no adapter" if others else "adapter"), *(len(row.name) for row in rows)])
    lines = [f"{'adapter':<{width}}  {'size':>10}  last use\n" if adapters else "no adapters\n"]
    lines += [_line(*adapter, width) for adapter in adapters]
    if others:
        lines.append(f"\n{'no adapter':<{width}}  {'size':>10}  what it is\n")
        lines += [_line(*other, width) for other in others]
    if skipped:
        lines.append("\nskipped\n")
        lines += [f"{name}: {reason}\n" for name, reason in skipped.items()]
    return "".join(lines)


def _remove(arguments: argparse.Namespace) -> int:
    from llamafu.lora.mix_files import MixFiles
    from llamafu.server.storage.adapter_folder import AdapterFolder
    from llamafu.server.storage.last_use import forget_use
    from llamafu.service.errors import InvalidRequestError, NotFoundError

    folder = AdapterFolder(arguments.folder)
    try:
        found = folder.to_remove(arguments.name)
        if users := [file.path.name for file in MixFiles(folder.folder).read().values() if found.name in file.scales]:
            message = f"{found.name!r} is part of a mix ({', '.join(users)}); remove that file first"
            raise LoraError(message)
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
    """Ask for consent on the terminal; without a terminal it is a usage error."""
    if not sys.stdin.isatty():
        arguments.refuse(f"{found.path} would be gone for good, and there is no terminal to ask on; --yes removes it unasked")
    sys.stderr.write(f"remove {found.path} ({found.nbytes / 1e6:.1f} MB) for good? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _when(used: float | None) -> str:
    return "never recorded" if used is None else f"{dt.datetime.fromtimestamp(used).astimezone():%Y-%m-%d %H:%M}"


def _line(name: str, nbytes: int, rest: str, width: int) -> str:
    return f"{name:<{width}}  {nbytes / 1e6:>7.1f} MB  {rest}\n"
