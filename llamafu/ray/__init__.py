"""A server of many replicas on Ray Serve: `build_app`, and `app` for `serve run llamafu.ray:app`. Needs the extra `ray`.

The modules without Ray's name in their imports can be used and tested without it.
"""

from __future__ import annotations

from llamafu._util.lazy import lazy_names

__all__ = ["build_app"]
__getattr__, __dir__ = lazy_names(__name__, {"build_app": ".build", "app": ".environment_app"})
