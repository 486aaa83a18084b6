"""The solver against enumeration of every combination."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from blockpunch.mapping import solver
from blockpunch.mapping.solver import Coupling, frontier

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


@st.composite
def coupled(draw: st.DrawFn) -> tuple[list[list[tuple[float, float]]], list[Coupling | None]]:
    """Networks of which some items save each other time, in quarters."""
    items = draw(st.lists(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=4), min_size=1, max_size=4))
    quarters = st.integers(0, 4).map(lambda n: n / 4)
    couplings: list[Coupling | None] = [None]
    for before, own in pairwise(items):
        shape = len(before), len(own)
        if draw(st.booleans()):
            couplings.append(Coupling(*(draw(arrays(np.float64, shape, elements=quarters)) for _ in range(3))))
        else:
            couplings.append(None)
    return items, couplings


def total(items: list[list[tuple[float, float]]], couplings: list[Coupling | None], choice: Sequence[int]) -> float:
    """Seconds of a choice, item by item."""
    own = [options[at][0] for options, at in zip(items, choice, strict=True)]
    seconds = list(own)
    between = 0.0
    for n, coupling in enumerate(couplings):
        if coupling is not None:
            at = choice[n - 1], choice[n]
            seconds[n] *= coupling.own[at]
            seconds[n - 1] *= coupling.before[at]
            between += coupling.between[at]
    return sum(seconds) - between


@settings(deadline=None, max_examples=200)
@given(coupled(), st.integers(-4, 60).map(float))
def test_coupled_items_save_each_other_time(case: tuple[list[list[tuple[float, float]]], list[Coupling | None]],
                                            budget: float) -> None:
    """Sums are true; the best one is found, but that of two that lead to the same option one is gone for good."""
    items, couplings = case
    best = frontier(items, couplings)
    for point in range(len(best.seconds)):
        chosen = best.chosen(point)
        assert best.seconds[point] == pytest.approx(total(items, couplings, chosen))
        assert best.costs[point] == sum(options[at][1] for options, at in zip(items, chosen, strict=True))
    everything = list(product(*(range(len(options)) for options in items)))
    apart = all(coupling is None or following is None for coupling, following in pairwise(couplings))
    if apart:  # pairs: nothing is lost
        within = [sum(options[at][1] for options, at in zip(items, choice, strict=True)) for choice in everything
                  if total(items, couplings, choice) <= budget + 1e-9]
        found = best.within(budget + 1e-9)
        assert (found is None) == (not within)
        assert found is None or best.costs[found] == min(within)


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
