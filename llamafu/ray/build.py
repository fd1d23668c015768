"""The application of Ray Serve: ingress, replicas and the holder of their state, from the server's settings."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve.config import RequestRouterConfig

from llamafu._util.suggestions import did_you_mean
from llamafu.ray.adapter_router import AdapterRouter
from llamafu.ray.ingress import Ingress
from llamafu.ray.replica import Replica
from llamafu.ray.state_hub import StateHub
from llamafu.server.auth.keys import KeyRing, read_keys
from llamafu.server.settings import Settings

if TYPE_CHECKING:
    import os

    from ray.serve import Application
    from ray.serve.request_router import RequestRouter

_HEAD = "node:__internal_head__"
"""What Ray says that only the head has: the holder of the state runs there, since the adapters folder is there."""
_MANY = 1_000_000
"""Calls that the hub takes at a time: each replica has one that waits for news."""
_ASIDE = 64
"""Requests beside those that an engine runs or lets wait: lists, keys, refusals."""
_REPORTS = 1.0
"""Seconds between two reports of a replica."""


def build_app(
    model: str | os.PathLike[str],
    *,
    adapters: str | os.PathLike[str] | None = None,
    num_replicas: int = 1,
    **settings: Any,
) -> Application:
    """Return an application for `serve.run`: the server's routes over `num_replicas` replicas, each with an engine.

    Args:
        model: the GGUF file, by a path that every machine of the cluster has.
        adapters: the folder of adapters, on the cluster's head. Replicas elsewhere are sent what they lack.
        num_replicas: how many replicas, each of `threads` CPUs (1 where that is not given).
        settings: further settings of the server by name, as in `llamafu serve --help`: `lora={"pirate": 0.8}`,
            `n_ctx=8192`, `api_key=("...",)`. What is about the address, Ray has instead.

    Raises TypeError for a name that is no setting, ValueError for what is not legal.

    """
    known = {each.name for each in fields(Settings)} - {"model", "adapters", "ray", "replicas"}
    for name in settings:
        if name not in known:
            hint = did_you_mean(name, known) or f" (settings: {', '.join(sorted(known))})"
            message = f"{name!r} is not a setting{hint}"
            raise TypeError(message)
    for name in ("lora", "mix"):
        if isinstance(settings.get(name), dict):
            settings[name] = tuple(settings[name].items())
    folder = None if adapters is None else Path(adapters)
    return application(Settings(model=str(model), adapters=folder, ray=True, replicas=num_replicas, **settings))


def application(settings: Settings, router: type[RequestRouter] = AdapterRouter) -> Application:
    """Return the application of these settings; `ValueError` where they have no keys and do not say that none are needed.

    `router`: another one, to compare with.
    """
    if not (settings.api_key or settings.admin_key or settings.keys or settings.no_auth):
        message = "no key was given, and replicas cannot make one up each; give api_key and admin_key, keys, or no_auth"
        raise ValueError(message)
    given, file = KeyRing(settings.api_key, settings.admin_key), settings.keys
    keys = (given, None, KeyRing()) if file is None else (given, str(file.absolute()), read_keys(file))
    settings = replace(settings, api_key=(), admin_key=(), keys=None)
    folder = None if settings.adapters is None else str(Path(settings.adapters).absolute())
    waiting = settings.max_sequences + settings.max_queue + _ASIDE
    quiet = {"enable_access_log": False}  # every question for news would be a line
    hub = serve.deployment(
        StateHub,
        name="state",
        num_replicas=1,
        max_ongoing_requests=_MANY,
        ray_actor_options={"num_cpus": 0, "resources": {_HEAD: 0.001}},
        logging_config=quiet,
    ).bind(folder, dict(settings.lora), keys)
    replicas = serve.deployment(
        Replica,
        name="replicas",
        num_replicas=settings.replicas,
        max_ongoing_requests=waiting,
        logging_config=quiet,
        ray_actor_options={"num_cpus": settings.threads or 1},
        request_router_config=RequestRouterConfig(request_router_class=router, request_routing_stats_period_s=_REPORTS),
        health_check_period_s=2,
        graceful_shutdown_timeout_s=settings.grace,
    ).bind(replace(settings, threads=settings.threads or 1), hub)
    return serve.deployment(
        Ingress,
        name="ingress",
        num_replicas=1,
        max_ongoing_requests=settings.replicas * waiting,
        logging_config=quiet,
        ray_actor_options={"num_cpus": 0},
    ).bind(settings, hub, replicas)
