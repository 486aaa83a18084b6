"""The solver against enumeration of every combination."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockpunch.mapping import solver
from blockpunch.mapping.solver import frontier

numbers = st.integers(0, 12).map(float)
networks = st.lists(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=5), min_size=1, max_size=5)


@settings(deadline=None, max_examples=150)
@given(networks, st.integers(0, 60).map(float))
def test_cheapest_within_every_budget(items: list[list[tuple[float, float]]], budget: float) -> None:
    sums = [(sum(o[0] for o in combination), sum(o[1] for o in combination)) for combination in product(*items)]
    within = [cost for seconds, cost in sums if seconds <= budget]
    best = frontier(items)
    point = best.within(budget)
    if not within:
        assert point is None
        return
    assert point is not None
    assert best.costs[point] == min(within)
    taken = [options[at] for options, at in zip(items, best.chosen(point), strict=True)]
    assert (sum(o[0] for o in taken), sum(o[1] for o in taken)) == (best.seconds[point], best.costs[point])


def test_long_frontiers_are_thinned_without_loss_that_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    items = [[(float(s), float(1 / s)) for s in rng.uniform(0.1, 1, 12)] for _ in range(12)]
    full = frontier(items)
    monkeypatch.setattr(solver, "LONG", 800)
    short = frontier(items)
    assert len(short.seconds) <= 3 * 800 < len(full.seconds)
    for budget in np.linspace(full.seconds[0], full.seconds[-1], 20):
        a, b = full.within(budget), short.within(budget)
        assert a is not None and b is not None
        assert short.seconds[b] <= budget and short.costs[b] <= 1.01 * full.costs[a]
        taken = [options[at] for options, at in zip(items, short.chosen(b), strict=True)]
        assert sum(o[0] for o in taken) == pytest.approx(short.seconds[b], abs=1e-9)
