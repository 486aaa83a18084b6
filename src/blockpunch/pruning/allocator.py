"""Training steps and passes over photos allocate and free the same large maps again and again: glibc keeps them here.

It gives blocks of some megabytes back to the system as soon as they are free, and the system hands them out again page
by page, zeroed: a quarter of a training step of MobileNetV2-like networks on a CPU, half of a forward pass.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8
_USUAL = {_TRIM_THRESHOLD: 64 << 20, _MMAP_THRESHOLD: 32 << 20, _MMAP_MAX: 65536}
"""Where glibc's own adjustment ends up in processes that free large blocks."""
_lock, _inside = threading.Lock(), [0]


@contextmanager
def memory_kept() -> Iterator[None]:
    """Inside the block freed memory stays with the process; it goes back at its end. Nothing happens without glibc.

    Blocks may be nested, and run in several threads. New threads share the memory of the main one, from the first
    block on: glibc takes their arenas apart whatever it is told, and takes the number of arenas once.
    """
    library = _glibc()
    if library is None:
        yield
        return
    with _lock:
        _inside[0] += 1
        for option, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1)):
            library.mallopt(option, value)
    try:
        yield
    finally:
        with _lock:
            _inside[0] -= 1
            if not _inside[0]:
                for option, value in _USUAL.items():
                    library.mallopt(option, value)
                library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    wanted = ("gnu_get_libc_version", "mallopt", "malloc_trim")
    return library if all(hasattr(library, name) for name in wanted) else None
