"""`app`: the application of the settings in the environment, for `serve run llamafu.ray:app`."""

from __future__ import annotations

from llamafu.ray.build import application
from llamafu.server.settings import load

app = application(load({"ray": "true"}))
