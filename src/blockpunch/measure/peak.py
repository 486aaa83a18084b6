"""The most multiply-adds that one core does: measured by a C loop of nothing else, built like the kernels are."""

from __future__ import annotations

import ctypes
import tempfile
import time
from functools import lru_cache
from pathlib import Path

from blockpunch.errors import TargetMismatchError
from blockpunch.measure.pinning import pinned
from blockpunch.target import Target

# 12 chains cover the latency of two FMA pipes (4 cycles each) and fit the 16 registers of AVX2.
_CHAINS = 12


def _source(floats: int) -> str:
    names = [f"a{i}" for i in range(_CHAINS)]
    declare = "\n".join(f"    vec {name} = x + {i}.0f;" for i, name in enumerate(names))
    step = " ".join(f"{name} = {name} * x + y;" for name in names)
    total = " + ".join(names)
    return f"""typedef float vec __attribute__((vector_size({floats * 4})));
__attribute__((visibility("default"))) float bp_peak(long rounds, float scale, float shift) {{
    vec x = (vec){{0}} + scale, y = (vec){{0}} + shift;
{declare}
    for (long i = 0; i < rounds; i++) {{ {step} }}
    vec sum = {total};
    float result = 0;
    for (int i = 0; i < {floats}; i++) result += sum[i];
    return result;
}}
"""


@lru_cache(maxsize=8)
def fma_peak(target: Target) -> float:
    """Multiply-accumulates per second (float32) that one core of this machine reaches with the target's vectors.

    Twice this is FLOP/s. The best of several short runs, in CPU time.

    Raises:
        TargetMismatchError: this machine cannot run the target's code.
        ToolchainError: no C compiler.
    """
    runs, missing = target.runs_here()
    if not runs:
        raise TargetMismatchError(f"this CPU lacks {', '.join(missing)}", where=target.name,
                                  fix="measure on the target itself")
    from blockpunch.compiler.toolchain import find_compiler  # late: the compiler's package needs jinja2

    built = find_compiler(target).build_shared({"peak.c": _source(target.vector_floats)}, target)
    with tempfile.TemporaryDirectory(prefix="blockpunch-") as folder:
        path = Path(folder) / "peak.so"
        path.write_bytes(built)
        function = ctypes.CDLL(str(path)).bp_peak
        function.argtypes, function.restype = [ctypes.c_long, ctypes.c_float, ctypes.c_float], ctypes.c_float
        rounds, best = 400_000, 0.0
        with pinned(1):
            function(rounds, 0.999, 0.5)
            for _ in range(12):
                start = time.process_time_ns()
                function(rounds, 0.999, 0.5)
                elapsed = (time.process_time_ns() - start) / 1e9
                best = max(best, rounds * _CHAINS * target.vector_floats / elapsed)
    return best
