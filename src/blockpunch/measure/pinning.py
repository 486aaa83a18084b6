"""Hold this process to as many cores as it is to use, so that engines are compared on equal terms."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STAT = Path("/proc/stat")


def _busy_ticks() -> dict[int, int]:
    """Clock ticks that each core has not been idle for; empty where the system does not tell."""
    try:
        lines = [line.split() for line in _STAT.read_text().splitlines()]
        return {int(f[0][3:]): sum(map(int, f[1:4])) + sum(map(int, f[6:9]))
                for f in lines if f and f[0].startswith("cpu") and f[0] != "cpu"}
    except (OSError, ValueError, IndexError):
        return {}


def idlest_cores(count: int, *, watch_seconds: float = 0.3) -> list[int]:
    """The ``count`` cores, of those this process may use, that did the least while watched."""
    allowed = sorted(os.sched_getaffinity(0))
    if count >= len(allowed):
        return allowed
    before = _busy_ticks()
    time.sleep(watch_seconds)
    after = _busy_ticks()
    # Core 0 takes most interrupts: where cores tie, later ones are preferred.
    return sorted(sorted(allowed, key=lambda core: (after.get(core, 0) - before.get(core, 0), -core))[:count])


@contextmanager
def pinned(threads: int) -> Iterator[list[int]]:
    """Run the body on ``threads`` cores; threads started inside stay there. Yields the cores (none: not possible)."""
    if not hasattr(os, "sched_setaffinity"):
        yield []
        return
    before = os.sched_getaffinity(0)
    cores = idlest_cores(threads)
    os.sched_setaffinity(0, cores)
    try:
        yield cores
    finally:
        os.sched_setaffinity(0, before)
