"""Which statuses may come."""

from __future__ import annotations

MAY_COME = {*range(200, 205), 400, 401, 403, 404, 405, 408, 409, 413, 415, 429}
