"""The solver: of every layer one choice, so that the network costs least within a latency.

Each item offers options, of which one is taken; seconds and costs add up. Item by item, every sum that no other beats
in both is kept (dynamic programming over Pareto frontiers): after the last item these are the whole frontier from
latency to cost, exact as long as it is short. Longer ones are thinned to a fine grid of latencies; the latencies that
stay are true sums, so that rounding never overruns a budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]

LONG = 10_000
"""Points of a frontier up to which nothing is left out; also the steps of the grid of latencies beyond."""


@dataclass(frozen=True)
class Frontier:
    """The best sums: ``seconds`` ``[n]`` rise, ``costs`` ``[n]`` fall."""

    seconds: Floats
    costs: Floats
    _steps: tuple[tuple[Numbers, Numbers], ...]

    def within(self, seconds: float) -> int | None:
        """The number of the cheapest point that takes at most ``seconds``, or None."""
        at = int(np.searchsorted(self.seconds, seconds, side="right")) - 1
        return at if at >= 0 else None

    def chosen(self, point: int) -> list[int]:
        """The option of each item at a point."""
        found = []
        for parents, options in reversed(self._steps):
            found.append(int(options[point]))
            point = int(parents[point])
        return found[::-1]

    def price(self, point: int) -> float:
        """Cost of a second at a point: the slope of the frontier there, over a hundredth of its width."""
        width = (self.seconds[-1] - self.seconds[0]) / 100
        low = max(0, int(np.searchsorted(self.seconds, self.seconds[point] - width)) - 1)
        high = min(len(self.seconds) - 1, int(np.searchsorted(self.seconds, self.seconds[point] + width)))
        run = float(self.seconds[high] - self.seconds[low])
        return float(self.costs[low] - self.costs[high]) / run if run > 0 else 0.0


def frontier(items: Sequence[Sequence[tuple[float, float]]]) -> Frontier:
    """All best sums.

    Args:
        items: for each item its options, ``(seconds, cost)``; at least one each.
    """
    seconds, costs = np.zeros(1), np.zeros(1)
    steps = []
    grid = sum(max(s for s, _ in options) for options in items) / LONG
    for options in items:
        pairs = np.array(options, np.float64)
        useful = _best(pairs[:, 0], pairs[:, 1])
        sums = (seconds[:, None] + pairs[useful, 0]).ravel(), (costs[:, None] + pairs[useful, 1]).ravel()
        best = _best(*sums)
        if len(best) > LONG:
            best = best[_thinned(sums[0][best], grid)]
        seconds, costs = sums[0][best], sums[1][best]
        steps.append((best // len(useful), useful[best % len(useful)]))
    return Frontier(seconds, costs, tuple(steps))


def _best(seconds: Floats, costs: Floats) -> Numbers:
    """Numbers of the points that none beats in both, by rising seconds."""
    order = np.lexsort((costs, seconds))
    falling = costs[order]
    before = np.minimum.accumulate(np.concatenate([[np.inf], falling[:-1]]))
    return np.asarray(order[falling < before], np.int64)


def _thinned(seconds: Floats, grid: float) -> Numbers:
    """Of each step of the grid the first point (the fastest) and the last (the cheapest)."""
    steps = (seconds / grid).astype(np.int64)
    change = np.flatnonzero(np.diff(steps))
    return np.unique(np.concatenate([[0], change, change + 1, [len(steps) - 1]]))
