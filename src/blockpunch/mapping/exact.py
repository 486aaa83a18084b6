"""The exact mapping: scheme and rate of every layer, for the least loss within a latency.

The loss is the sum over the layers of the relative error that second-order one-shot pruning leaves in their output
(:mod:`blockpunch.pruning.layer_errors`), weighted by how much the network's answer feels it
(:mod:`blockpunch.pruning.gradients`); the time is the sum of measured latencies, less what layers save each other by
whole filters and channels. Dynamic programming over both follows SPDY (Frantar and Alistarh 2022); here schemes and
block sizes compete as well as rates. Which of the best plans meets a goal is said by the compiled plan's prediction.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from blockpunch.errors import DataError
from blockpunch.mapping.choices import (
    Costs,
    Mapped,
    Option,
    contenders,
    nearest_alternatives,
    options,
    write_plan,
)
from blockpunch.mapping.coupling import Alive, Chains
from blockpunch.mapping.goal import Goal, unreachable
from blockpunch.mapping.network import Cell, Network
from blockpunch.mapping.prediction import predict
from blockpunch.mapping.solver import Frontier
from blockpunch.mapping.table import LatencyTable, Prediction

SOURCE = "exact"
POINTS = 40
"""Points of the frontier that are shown."""
LOOKS = 8
"""Plans of the frontier that are compiled, at most, to find the one for a latency."""
NEAR = 0.01
"""Part of a latency by which a plan may be faster than asked for."""


def map_exact(network: Network, table: LatencyTable, costs: Costs, goal: Goal, *,
              alive: Alive | None = None) -> Mapped:
    """The plan that costs least among those that are predicted to reach ``goal``.

    Args:
        network: dense.
        table: that knows it.
        costs: of its layers, for the cells to choose from (:attr:`blockpunch.pruning.layer_errors.LayerErrors.costs`);
            layers without costs stay dense.
        goal: latency or speed-up (:func:`blockpunch.mapping.drop.map_within_drop` takes a loss of accuracy).
        alive: filters and channels that still have weights, by cell, where that is known: linked layers save each other
            time by those that have none.

    Raises:
        DataError: the table does not know the network, or no layer has costs.
        PlanError: the goal cannot be reached; names the fastest point.
    """
    exact = Exact.solve(network, table, costs, alive or {})
    return exact.mapped(exact.reached(goal))


@dataclass(frozen=True)
class Exact:
    """All best plans of a network, from the fastest (point 0) to the dense one.

    Attributes:
        network, table: that they are for.
        offered: the options of each item.
        chains: which items save each other time.
        best: the frontier over them, without the steps that have no weights.
        dense: prediction of the dense network.
    """

    network: Network
    table: LatencyTable
    offered: list[list[Option]]
    chains: Chains
    best: Frontier
    dense: Prediction
    _predicted: dict[int, Prediction] = field(default_factory=dict)

    @classmethod
    def solve(cls, network: Network, table: LatencyTable, costs: Costs, alive: Alive) -> Exact:
        """The frontier; see :func:`map_exact`."""
        dense = table.predict(network, {})
        offered = [options(item, table, costs) for item in network.items]
        if all(len(choices) == 1 for choices in offered):
            if not any(contenders(network, table).values()):
                raise DataError("no layer is known to run faster under any scheme", where=str(table.path),
                                fix=f"let more be measured (--profile-seconds, or {table.advice})")
            raise DataError("no errors for any layer of this network", where=network.graph.name,
                            fix="compute them on photos of this model (--photos)")
        chains = Chains.of(network, offered, alive)
        best = chains.frontier(offered)
        return cls(network, table, offered, chains, best, dense, {len(best.seconds) - 1: dense})

    def __len__(self) -> int:
        return len(self.best.seconds)

    def seconds(self, point: int) -> float:
        """Of the whole network at a point: the solver's, corrected as the nearest compiled plans are."""
        at = sorted(self._predicted)
        ratios = [self._predicted[known].seconds / (self.best.seconds[known] + self.dense.rest) for known in at]
        return float((self.best.seconds[point] + self.dense.rest) * np.interp(point, at, ratios))

    def predicted(self, point: int) -> Prediction:
        """Of the whole network at a point, compiled."""
        if point not in self._predicted:
            self._predicted[point] = predict(self.network, self.table, self._cells(point))
        return self._predicted[point]

    def cost(self, point: int) -> float:
        """At a point."""
        return float(self.best.costs[point])

    def near(self, seconds: float) -> int | None:
        """The cheapest point that takes at most ``seconds`` as far as is known, or None."""
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self.seconds(middle) <= seconds else (low, middle)
        return low - 1 if low else None

    def within(self, seconds: float) -> int | None:
        """The cheapest point found of which the compiled plan is predicted to take at most ``seconds``, or None.

        Looked for where the plans that were compiled say that it is: each one that is makes that more certain.
        """
        good, bad = -1, len(self)
        for _ in range(LOOKS):
            at = min(max(self.near(seconds) or 0, good + 1), bad - 1)
            found = self.predicted(at).seconds
            good, bad = (at, bad) if found <= seconds else (good, at)
            if bad - good <= 1 or (found <= seconds and found > (1 - NEAR) * seconds):
                break
        return good if good >= 0 else (0 if self.predicted(0).seconds <= seconds else None)

    def reached(self, goal: Goal) -> int:
        """The point for a latency or a speed-up.

        Raises:
            PlanError: there is none; names the fastest point.
        """
        point = self.within(goal.seconds(self.dense.seconds))
        if point is None:
            raise unreachable(goal, self.predicted(0).seconds, self.dense.seconds, self.network.graph.name)
        return point

    def mapped(self, point: int) -> Mapped:
        """The plan of a point, with its reasons."""
        chosen, price = self._options(point), self.best.price(point)
        by_step = {item.step: (option, choices) for item, option, choices in
                   zip(self.network.items, chosen, self.offered, strict=True)}
        reasons = {step: why(option, choices, price) for step, (option, choices) in by_step.items() if len(choices) > 1}
        found = self.predicted(point)
        plan = write_plan(self.network, self._cells(point), found.items, SOURCE, reasons)
        return Mapped(plan, found.seconds, self.dense.seconds, found.rest, self.cost(point), self.shown())

    def _options(self, point: int) -> list[Option]:
        return [choices[at] for choices, at in
                zip(self.offered, self.chains.chosen(self.best, point), strict=True)]

    def _cells(self, point: int) -> dict[str, Cell]:
        return {item.step: option.cell for item, option in
                zip(self.network.items, self._options(point), strict=True)}

    def shown(self) -> tuple[tuple[float, float], ...]:
        """(seconds, cost) of points evenly spread over the latencies."""
        low, high = self.seconds(0), self.seconds(len(self) - 1)
        at = {self.near(low + (high - low) * i / (POINTS - 1)) for i in range(POINTS)} | {0, len(self) - 1}
        return tuple((self.seconds(i), self.cost(i)) for i in sorted(i for i in at if i is not None))


def why(chosen: Option, offered: list[Option], price: float) -> str:
    """The choice and its alternatives in words, each with its milliseconds and cost."""
    others = nearest_alternatives(offered, chosen, price)
    dense = next(option for option in offered if option.rate == 1)
    if chosen.rate > 1 and dense not in others:
        others.append(dense)
    head = f"cost {chosen.cost:.2g}" + ("" if chosen.measured else ", interpolated")
    return f"{head}; instead: {', '.join(map(str, others))}"
