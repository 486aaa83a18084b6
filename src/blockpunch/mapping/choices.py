"""From a table and costs to options, and from chosen options to a plan that says why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from blockpunch.mapping.grid import DENSE, rates_for, refines, schemes_for
from blockpunch.mapping.links import links
from blockpunch.mapping.network import Cell, Item, Network
from blockpunch.mapping.table import LatencyTable
from blockpunch.plan import LayerPlan, Plan
from blockpunch.schemes import Scheme

Costs = Mapping[str, Mapping[tuple[str, float], float]]
"""Layer -> (scheme as text, rate) -> what it costs: how much the network's answer feels of it."""

STEP, EVEN = 0.05, 0.02
"""Parts of the dense layer's time: what a higher rate must save to be looked at, and what counts as no slower."""


@dataclass(frozen=True)
class Mapped:
    """A mapper's result.

    Attributes:
        plan: with predicted milliseconds and a reason for each layer.
        seconds: predicted for the whole network.
        dense: seconds of the dense network, by the same table.
        rest: seconds of the steps without weights, in both.
        cost: of the plan, where costs were known.
        frontier: (seconds, cost) of the best plans, from the fastest to dense; empty where there are no costs.
        trials: (seconds, cost, points of accuracy lost, their standard error) of the plans that were tried.
    """

    plan: Plan
    seconds: float
    dense: float
    rest: float
    cost: float | None = None
    frontier: tuple[tuple[float, float], ...] = ()
    trials: tuple[tuple[float, float, float, float], ...] = ()

    @property
    def speedup(self) -> float:
        """Over the dense network."""
        return self.dense / self.seconds


@dataclass(frozen=True)
class Option:
    """A cell of an item, with its seconds and its cost; not ``measured`` where interpolated."""

    scheme: Scheme
    rate: float
    seconds: float
    cost: float
    measured: bool

    @property
    def cell(self) -> Cell:
        """Scheme and rate."""
        return self.scheme, self.rate

    def __str__(self) -> str:
        name = "dense" if self.rate == 1 else f"{self.scheme} at {self.rate:g}"
        return f"{name} ({self.seconds * 1e3:.3g} ms, cost {self.cost:.2g})"


def contenders(network: Network, table: LatencyTable) -> dict[str, list[Cell]]:
    """Layer -> the cells that could be the best choice whatever their errors are; only their errors are needed.

    Out go cells slower than the dense layer, those that save less than :data:`STEP` over a lower rate of their scheme,
    and those that another one beats that is no slower, keeps as many weights and is finer (each of their masks is one
    of its masks), unless they take whole channels or filters that a linked layer has no work with then. Layers that are
    left dense by default have none.

    Raises:
        DataError: the table does not know the network.
    """
    found: dict[str, list[Cell]] = {}
    linked = {(name, kind) for link in links(network.graph)
              for name, kind in ((link.writer, "filter"), (link.reader, "channel"))}
    for item in network.items:
        if item.dense_because:
            continue
        dense = table.dense(item)
        cells = _worth_while(_cells(item, table), dense)
        frees = {cell[0] for cell in cells for layer in item.layers if (layer.name, cell[0].regularity) in linked}
        kept = [cell for cell, s in cells.items() if cell[0] in frees or not any(
            other_s <= s + EVEN * dense and other[1] <= cell[1] and refines(other[0], cell[0], item.layers[0])
            for other, other_s in cells.items())]
        for layer in item.layers:
            found[layer.name] = kept
    return found


def _worth_while(cells: Mapping[Cell, float], dense: float) -> dict[Cell, float]:
    """Of each scheme the rates that save at least a step over the lower rates, and over the dense layer."""
    found: dict[Cell, float] = {}
    least: dict[Scheme, float] = {}
    for (scheme, rate), seconds in sorted(cells.items(), key=lambda cell: cell[0][1]):
        if seconds <= least.get(scheme, dense) - STEP * dense:
            found[scheme, rate] = least[scheme] = seconds
    return found


def _cells(item: Item, table: LatencyTable) -> dict[Cell, float]:
    """All cells of the grid that the table knows well enough, and their seconds."""
    found: dict[Cell, float] = {}
    for scheme in schemes_for(item.layers[0]):
        for rate in rates_for(scheme, item.layers[0]):
            estimate = table.estimate(item.key, scheme, rate)
            if estimate is not None and table.sure(item.key, scheme, rate):
                found[scheme, rate] = estimate[0]
    return found


def options(item: Item, table: LatencyTable, costs: Costs) -> list[Option]:
    """What can be chosen for an item: dense, and the cells whose costs and latencies are known, for all its layers.

    The cost is the sum over its layers.
    """
    found = [Option(DENSE, 1.0, table.dense(item), 0.0, True)]
    if item.dense_because:
        return found
    tables = [costs.get(layer.name, {}) for layer in item.layers]
    for text, rate in tables[0]:
        scheme = Scheme.parse(text)
        estimate = table.estimate(item.key, scheme, rate) if table.sure(item.key, scheme, rate) else None
        if rate > 1 and estimate is not None and all((text, rate) in known for known in tables):
            cost = sum(known[text, rate] for known in tables)
            found.append(Option(scheme, rate, estimate[0], cost, estimate[1]))
    return found


def write_plan(network: Network, chosen: Mapping[str, Cell], seconds: Mapping[str, float], source: str,
               reasons: Mapping[str, str]) -> Plan:
    """The plan for cells, seconds and reasons by step. Layers of one step share its time by the weights they keep."""
    entries = {layer.name: LayerPlan(DENSE, 1.0, layer.shape, "default", "no step of its own")
               for layer in network.layers}
    for item in network.items:
        scheme, rate = chosen.get(item.step, (DENSE, 1.0))
        macs = sum(layer.macs for layer in item.layers)
        for layer in item.layers:
            share = layer.macs / macs if macs else 1 / len(item.layers)
            others = ", ".join(other.name for other in item.layers if other != layer)
            reason = reasons.get(item.step, item.dense_because) + (f"; one step with {others}" if others else "")
            entries[layer.name] = LayerPlan(scheme, rate, layer.shape, "default" if item.dense_because else source,
                                            reason, round(seconds[item.step] * share * 1e3, 6))
    return Plan(entries, network.graph.name)


def nearest_alternatives(offered: Sequence[Option], chosen: Option, price: float, most: int = 2) -> list[Option]:
    """The best options of other schemes, where a second is worth ``price``."""
    best: dict[Scheme, Option] = {}
    for option in sorted(offered, key=lambda o: o.cost + price * o.seconds):
        if option.scheme != chosen.scheme:
            best.setdefault(option.scheme, option)
    return list(best.values())[:most]
