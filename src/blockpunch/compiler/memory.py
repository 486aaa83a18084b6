"""The memory plan: buffers whose lives do not overlap share space."""

from __future__ import annotations

from collections.abc import Sequence

from blockpunch.compiler.kernels import Step
from blockpunch.compiler.program import ALIGN


def plan(steps: Sequence[Step], sizes: dict[str, int]) -> tuple[dict[str, int], int]:
    """Place every scratch buffer.

    Args:
        steps: in order of execution.
        sizes: floats that each scratch buffer takes.

    Returns:
        (offset of each buffer in floats, floats in total); largest buffers first, each at the lowest free place.
    """
    lives: dict[str, tuple[int, int]] = {}
    for at, step in enumerate(steps):
        for name in (*step.writes, *step.reads):
            if name in sizes:
                first, _ = lives.get(name, (at, at))
                lives[name] = (first, at)
    line = ALIGN // 4
    placed: list[tuple[int, int, str]] = []  # (start, stop, name)
    for name in sorted(lives, key=lambda n: (-sizes[n], n)):
        size = -(-sizes[name] // line) * line
        start = 0
        for other_start, other_stop, other in sorted(placed):
            together = lives[name][0] <= lives[other][1] and lives[other][0] <= lives[name][1]
            if together and start < other_stop and other_start < start + size:
                start = other_stop
        placed.append((start, start + size, name))
    total = max((stop for _, stop, _ in placed), default=0)
    return {name: start for start, _, name in placed}, total
