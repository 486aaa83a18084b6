"""What filters and channels that go from some layers altogether do to the layers around them.

Where a layer loses filters, the layers behind it lose input channels, and where it loses channels, the layers before it
need not compute them (:mod:`blockpunch.graph.passes.shrink`). The table knows what a cell does to its own layer; a
neighbour that has become smaller runs as it would at the rate that leaves it as much work.

Every scheme can do that, not only those that are meant to: of a layer with few filters, blocks and single weights at a
high rate leave some filters and channels empty.
"""

from __future__ import annotations

from collections.abc import Mapping

from blockpunch.graph.passes.shrink import shrink
from blockpunch.mapping.network import Cell, Item, Network
from blockpunch.mapping.table import LatencyTable, Prediction
from blockpunch.schemes import Scheme

_SMALLER = Scheme("channel")
"""What an unpruned layer that has become smaller is like."""


def work_left(network: Network, cells: Mapping[str, Cell]) -> dict[str, float]:
    """Step -> the part of its own work that its neighbours leave it, 1 where they take nothing.

    Which weights go is decided by their magnitudes; other criteria take other ones, but about as many filters.
    """
    given = {step: cell for step, cell in cells.items() if cell[1] > 1}
    if not given:
        return {item.step: 1.0 for item in network.items}
    pruned = network.pruned(given)
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
