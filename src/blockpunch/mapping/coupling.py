"""What whole filters and channels that go from some layers do to the layers around them.

Where a layer loses filters, the layers behind it lose input channels, and where it loses channels, the layers before it
need not compute them (:mod:`blockpunch.graph.passes.shrink`). The table knows what a cell does to its own layer; a
neighbour that has become smaller runs as it would at the rate that leaves it as much work.
"""

from __future__ import annotations

from collections.abc import Mapping

from blockpunch.graph.passes.shrink import shrink
from blockpunch.mapping.network import Cell, Item, Network
from blockpunch.mapping.table import LatencyTable, Prediction
from blockpunch.schemes import Scheme

WHOLE = ("filter", "channel")
"""Regularities that take whole filters or channels away."""
_SMALLER = Scheme("channel")
"""What an unpruned layer that has become smaller is like."""


def work_left(network: Network, cells: Mapping[str, Cell]) -> dict[str, float]:
    """Step -> the part of its own work that its neighbours leave it, 1 where they take nothing.

    Which filters go is decided by the weights' magnitudes; other criteria take other ones, but as many.
    """
    whole = {step: cell for step, cell in cells.items() if cell[0].regularity in WHOLE and cell[1] > 1}
    if not whole:
        return {item.step: 1.0 for item in network.items}
    pruned = network.pruned(whole)
    small = shrink(pruned)
    return {item.step: network.kept_macs(item, small) / network.kept_macs(item, pruned) for item in network.items}


def predict(network: Network, table: LatencyTable, cells: Mapping[str, Cell]) -> Prediction:
    """Seconds of ``network`` with each item (by its step) under its cell, its neighbours' cells counted in.

    Raises:
        DataError: the table has nothing about the network, or about a scheme on one of its layers.
    """
    alone = table.predict(network, cells)
    left = work_left(network, cells)
    seconds = {item.step: (alone.items[item.step] if left[item.step] > 0.99 else
                           min(alone.items[item.step], _smaller(item, table, cells, left[item.step])))
               for item in network.items}
    return Prediction(alone.rest + sum(seconds.values()), seconds, alone.rest, alone.interpolated)


def _smaller(item: Item, table: LatencyTable, cells: Mapping[str, Cell], left: float) -> float:
    """Seconds of an item that has only a part of its own work left; all of them go with it where nothing is known."""
    scheme, rate = cells.get(item.step, (_SMALLER, 1.0))
    found = table.estimate(item.key, scheme if scheme.prunes else _SMALLER, rate / left)
    return found[0] if found is not None else table.dense(item) * left
