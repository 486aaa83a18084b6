"""The rule-based mapping: no training and no errors, a table of rules over measured latencies.

The rules are the paper's (Gong et al. 2022), made explicit: coarse structured pruning is the fastest a layer can be at
a rate, and the finer a scheme, the more accuracy it keeps; so each layer takes the smallest block that is still about
as fast as coarse structured pruning. Rules are asked in the order of :data:`RULES`; the first that has an answer gives
the layer its scheme. All pruned layers share one rate, the lowest at which the network reaches the goal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from blockpunch.mapping.choices import Mapped, write_plan
from blockpunch.mapping.goal import Goal, unreachable
from blockpunch.mapping.grid import DENSE, RATES, schemes_for
from blockpunch.mapping.network import Cell, Item, Network
from blockpunch.mapping.prediction import predict
from blockpunch.mapping.table import LatencyTable
from blockpunch.schemes import REGULARITIES, Scheme

SOURCE = "rules"
BETA = 0.15
"""A scheme is *about as fast* as another where it takes at most this much longer."""
COARSE_STRUCTURED = ("filter", "channel")
STEPS = 60
"""Rates that are tried between 1 and the highest of the table, evenly in log(rate)."""


@dataclass(frozen=True)
class Case:
    """One layer at one rate: what a rule looks at.

    Attributes:
        item: the layer.
        rate: that all pruned layers get.
        seconds: scheme -> predicted seconds at the rate; ``dense`` is among them.
        hard_data: the data set is hard: many classes, large images.
        beta: see :data:`BETA`.
    """

    item: Item
    rate: float
    seconds: dict[Scheme, float]
    hard_data: bool
    beta: float

    @property
    def coarse(self) -> float:
        """Seconds of the faster coarse structured scheme."""
        return min((s for scheme, s in self.seconds.items() if scheme.regularity in COARSE_STRUCTURED),
                   default=min(self.seconds.values()))

    def blocks(self) -> list[Scheme]:
        """Schemes with blocks, the smallest block first."""
        found = [scheme for scheme in self.seconds if REGULARITIES[scheme.regularity].default_block is not None]
        return sorted(found, key=lambda s: ((s.block or (1, 1))[0] * (s.block or (1, 1))[1], self.seconds[s]))

    def ms(self, scheme: Scheme) -> str:
        """For a reason."""
        return f"{self.seconds[scheme] * 1e3:.3g} ms"


Answer = tuple[Scheme, str] | None


def left_alone(case: Case) -> Answer:
    """Depthwise layers, the first convolution and the last linear layer stay dense."""
    return (DENSE, case.item.dense_because) if case.item.dense_because else None


def does_not_pay(case: Case) -> Answer:
    """A layer that no scheme makes faster by a twentieth stays dense."""
    fastest = min(case.seconds, key=lambda scheme: case.seconds[scheme])
    if case.seconds[fastest] > 0.95 * case.seconds[DENSE]:
        return DENSE, f"nothing is faster at rate {case.rate:.3g}: dense {case.ms(DENSE)}, {fastest} {case.ms(fastest)}"
    return None


def pattern_for_hard_data(case: Case) -> Answer:
    """3x3 layers of networks for hard data take patterns, where these are about as fast as coarse pruning."""
    pattern = Scheme("pattern")
    if case.hard_data and pattern in case.seconds and case.seconds[pattern] <= (1 + case.beta) * case.coarse:
        return pattern, (f"3x3, hard data: pattern {case.ms(pattern)} within {case.beta:.0%} of coarse structured "
                         f"{case.coarse * 1e3:.3g} ms")
    return None


def smallest_block(case: Case) -> Answer:
    """The smallest block that is about as fast as coarse structured pruning."""
    limit = (1 + case.beta) * case.coarse
    for scheme in case.blocks():
        if case.seconds[scheme] <= limit:
            return scheme, (f"smallest block within {case.beta:.0%} of coarse structured {case.coarse * 1e3:.3g} ms: "
                            f"{case.ms(scheme)}{_smaller(case, scheme)}")
    return None


def fastest_block(case: Case) -> Answer:
    """Where no block is that fast: the fastest one, if it is faster than dense."""
    blocks = case.blocks()
    best = min(blocks, key=lambda scheme: case.seconds[scheme], default=None)
    if best is None or case.seconds[best] > 0.95 * case.seconds[DENSE]:
        return None
    return best, (f"no block within {case.beta:.0%} of coarse structured {case.coarse * 1e3:.3g} ms; the fastest: "
                  f"{case.ms(best)}, dense {case.ms(DENSE)}")


def dense_otherwise(case: Case) -> Answer:
    """Only coarse structured pruning would make it faster, at the price of accuracy."""
    return DENSE, f"only coarse structured pruning is faster ({case.coarse * 1e3:.3g} ms, dense {case.ms(DENSE)})"


RULES: tuple[Callable[[Case], Answer], ...] = (left_alone, does_not_pay, pattern_for_hard_data, smallest_block,
                                               fastest_block, dense_otherwise)
"""In the order in which they are asked."""


def map_rules(network: Network, table: LatencyTable, goal: Goal, *, hard_data: bool = False,
              beta: float = BETA) -> Mapped:
    """The plan of the rules, at the lowest rate that reaches ``goal`` by the table.

    Args:
        network: dense.
        table: that knows it.
        goal: latency or speed-up.
        hard_data: the data set is hard (ImageNet rather than CIFAR-10): 3x3 layers may take patterns.
        beta: how much slower than coarse structured pruning a block may be.

    Raises:
        DataError: the table does not know the network.
        PlanError: the goal cannot be reached; names the fastest point.
    """
    dense = table.predict(network, {})
    budget, least = goal.seconds(dense.seconds), dense.seconds
    for step in range(STEPS + 1):
        rate = float(f"{RATES[-1] ** (step / STEPS):.3g}")
        chosen, reasons = _at(network, table, rate, hard_data, beta)
        found = table.predict(network, chosen)
        least = min(least, found.seconds)
        if found.seconds <= budget and (found := predict(network, table, chosen)).seconds <= budget:
            plan = write_plan(network, chosen, found.items, SOURCE, reasons)
            return Mapped(plan, found.seconds, dense.seconds, dense.rest)
    raise unreachable(goal, least, dense.seconds, network.graph.name)


def _at(network: Network, table: LatencyTable, rate: float, hard_data: bool,
        beta: float) -> tuple[dict[str, Cell], dict[str, str]]:
    """(cells, reasons) of the items at a rate."""
    cells, reasons = {}, {}
    for item in network.items:
        case = Case(item, rate, _seconds(item, table, rate), hard_data, beta)
        scheme, reason = next(answer for rule in RULES if (answer := rule(case)) is not None)
        cells[item.step] = (scheme, rate if scheme.prunes else 1.0)
        reasons[item.step] = reason
    return cells, reasons


def _seconds(item: Item, table: LatencyTable, rate: float) -> dict[Scheme, float]:
    found = {DENSE: table.dense(item)}
    if rate > 1 and not item.dense_because:
        for scheme in schemes_for(item.layers[0]):
            estimate = table.estimate(item.key, scheme, rate)
            if estimate is not None:
                found[scheme] = estimate[0]
    return found


def _smaller(case: Case, scheme: Scheme) -> str:
    """The blocks that were too slow."""
    blocks = case.blocks()
    slower = [f"{other} {case.ms(other)}" for other in blocks[:blocks.index(scheme)]]
    return f" (too slow: {', '.join(slower)})" if slower else ""
