"""`llamafu serve`: a model and its adapters over HTTP, with many requests at once."""

from __future__ import annotations

import importlib.util
import logging
import sys
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from llamafu._util.listing import listed
from llamafu.cli.arguments import model_path, options_checked
from llamafu.errors import LlamafuError, LoraNotFoundError
from llamafu.hub.local import local_adapter

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Collection, Iterable, Mapping
    from pathlib import Path

    from llamafu.server.settings import Settings
    from llamafu.server.storage.adapter_folder import AdapterFolder

_LOG = logging.getLogger("llamafu.server")
_NEEDED = {"starlette": "starlette", "uvicorn": "uvicorn", "multipart": "python-multipart", "pydantic": "pydantic"}


def add_parser(subparsers: Any) -> None:
    """Add `serve`."""
    from llamafu.server.settings import PREFIX, add_arguments

    text = (
        "Serve a model and a folder of adapters over HTTP, to clients of OpenAI, Anthropic, TabbyAPI, llama-server and vLLM. "
        f"Every flag is also a variable of the environment ({PREFIX}PORT=9000) and a name in the file of --config."
    )
    parser = subparsers.add_parser("serve", help="serve a model and its adapters over HTTP", description=text)
    add_arguments(parser)
    parser.set_defaults(run=_run, refuse=parser.error)


def _run(arguments: argparse.Namespace) -> int:
    from llamafu.server.settings import Settings, load

    _demand_packages(_NEEDED, "serving", "server")
    given = {each.name: getattr(arguments, each.name) for each in fields(Settings)}
    try:
        settings = load(given, config=arguments.config)
    except ValueError as error:
        arguments.refuse(str(error))
    if settings.ray:
        _demand_packages({"ray": "ray[serve]"}, "serving on Ray", "ray")
    return serve_with(settings, arguments.refuse)


def _demand_packages(needed: Mapping[str, str], what: str, extra: str) -> None:
    missing = sorted(package for module, package in needed.items() if importlib.util.find_spec(module) is None)
    if missing:
        message = f"{what} needs {', '.join(missing)}; install the extra: pip install 'llamafu[{extra}]'"
        raise LlamafuError(message)


def serve_with(settings: Settings, refuse: Callable[[str], object]) -> int:
    """Open the engine with the adapters of `--lora` active, serve until a signal, and return the exit status.

    `refuse` is called with the message for a setting that the engine finds illegal. With `--ray`, replicas open the engines.
    """
    from llamafu.engine import Engine
    from llamafu.libraries.openmp import shorten_openmp_spin
    from llamafu.server.auth.startup_keys import load_startup_keys, startup_key_file
    from llamafu.server.run import serve
    from llamafu.server.storage.adapter_folder import AdapterFolder

    folder = AdapterFolder(settings.adapters) if settings.adapters else None
    found: dict[str, object] = {**(folder.scan() if folder else {})}
    fetched = _fetched(settings.hub_adapter, found)
    found |= fetched
    mixes = _mixes_from_start(settings, folder, found)
    _demand_adapters("--lora", dict(settings.lora), {**found, **mixes})
    _demand_free_aliases(settings.alias, found)
    try:
        path = model_path(settings.model)
        settings = replace(settings, model=str(path))
        if settings.ray:
            return _serve_on_ray(replace(settings, keys=startup_key_file(settings, _print_line)))
        guard = load_startup_keys(settings, _print_line)
    except ValueError as error:
        raise LlamafuError(str(error)) from error
    _log_requests()
    _LOG.info("opening %s; the first start on a machine compiles for half a minute or more", path.name)
    shorten_openmp_spin()
    with options_checked(refuse):
        engine = Engine(path, **settings.engine_arguments)
    with engine:
        named = [name for each in (dict(settings.lora), *mixes.values()) for name in each]
        for name, place in fetched.items():
            engine.add_adapter(place, name=name)
        for name in dict.fromkeys(name for name in named if name not in {*mixes, *fetched}):
            assert folder is not None  # noqa: S101 - Settings demands it
            engine.add_adapter(folder.path_of(name), name=name)  # a damaged one is an error; others of the folder are logged
        for name, scales in mixes.items():
            engine.add_mix(name, scales)
        engine.set_lora_adapters(dict(settings.lora))
        stats = engine.stats()
        _print_line(f"{path.name}: {stats.kernel} kernel, {settings.max_sequences} sequences, {settings.n_ctx} tokens")
        if settings.n_gpu_layers != 0:
            _print_line(f"{path.name}: {stats.placement}")
        return 0 if serve(engine, settings, guard, _print_line) else 1


def _serve_on_ray(settings: Settings) -> int:
    from llamafu.ray.serve_cluster import serve_cluster

    serve_cluster(settings, _print_line)
    return 0


def _mixes_from_start(
    settings: Settings, folder: AdapterFolder | None, adapters: Collection[str]
) -> dict[str, Mapping[str, float]]:
    """Return the mixes of --mix, and those of the folder that --lora names; an error where one of them cannot be used."""
    from llamafu._util.file_names import NAME_RULE, is_name
    from llamafu.lora.mix_files import MixFiles

    kept = {} if folder is None else MixFiles(folder.folder).read()
    active = {name for name, _ in settings.lora} - set(adapters)
    found = {name: file.scales for name, file in kept.items() if name in active and file.problem is None}
    for name in dict(settings.mix):
        if not is_name(name):
            message = f"--mix: {name!r} is no mix's name; use {NAME_RULE}"
            raise LlamafuError(message)
        if name in adapters:
            message = f"--mix names {name!r}, which is an adapter in the folder of --adapters; give the mix another name"
            raise LlamafuError(message)
    found |= dict(settings.mix)
    for name, scales in found.items():
        _demand_adapters(f"the mix {name!r}", scales, adapters)
    return found


def _fetched(adapters: Iterable[tuple[str, str]], taken: Collection[str]) -> dict[str, Path]:
    """Return where the adapters of the hub are on this machine, by name, fetched if need be; before the model is opened."""
    found: dict[str, Path] = {}
    for name, reference in adapters:
        if name in taken:
            message = f"--hub-adapter names {name!r}, which is an adapter in the folder of --adapters; give it another name"
            raise LlamafuError(message)
        found[name] = local_adapter(reference)
        _LOG.info("%s is %s", name, found[name])
    return found


def _demand_adapters(who: str, wanted: Collection[str], there: Collection[str]) -> None:
    if unknown := sorted(set(wanted) - set(there)):
        message = (
            f"{who} names {listed([repr(name) for name in unknown])}, which the folder of --adapters does not hold "
            f"(adapters: {listed(there)})"
        )
        raise LoraNotFoundError(message)


def _demand_free_aliases(aliases: Collection[str], adapters: Collection[str]) -> None:
    if taken := sorted(set(aliases) & set(adapters)):
        message = (
            f"--alias names {', '.join(map(repr, taken))}, which is an adapter in the folder of --adapters, and then could not "
            "be chosen as model; give the base another name"
        )
        raise LlamafuError(message)


def _print_line(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _log_requests() -> None:
    """Send the server's log and its access log to stderr."""
    for name, form in (("llamafu.access", "%(message)s"), ("llamafu.server", "%(levelname)s: %(message)s")):
        logger, handler = logging.getLogger(name), logging.StreamHandler()
        handler.setFormatter(logging.Formatter(form))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
