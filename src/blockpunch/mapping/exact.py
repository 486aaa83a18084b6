"""The exact mapping: scheme and rate of every layer, for the least loss within a latency.

The loss is the sum over the layers of the relative error that second-order one-shot pruning leaves in their output
(:mod:`blockpunch.pruning.layer_errors`), weighted by how much the network's answer feels it
(:mod:`blockpunch.pruning.sensitivity`); the time is the sum of measured latencies. Dynamic programming over both
follows SPDY (Frantar and Alistarh 2022); here schemes and block sizes compete as well as rates.
"""

from __future__ import annotations

from collections.abc import Mapping

from blockpunch.errors import DataError
from blockpunch.mapping.choices import Errors, Mapped, Option, nearest_alternatives, options, write_plan
from blockpunch.mapping.goal import Goal, unreachable
from blockpunch.mapping.network import Network
from blockpunch.mapping.solver import Frontier, frontier
from blockpunch.mapping.table import LatencyTable

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
        goal: latency or speed-up.
        importance: factor on a layer's errors, 1 where it is not named.

    Raises:
        DataError: the table does not know the network, or no layer has errors.
        PlanError: the goal cannot be reached; names the fastest point.
    """
    dense = table.predict(network, {})
    offered = [options(item, table, errors, importance or {}) for item in network.items]
    if all(len(choices) == 1 for choices in offered):
        raise DataError("no errors for any layer of this network", where=network.graph.name,
                        fix="compute them on photos of this model (--photos)")
    best = frontier([[(option.seconds, option.cost) for option in choices] for choices in offered])
    point = best.within(goal.seconds(dense.seconds) - dense.rest)
    if point is None:
        raise unreachable(goal, float(best.seconds[0]) + dense.rest, dense.seconds, network.graph.name)
    chosen = [choices[at] for choices, at in zip(offered, best.chosen(point), strict=True)]
    price = best.price(point)
    steps = [item.step for item in network.items]
    reasons = {step: why(option, choices, price) for step, option, choices in zip(steps, chosen, offered, strict=True)
               if len(choices) > 1}
    plan = write_plan(network, {step: option.cell for step, option in zip(steps, chosen, strict=True)},
                      {step: option.seconds for step, option in zip(steps, chosen, strict=True)}, SOURCE, reasons)
    return Mapped(plan, float(best.seconds[point]) + dense.rest, dense.seconds, dense.rest, float(best.costs[point]),
                  _shown(best, dense.rest))


def why(chosen: Option, offered: list[Option], price: float) -> str:
    """The choice and its alternatives in words, each with its milliseconds and cost."""
    others = nearest_alternatives(offered, chosen, price)
    dense = next(option for option in offered if option.rate == 1)
    if chosen.rate > 1 and dense not in others:
        others.append(dense)
    head = f"cost {chosen.cost:.2g}" + ("" if chosen.measured else ", interpolated")
    return f"{head}; instead: {', '.join(map(str, others))}"


def _shown(best: Frontier, rest: float) -> tuple[tuple[float, float], ...]:
    """Points evenly spread over the latencies."""
    count = len(best.seconds)
    low, high = float(best.seconds[0]), float(best.seconds[-1])
    at = {best.within(low + (high - low) * i / (POINTS - 1)) for i in range(POINTS)} | {0, count - 1}
    return tuple((float(best.seconds[i]) + rest, float(best.costs[i])) for i in sorted(i for i in at if i is not None))
