"""What one core can do at most: multiply-adds, and bytes from each level of its memory, measured by small C loops.

The loops are built like the kernels are, by the same compiler and flags.
"""

from __future__ import annotations

import ctypes
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from blockpunch.errors import TargetMismatchError
from blockpunch.measure.pinning import pinned
from blockpunch.target import Target

# 12 chains cover the latency of two FMA pipes (4 cycles each) and fit the 16 registers of AVX2.
_CHAINS = 12
_STREAMS = 8


@dataclass(frozen=True)
class Level:
    """A level of the memory: its name, the bytes that fit into it (None: any), and bytes per second that one core
    reads from it."""

    name: str
    capacity: int | None
    bytes_per_second: float


def _source(floats: int) -> str:
    names = [f"a{i}" for i in range(_CHAINS)]
    declare = "\n".join(f"    vec {name} = x + {i}.0f;" for i, name in enumerate(names))
    step = " ".join(f"{name} = {name} * x + y;" for name in names)
    # Left to itself the compiler shuffles the loads, which halves what the second-level cache delivers.
    loads = " ".join(f"s{i} += p[i + {i}]; __asm__ volatile(\"\" ::: \"memory\");" for i in range(_STREAMS))
    sums = ", ".join(f"s{i} = {{0}}" for i in range(_STREAMS))
    return f"""typedef float vec __attribute__((vector_size({floats * 4})));
static float total(vec sum) {{
    float result = 0;
    for (int i = 0; i < {floats}; i++) result += sum[i];
    return result;
}}
__attribute__((visibility("default"))) float bp_peak(long rounds, float scale, float shift) {{
    vec x = (vec){{0}} + scale, y = (vec){{0}} + shift;
{declare}
    for (long i = 0; i < rounds; i++) {{ {step} }}
    return total({" + ".join(names)});
}}
__attribute__((visibility("default"))) float bp_stream(const void *from, long bytes, long rounds) {{
    const vec *p = from;
    vec {sums};
    for (long round = 0; round < rounds; round++)
        for (long i = 0; i < bytes / {floats * 4}; i += {_STREAMS}) {{ {loads} }}
    return total({" + ".join(f"s{i}" for i in range(_STREAMS))});
}}
"""


@contextmanager
def _loops(target: Target) -> Iterator[ctypes.CDLL]:
    """The loops, built and loaded, on one core."""
    runs, missing = target.runs_here()
    if not runs:
        raise TargetMismatchError(f"this CPU lacks {', '.join(missing)}", where=target.name,
                                  fix="measure on the target itself")
    from blockpunch.compiler.toolchain import find_compiler  # late: the compiler's package needs jinja2

    built = find_compiler(target).build_shared({"peak.c": _source(target.vector_floats)}, target)
    with tempfile.TemporaryDirectory(prefix="blockpunch-") as folder:
        path = Path(folder) / "peak.so"
        path.write_bytes(built)
        library = ctypes.CDLL(str(path))
        library.bp_peak.argtypes = [ctypes.c_long, ctypes.c_float, ctypes.c_float]
        library.bp_stream.argtypes = [ctypes.c_void_p, ctypes.c_long, ctypes.c_long]
        library.bp_peak.restype = library.bp_stream.restype = ctypes.c_float
        with pinned(1):
            yield library


def _best_seconds(action: Callable[[], object], runs: int) -> float:
    """The least CPU time of several runs, after one that warms up."""
    action()
    best = float("inf")
    for _ in range(runs):
        start = time.process_time_ns()
        action()
        best = min(best, (time.process_time_ns() - start) / 1e9)
    return best


@lru_cache(maxsize=8)
def fma_peak(target: Target) -> float:
    """Multiply-accumulates per second (float32) that one core of this machine reaches with the target's vectors.

    Twice this is FLOP/s. The best of several short runs, in CPU time.

    Raises:
        TargetMismatchError: this machine cannot run the target's code.
        ToolchainError: no C compiler.
    """
    rounds = 400_000
    with _loops(target) as library:
        seconds = _best_seconds(lambda: library.bp_peak(rounds, 0.999, 0.5), 12)
    return rounds * _CHAINS * target.vector_floats / seconds


@lru_cache(maxsize=8)
def memory_levels(target: Target) -> tuple[Level, ...]:
    """The second- and third-level caches and main memory, nearest first, with what one core reads from each.

    Each is read in a stream from a buffer that fits into it and not into the level before. Half a second.

    Raises:
        TargetMismatchError: this machine cannot run the target's code.
        ToolchainError: no C compiler.
    """
    host = Target.host()  # a named target has the caches of its kind, not those of this machine
    l2, l3 = host.l2_bytes, host.l3_bytes
    sizes: list[tuple[str, int | None, int]] = [("L2", l2, l2 // 2)]
    if l3 > l2:
        sizes.append(("L3", l3, min(4 * l2, (l2 + l3) // 2)))
    sizes.append(("DRAM", None, 4 * max(l2, l3)))
    levels = []
    with _loops(target) as library:
        for name, capacity, size in sizes:
            step = _STREAMS * target.vector_floats * 4
            size = -(-size // step) * step
            buffer = np.ones(size + 64, np.uint8)
            start = buffer.ctypes.data + -buffer.ctypes.data % 64
            rounds = max(1, (64 << 20) // size)
            seconds = _best_seconds(lambda start=start, size=size, rounds=rounds:  # type: ignore[misc]
                                    library.bp_stream(start, size, rounds), 6)
            levels.append(Level(name, capacity, size * rounds / seconds))
    return tuple(levels)
