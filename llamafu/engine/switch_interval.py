"""Python's switch interval while an engine has work.

A thread that runs Python code gives the interpreter to a waiting one after `sys.getswitchinterval()` seconds, by default
0.005. An engine waits that long after each decode call while another thread is busy. So an engine that has work shortens the
interval, which is the whole process's, to 0.0005, and restores it when it has none. An interval that is as short already is
left alone, and so is one that the program sets while an engine has work, until an engine is next given work after a pause.
"""

from __future__ import annotations

import sys
import threading

_SECONDS = 0.0005
"""A tenth of Python's default."""
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
