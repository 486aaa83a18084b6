"""What the choices of linked layers save each other, as the solver counts it.

Half of the input channels taken from the last layer of an inverted residual halve the time of the first one and of the
depthwise one between them, at no loss of theirs. The seconds here are in proportion to the channels that are left; what
the compiler makes of a whole plan is for :mod:`blockpunch.mapping.prediction` to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from blockpunch.mapping.choices import Option
from blockpunch.mapping.links import Link, links
from blockpunch.mapping.network import Item, Network
from blockpunch.mapping.solver import Coupling, Frontier, frontier

Flags = npt.NDArray[np.bool_]
Alive = Mapping[str, Mapping[tuple[str, float], tuple[Flags, Flags]]]
"""Layer -> (scheme as text, rate) -> which filters and which input channels still have weights."""


@dataclass(frozen=True)
class Chains:
    """The items of a network in an order in which linked ones are neighbours, and what they save each other.

    Attributes:
        order: numbers of the items.
        couplings: for each of these, with the one before it.
    """

    order: list[int]
    couplings: list[Coupling | None]

    @classmethod
    def of(cls, network: Network, offered: Sequence[Sequence[Option]], alive: Alive) -> Chains:
        """Of ``network``, whose items are offered these options."""
        item_of = {layer.name: at for at, item in enumerate(network.items) for layer in item.layers}
        by_reader = {item_of[link.reader]: link for link in links(network.graph)
                     if {link.writer, link.reader, *link.between} <= item_of.keys()
                     and item_of[link.writer] != item_of[link.reader]}
        by_writer = {item_of[link.writer]: link for link in by_reader.values()}
        followers = {item_of[link.reader] for link in by_writer.values()}
        order: list[int] = []
        couplings: list[Coupling | None] = []
        for first in (at for at in range(len(network.items)) if at not in followers):
            order.append(first)
            couplings.append(None)
            while order[-1] in by_writer:
                writer, link = order[-1], by_writer[order[-1]]
                reader = item_of[link.reader]
                between = sum(offered[item_of[name]][0].seconds for name in link.between)
                couplings.append(_coupling(link, network.items[writer], network.items[reader], offered[writer],
                                           offered[reader], between, alive))
                order.append(reader)
        return cls(order, couplings)

    def frontier(self, offered: Sequence[Sequence[Option]], within: Sequence[Sequence[int]] | None = None,
                 factors: Sequence[float] | None = None) -> Frontier:
        """The best sums of the options with these numbers (default: all), costs times factors (default: 1)."""
        within = within or [range(len(options)) for options in offered]
        factors = factors or [1.0] * len(offered)
        pairs = [[(offered[at][n].seconds, factors[at] * offered[at][n].cost) for n in within[at]] for at in self.order]
        parts = [coupling and coupling.part(within[before], within[at]) for coupling, before, at in
                 zip(self.couplings, [0, *self.order], self.order, strict=False)]
        return frontier(pairs, parts)

    def chosen(self, best: Frontier, point: int) -> list[int]:
        """The option of each item, in the network's order, at a point of a frontier; as numbers among those within."""
        return [option for _, option in sorted(zip(self.order, best.chosen(point), strict=True))]


def _coupling(link: Link, writer: Item, reader: Item, before: Sequence[Option], after: Sequence[Option],
              between: float, alive: Alive) -> Coupling:
    count = next(layer for layer in writer.layers if layer.name == link.writer).shape[0]

    def flags(layer: str, option: Option, side: int) -> Flags:
        stays = not option.scheme.prunes or (side == 0 and link.padded and option.scheme.regularity != "filter")
        known = alive.get(layer, {}).get((str(option.scheme), option.rate))
        return np.ones(count, np.bool_) if known is None or stays else known[side]

    filters = np.array([flags(link.writer, option, 0) for option in before], np.float64)
    channels = np.array([flags(link.reader, option, 1) for option in after], np.float64)
    both = np.maximum(filters @ channels.T, 1.0)
    return Coupling(_part(writer, link.writer, both / np.maximum(filters.sum(1), 1)[:, None]),
                    _part(reader, link.reader, both / np.maximum(channels.sum(1), 1)),
                    between * (1 - both / count))


def _part(item: Item, layer: str, stays: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Part of an item's seconds that stays where that part of one of its layers does."""
    share = next(each for each in item.layers if each.name == layer).macs / sum(each.macs for each in item.layers)
    return np.minimum(1.0, 1 - share * (1 - stays))
