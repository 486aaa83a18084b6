"""Training steps allocate and free the same large maps again and again; here the C library keeps them at hand.

glibc gives blocks of some megabytes back to the system as soon as they are free, and the system hands them out again
page by page, zeroed: a quarter of a training step of MobileNetV2-like networks on a CPU.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_USUAL = {_TRIM_THRESHOLD: 64 << 20, _MMAP_THRESHOLD: 32 << 20, _MMAP_MAX: 65536}
"""Where glibc's own adjustment ends up in processes that free large blocks."""


@contextmanager
def memory_kept() -> Iterator[None]:
    """Inside the block freed memory stays with the process; it goes back at its end. Nothing happens without glibc."""
    library = _glibc()
    if library is None:
        yield
        return
    library.mallopt(_MMAP_MAX, 0)
    library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        for option, value in _USUAL.items():
            library.mallopt(option, value)
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    wanted = ("gnu_get_libc_version", "mallopt", "malloc_trim")
    return library if all(hasattr(library, name) for name in wanted) else None
