"""`llamafu serve`: a model and its adapters over HTTP, with many requests at once."""

from __future__ import annotations

import importlib.util
import logging
import sys
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from llamafu._util.listing import listed
from llamafu.cli.arguments import model_path
from llamafu.errors import LlamafuError, LoraNotFoundError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Collection, Mapping

    from llamafu.server.settings import Settings
    from llamafu.server.storage.adapter_folder import AdapterFolder

_NEEDED = {"starlette": "starlette", "uvicorn": "uvicorn", "multipart": "python-multipart", "pydantic": "pydantic"}


def add_parser(subparsers: Any) -> None:
    """Add `serve`."""
    from llamafu.server.settings import PREFIX, add_arguments

    text = (
        "Serve a model and a folder of adapters over HTTP, to clients of OpenAI, TabbyAPI, llama-server and vLLM. Every flag "
        f"is also a variable of the environment ({PREFIX}PORT=9000) and a name in the file of --config."
    )
    parser = subparsers.add_parser("serve", help="serve a model and its adapters over HTTP", description=text)
    add_arguments(parser)
    parser.set_defaults(run=_run, refuse=parser.error)


def _run(arguments: argparse.Namespace) -> int:
    from llamafu.server.settings import Settings, load

    missing = sorted(package for module, package in _NEEDED.items() if importlib.util.find_spec(module) is None)
    if missing:
        message = f"serving needs {', '.join(missing)}; install the extra: pip install 'llamafu[server]'"
        raise LlamafuError(message)
    given = {each.name: getattr(arguments, each.name) for each in fields(Settings)}
    try:
        settings = load(given, config=arguments.config)
    except ValueError as error:
        arguments.refuse(str(error))
    return serve_with(settings)


def serve_with(settings: Settings) -> int:
    """Open the engine with the adapters of `--lora` active, serve until a signal, and return the exit status."""
    from llamafu.engine import Engine
    from llamafu.libraries.openmp import shorten_openmp_spin
    from llamafu.server.auth.startup_keys import load_startup_keys
    from llamafu.server.run import serve
    from llamafu.server.storage.adapter_folder import AdapterFolder

    folder = AdapterFolder(settings.adapters) if settings.adapters else None
    found = folder.scan() if folder else {}
    mixes = _mixes_from_start(settings, folder, found)
    _demand_adapters("--lora", dict(settings.lora), {**found, **mixes})
    _demand_free_aliases(settings.alias, found)
    try:
        guard = load_startup_keys(settings, _print_line)
        path = model_path(settings.model)
        settings = replace(settings, model=str(path))
    except ValueError as error:
        raise LlamafuError(str(error)) from error
    _log_requests()
    shorten_openmp_spin()
    with Engine(
        path,
        max_sequences=settings.max_sequences,
        max_queue=settings.max_queue,
        target_itl_ms=settings.target_itl_ms,
        prompt_lookup_num_tokens=settings.prompt_lookup_num_tokens,
        bank_rank=settings.bank_rank,
        n_ctx=settings.n_ctx,
        n_threads=settings.threads,
        scale_range=settings.scale_range,
        library=settings.library,
        mmproj_path=settings.mmproj,
        **settings.device_arguments,
    ) as engine:
        named = [name for each in (dict(settings.lora), *mixes.values()) for name in each]
        for name in dict.fromkeys(name for name in named if name not in mixes):
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


def _mixes_from_start(
    settings: Settings, folder: AdapterFolder | None, adapters: Collection[str]
) -> dict[str, Mapping[str, float]]:
    """Return the mixes of --mix, and those of the folder that --lora names; an error where one of them cannot be used."""
    from llamafu.server.storage.adapter_folder import NAME_RULE, is_name
    from llamafu.server.storage.mix_files import MixFiles

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
