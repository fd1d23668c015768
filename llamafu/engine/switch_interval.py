"""How long a busy Python thread may keep the interpreter while an engine has work."""

from __future__ import annotations

import sys
import threading

_SECONDS = 0.0005
"""Python's own is 0.005: an engine that comes out of a decode call waits so long beside a busy thread, each step."""
_lock = threading.Lock()
_busy = 0
_before = 0.0


def shorten_switch_interval() -> None:
    """Shorten this process's switch interval until each caller has called `restore_switch_interval`; never lengthen it."""
    global _busy, _before  # noqa: PLW0603 - the interval is the process's, whatever the number of engines
    with _lock:
        _busy += 1
        if _busy == 1:
            _before = sys.getswitchinterval()
            if _before > _SECONDS:
                sys.setswitchinterval(_SECONDS)


def restore_switch_interval() -> None:
    """Restore the interval of before at the last caller's call; one that the program set in the meantime stays."""
    global _busy  # noqa: PLW0603
    with _lock:
        _busy -= 1
        if _busy == 0 and sys.getswitchinterval() == _SECONDS < _before:
            sys.setswitchinterval(_before)
