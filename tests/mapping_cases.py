"""A latency table whose seconds follow from a formula."""

from __future__ import annotations

from collections.abc import Callable

from blockpunch.mapping import LatencyTable, Network
from blockpunch.mapping.grid import DENSE, rates_for, schemes_for
from blockpunch.mapping.network import Cell, Item
from blockpunch.mapping.table import BELIEVED, Timing

Formula = Callable[[Item, Cell], float]


def by_work(item: Item, cell: Cell) -> float:
    """Finer schemes are slower; a tenth of the time is there at any rate."""
    scheme, rate = cell
    fine = {"unstructured": 3.0, "pattern": 1.5, "filter": 1.0, "channel": 1.0}.get(scheme.regularity)
    factor = 1.0 if rate == 1 else fine or 1 + 2 / (scheme.block or (1, 1))[0]
    return 1e-9 * item.weights * (0.1 + 0.9 * factor / rate)


def fill(table: LatencyTable, network: Network, formula: Formula = by_work) -> LatencyTable:
    """All cells of the network's grid, as often as a profile measures them."""
    for item in network.items:
        dense = [(DENSE, 1.0)] * (BELIEVED if item.dense_because else 1)
        cells = [*dense, *((s, r) for s in schemes_for(item.layers[0]) for r in rates_for(s, item.layers[0]))]
        for cell in cells:
            table.add(network, {item.step: Timing(item.key, cell, formula(item, cell))}, rest=1e-6, beside=[1e-4])
    return table
