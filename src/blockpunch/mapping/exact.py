"""The exact mapping: scheme and rate of every layer, for the least loss within a latency.

The loss is the sum over the layers of the relative error that second-order one-shot pruning leaves in their output
(:mod:`blockpunch.pruning.layer_errors`), weighted by how much the network's answer feels it
(:mod:`blockpunch.pruning.sensitivity`); the time is the sum of measured latencies. Dynamic programming over both
follows SPDY (Frantar and Alistarh 2022); here schemes and block sizes compete as well as rates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from blockpunch.errors import DataError
from blockpunch.mapping.choices import (
    Errors,
    Mapped,
    Option,
    contenders,
    nearest_alternatives,
    options,
    write_plan,
)
from blockpunch.mapping.goal import Goal, unreachable
from blockpunch.mapping.network import Network
from blockpunch.mapping.prediction import predict
from blockpunch.mapping.solver import Frontier, frontier
from blockpunch.mapping.table import LatencyTable, Prediction

SOURCE = "exact"
POINTS = 40
"""Points of the frontier that are shown."""


def map_exact(network: Network, table: LatencyTable, errors: Errors, goal: Goal, *,
              importance: Mapping[str, float] | None = None) -> Mapped:
    """The plan that costs least among those that the table predicts to reach ``goal``.

    Args:
        network: dense.
        table: that knows it.
        errors: of its layers, for the cells to choose from; layers without errors stay dense.
        goal: latency or speed-up (:func:`blockpunch.mapping.drop.map_within_drop` takes a loss of accuracy).
        importance: factor on a layer's errors, 1 where it is not named.

    Raises:
        DataError: the table does not know the network, or no layer has errors.
        PlanError: the goal cannot be reached; names the fastest point.
    """
    exact = Exact.solve(network, table, errors, importance or {})
    point = exact.within(goal.seconds(exact.dense.seconds))
    if point is None:
        raise unreachable(goal, exact.seconds(0), exact.dense.seconds, network.graph.name)
    return exact.mapped(point)


@dataclass(frozen=True)
class Exact:
    """All best plans of a network, from the fastest (point 0) to the dense one.

    Attributes:
        network, table: that they are for.
        offered: the options of each item.
        best: the frontier over them, without the steps that have no weights.
        dense: prediction of the dense network.
    """

    network: Network
    table: LatencyTable
    offered: list[list[Option]]
    best: Frontier
    dense: Prediction

    @classmethod
    def solve(cls, network: Network, table: LatencyTable, errors: Errors, importance: Mapping[str, float]) -> Exact:
        """The frontier; see :func:`map_exact`."""
        dense = table.predict(network, {})
        offered = [options(item, table, errors, importance) for item in network.items]
        if all(len(choices) == 1 for choices in offered):
            if not any(contenders(network, table).values()):
                raise DataError("no layer is known to run faster under any scheme", where=str(table.path),
                                fix=f"let more be measured (--profile-seconds, or {table.advice})")
            raise DataError("no errors for any layer of this network", where=network.graph.name,
                            fix="compute them on photos of this model (--photos)")
        best = frontier([[(option.seconds, option.cost) for option in choices] for choices in offered])
        return cls(network, table, offered, best, dense)

    def __len__(self) -> int:
        return len(self.best.seconds)

    def seconds(self, point: int) -> float:
        """Of the whole network at a point, what layers do to their neighbours not counted in: it is no less."""
        return float(self.best.seconds[point]) + self.dense.rest

    def cost(self, point: int) -> float:
        """At a point."""
        return float(self.best.costs[point])

    def within(self, seconds: float) -> int | None:
        """The cheapest point that takes at most ``seconds``, or None."""
        return self.best.within(seconds - self.dense.rest)

    def mapped(self, point: int) -> Mapped:
        """The plan of a point, with its reasons."""
        chosen = [choices[at] for choices, at in zip(self.offered, self.best.chosen(point), strict=True)]
        price = self.best.price(point)
        by_step = {item.step: (option, choices) for item, option, choices in
                   zip(self.network.items, chosen, self.offered, strict=True)}
        reasons = {step: why(option, choices, price) for step, (option, choices) in by_step.items() if len(choices) > 1}
        cells = {step: option.cell for step, (option, _) in by_step.items()}
        found = predict(self.network, self.table, cells)
        plan = write_plan(self.network, cells, found.items, SOURCE, reasons)
        return Mapped(plan, found.seconds, self.dense.seconds, found.rest, self.cost(point), self.shown())

    def shown(self) -> tuple[tuple[float, float], ...]:
        """(seconds, cost) of points evenly spread over the latencies."""
        low, high = self.seconds(0), self.seconds(len(self) - 1)
        at = {self.within(low + (high - low) * i / (POINTS - 1)) for i in range(POINTS)} | {0, len(self) - 1}
        return tuple((self.seconds(i), self.cost(i)) for i in sorted(i for i in at if i is not None))


def why(chosen: Option, offered: list[Option], price: float) -> str:
    """The choice and its alternatives in words, each with its milliseconds and cost."""
    others = nearest_alternatives(offered, chosen, price)
    dense = next(option for option in offered if option.rate == 1)
    if chosen.rate > 1 and dense not in others:
        others.append(dense)
    head = f"cost {chosen.cost:.2g}" + ("" if chosen.measured else ", interpolated")
    return f"{head}; instead: {', '.join(map(str, others))}"
