"""`llamafu serve --ray`: the application on a cluster that is there, or on one of this machine, until a signal."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING

import ray
from ray import serve

from llamafu.errors import LlamafuError
from llamafu.ray.build import application

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamafu.server.settings import Settings

_NAME = "llamafu"
_DEFAULTS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5"}
"""Of a cluster that is started here: no statistics to Ray's makers, and how often its controller looks whether all is well.

At Ray's 0.1 s, the controller alone takes 5 % of a slow CPU while there is nothing to do; at half a second, half of that.
"""


def serve_cluster(settings: Settings, tell: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; `tell` gets the address once requests are taken. From the main thread.

    A cluster is looked for as Ray does (`RAY_ADDRESS`, or one of this machine); its other applications are left alone. Where
    there is none, one of this machine is started, and ended after the signal.
    """
    app = application(settings)
    is_ours = _join_or_start(settings)
    try:
        serve.start(http_options={"host": settings.host, "port": settings.port})
        try:
            serve.run(app, name=_NAME)
        except RuntimeError as error:  # Ray has tried several times, and its message ends with the last traceback
            reason = str(error).strip().splitlines()[-1]
            message = f"the replicas do not start: {reason}"
            raise LlamafuError(message) from error
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        tell(f"listening on http://{host}:{settings.port}, {settings.replicas} replicas")
        _wait_for_signal()
    finally:
        if is_ours:
            serve.shutdown()
        else:
            serve.delete(_NAME)
        ray.shutdown()


def set_defaults() -> None:
    """Set what Ray's environment does not say, before a cluster is started."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)


def _join_or_start(settings: Settings) -> bool:
    """Connect to a cluster; return whether it had to be started."""
    set_defaults()
    try:
        ray.init(address="auto", log_to_driver=False)
    except ConnectionError:
        # The number is Ray's bookkeeping: without it, replicas beyond the CPUs would be waited for without end.
        needed = settings.replicas * (settings.threads or 1)
        ray.init(num_cpus=max(os.cpu_count() or 1, needed), include_dashboard=False, log_to_driver=False)
        return True
    return False


def _wait_for_signal() -> None:
    ended = threading.Event()
    before = {number: signal.signal(number, lambda *_arguments: ended.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ended.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
