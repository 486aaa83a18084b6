"""The fastest plan that costs no more than so many points of accuracy: a walk along the exact frontier.

The cost that the exact mapping weighs plans by puts them into order; what they cost in points only a trial can tell.
Each trial lies between the fastest plan known to be good and the slowest known to be bad: where the points meet the
goal if between these two they go with a power of the cost, and as long as nothing is known, nearer to the dense
network: what is asked for are few points.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from blockpunch.errors import PlanError
from blockpunch.mapping.choices import Mapped
from blockpunch.mapping.exact import Exact
from blockpunch.plan import Plan

TRIALS = 7
"""At most."""
FINE = 0.015
"""The walk ends where good and bad plans are as near as this part of the dense network's time."""
NEAR = 0.2
"""The walk ends, too, where a good plan loses less than the goal by this part of it at most."""
FIRST = 1 / 3
"""Part of the space between the dense network and the fastest plan, in seconds, that the first trial goes."""
MARGIN = 0.2
"""Part of the space between good and bad, in seconds, that a trial keeps from both."""


@dataclass(frozen=True)
class Trial:
    """A plan of the frontier that was tried: predicted seconds, cost, points of accuracy lost and their error."""

    seconds: float
    cost: float
    points: float
    error: float


def map_within_drop(exact: Exact, points: float, lost: Callable[[Plan], tuple[float, float]]) -> Mapped:
    """The fastest plan of the frontier that was tried and loses at most ``points``.

    Args:
        exact: the frontier.
        points: of accuracy.
        lost: gives (points lost, standard error) of a plan, from a real trial.

    Raises:
        PlanError: the slowest plan that was tried loses more.
    """
    good, bad = len(exact) - 1, -1  # points of the frontier: dense is good; faster than the fastest would be bad
    trials: list[Trial] = []
    while len(trials) < TRIALS and good - bad > 1:
        upper, lower = exact.seconds(good), exact.seconds(max(bad, 0))
        if trials and upper - lower < FINE * exact.dense.seconds:
            break
        at = min(max(_next(exact, points, trials, lower, upper), bad + 1), good - 1)
        found = Trial(exact.predicted(at).seconds, exact.cost(at), *lost(exact.mapped(at).plan))
        trials.append(found)
        if found.points <= points:
            good = at
            if found.points >= (1 - NEAR) * points:
                break
        else:
            bad = at
    if good == len(exact) - 1:
        least = min(trials, key=lambda trial: trial.cost)
        raise PlanError(f"no plan that was tried loses at most {points:g} points: {least.seconds * 1e3:.3g} ms lose "
                        f"{least.points:.2f}", where=exact.network.graph.name, fix="allow more, or give more photos")
    return replace(exact.mapped(good), trials=tuple((t.seconds, t.cost, t.points, t.error) for t in trials))


def _next(exact: Exact, points: float, trials: list[Trial], lower: float, upper: float) -> int:
    """The point to try between two latencies."""
    seconds, room = upper - FIRST * (upper - lower), MARGIN * (upper - lower)
    if telling := _telling(trials, points):
        cost = telling[0].cost * (points / telling[0].points) ** (1 / _power(telling))
        seconds = next((exact.seconds(i) for i in range(len(exact)) if exact.cost(i) <= cost), upper)
    return exact.near(min(max(seconds, lower + room), upper - room)) or 0


def _telling(trials: list[Trial], points: float) -> list[Trial]:
    """The good and the bad trial that are nearest to each other, or two where there are none of one kind."""
    positive = sorted((trial for trial in trials if trial.points > 0), key=lambda trial: trial.cost)
    good, bad = ([t for t in positive if (t.points <= points) is kind] for kind in (True, False))
    return [good[-1], bad[0]] if good and bad else good[-2:] or bad[:2]


def _power(trials: list[Trial]) -> float:
    """The power of the cost that the points go with, by two trials; 1 where they do not tell."""
    costs, points = (math.log(values[0] / values[-1]) for values in
                     ([trial.cost for trial in trials], [trial.points for trial in trials]))
    return min(max(points / costs, 0.3), 3.0) if costs else 1.0
