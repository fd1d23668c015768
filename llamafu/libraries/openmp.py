"""How long OpenMP's threads spin while they wait for each other."""

from __future__ import annotations

import os

_SPIN_COUNT = "1000"
"""Turns of the waiting loop: some microseconds. GNU OpenMP's default is milliseconds."""


def shorten_openmp_spin() -> None:
    """Let OpenMP's threads sleep soon while they wait for each other, in this process and its children.

    Sets `GOMP_SPINCOUNT` to 1000, unless that or `OMP_WAIT_POLICY` is set. GNU OpenMP reads it when libllama is loaded, so
    call this before the first model is opened, as `llamafu serve` does; nothing else in the library does. Use it where the
    CPUs have something else to do while a model computes, such as answering HTTP. By default the threads spin for
    milliseconds there, the one that they wait for does not get a CPU, and a step takes up to forty times as long.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = _SPIN_COUNT
