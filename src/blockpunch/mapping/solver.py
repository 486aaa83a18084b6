"""The solver: of every layer one choice, so that the network costs least within a latency.

Each item offers options, of which one is taken; costs add up, and so do seconds, but for what neighbours save each
other (:class:`Coupling`). Item by item, every sum that no other beats in both is kept (dynamic programming over Pareto
frontiers; where the next item is coupled to this one, a frontier for each option of this one): after the last item
these are the whole frontier from latency to cost. It is exact as long as it is short, but for a detail: of sums that
differ in what the last item takes only the better one of today is kept. Longer ones are thinned to a fine grid of
latencies; the latencies that stay are true sums, so that rounding never overruns a budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]

LONG = 10_000
"""Points of a frontier up to which nothing is left out; also the steps of the grid of latencies beyond."""
EACH = 1_000
"""The same for one of several frontiers that are kept beside each other."""


@dataclass(frozen=True)
class Coupling:
    """What an item and the one before it save each other; all ``[options before, options]``.

    Attributes:
        before: part of its seconds that the item before still takes.
        own: part of its seconds that this item takes.
        between: seconds that steps between the two save.
    """

    before: Floats
    own: Floats
    between: Floats

    def part(self, before: Sequence[int], own: Sequence[int]) -> Coupling:
        """The same for some of the options alone."""
        at = np.ix_(before, own)
        return Coupling(self.before[at], self.own[at], self.between[at])


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


@dataclass(frozen=True)
class _Sums:
    """Sums over the items so far: in all, of the last item alone, and its option."""

    seconds: Floats
    costs: Floats
    last: Floats
    option: Numbers
    parent: Numbers

    def take(self, points: Numbers) -> _Sums:
        return _Sums(self.seconds[points], self.costs[points], self.last[points], self.option[points],
                     self.parent[points])


def frontier(items: Sequence[Sequence[tuple[float, float]]], couplings: Sequence[Coupling | None] = ()) -> Frontier:
    """All best sums.

    Args:
        items: for each item its options, ``(seconds, cost)``; at least one each.
        couplings: for each item what it and the one before save each other, or None; empty: nothing anywhere.
    """
    couplings = couplings or [None] * len(items)
    start = np.zeros(1, np.int64)
    sums, steps = _Sums(np.zeros(1), np.zeros(1), np.zeros(1), start, start), []
    whole = sum(max(s for s, _ in options) for options in items)
    for options, coupling, following in zip(items, couplings, [*couplings[1:], None], strict=True):
        grown = list(_grown(sums, np.array(options, np.float64), coupling, following))
        if following is None:
            sums = _thinned(_joined(grown), whole, LONG)
        else:
            sums = _joined([_thinned(each, whole, EACH) for each in grown])
        steps.append((sums.parent, sums.option))
    return Frontier(sums.seconds, sums.costs, tuple(steps))


def _grown(sums: _Sums, pairs: Floats, coupling: Coupling | None, following: Coupling | None) -> Iterator[_Sums]:
    """The sums with each option that could be the best."""
    free = coupling is None and following is None
    parents = np.arange(len(sums.seconds))
    for option in _best(pairs[:, 0], pairs[:, 1]) if free else range(len(pairs)):
        seconds, cost = pairs[option]
        own, saved = np.full(len(parents), seconds), np.zeros(len(parents))
        if coupling is not None:
            at = sums.option, option
            own, saved = own * coupling.own[at], sums.last * (1 - coupling.before[at]) + coupling.between[at]
        yield _Sums(sums.seconds - saved + own, sums.costs + cost, own, np.full(len(parents), option, np.int64),
                    parents)


def _joined(parts: Sequence[_Sums]) -> _Sums:
    return _Sums(*(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(_Sums)))


def _thinned(sums: _Sums, whole: float, most: int) -> _Sums:
    """The sums that none beats; of more than ``most`` the fastest, and the cheapest of each step of a grid."""
    if len(sums.seconds) > most:
        steps = ((sums.seconds - sums.seconds.min()) * (most / whole)).astype(np.int64)  # savings may come before times
        least = np.full(int(steps.max()) + 1, np.inf)
        np.minimum.at(least, steps, sums.costs)
        kept = sums.costs == least[steps]
        kept[sums.seconds.argmin()] = True
        sums = sums.take(np.flatnonzero(kept))
    return sums.take(_best(sums.seconds, sums.costs))


def _best(seconds: Floats, costs: Floats) -> Numbers:
    """Numbers of the points that none beats in both, by rising seconds."""
    order = np.lexsort((costs, seconds))
    falling = costs[order]
    before = np.minimum.accumulate(np.concatenate([[np.inf], falling[:-1]]))
    return np.asarray(order[falling < before], np.int64)
