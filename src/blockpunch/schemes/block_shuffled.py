"""``block-shuffled``: ``block-punched`` whose blocks take filters that are alike, wherever they lie in the layer.

The compiler stores the rows of a layer in any order, so which p filters share a block costs no time, and filters that
have their large weights in the same places lose less together (Huang et al. 2022, "Shfl-BW", arXiv 2203.05016). From
neighbours, and from filters that are halved again and again across the direction in which their energies differ most,
filters move to the block whose mask keeps most of them, and masks follow their filters, in turns.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from blockpunch.schemes.base import Block, Floats, Labels, Layout, Mask
from blockpunch.schemes.block_punched import BlockPunched

Singles = npt.NDArray[np.float32]
"""Energies here are compared, no more: half the bytes are enough."""
TURNS = 6
"""Of filters and masks that follow each other, at most."""
LEAST_GAIN = 3e-4
"""Turns end when the energy kept grows by less than this share."""
POWER_STEPS = 12
"""Towards the direction in which the filters of a part differ most: it only has to part them well."""
TINY = float(np.finfo(np.float32).tiny)
"""Stands for a length of 0 where one divides by it."""


class BlockShuffled(BlockPunched):
    """The group is one kernel position of p alike filters x q neighbouring channels."""

    name = "block-shuffled"
    summary = "block-punched, its p filters chosen alike from the whole layer"
    any_filters = True

    def filter_order(self, weight: Floats, keep: int, layout: Layout, block: Block) -> Labels:
        """Filters by the blocks that keep most of their energy where ``keep`` weights stay."""
        height, width = block
        spare = -layout.channels % width
        squares = np.pad(np.square(weight, dtype=np.float64), ((0, 0), (0, spare), (0, 0)))
        energy = squares.reshape(layout.filters, -1, width, layout.positions).sum(axis=2).reshape(layout.filters, -1)
        parts = np.split(np.arange(layout.filters, dtype=np.int64), layout.conv_groups)
        return np.concatenate([part[_alike(energy[part], height, keep / layout.size)] for part in parts])

    def project(self, weight: Floats, keep: int, layout: Layout, block: Block) -> Mask:
        """The largest groups of the blocks that suit ``weight``, unless the layout has an order already."""
        if layout.order is None:
            layout = replace(layout, order=self.filter_order(weight, keep, layout, block))
        return super().project(weight, keep, layout, block)

    def penalty_groupings(self, weight: Floats, layout: Layout, block: Block) -> tuple[Labels, ...]:
        """The groups of the blocks that suit ``weight`` where half of it stays."""
        order = self.filter_order(weight, -(-layout.size // 2), layout, block)
        return self.groupings(replace(layout, order=order), block)

    def violation(self, mask: Mask, layout: Layout, block: Block) -> str | None:
        """Filters must come in p with equal masks: those of one mask fill blocks, what is left over shares the last."""
        parts = np.split(np.arange(layout.filters, dtype=np.int64), layout.conv_groups)
        order = np.concatenate([part[_equal(mask[part], block[0])] for part in parts])
        return super().violation(mask, replace(layout, order=order), block)


def _alike(energy: Floats, height: int, share: float) -> Labels:
    """An order ``[filters]`` in which every ``height`` filters form a block; ``share`` of all groups will be kept."""
    neighbours = np.arange(len(energy), dtype=np.int64)
    if len(energy) <= height or share >= 1 or not energy.any():
        return neighbours
    relative: Singles = (energy / energy.max()).astype(np.float32)
    halved = np.concatenate(_halved(_directions(relative), neighbours, height))
    found = [_improved(relative, start, height, share) for start in (neighbours, halved)]
    return max(found, key=lambda pair: pair[0])[1]


def _improved(energy: Singles, order: Labels, height: int, share: float) -> tuple[float, Labels]:
    """The energy kept, and the order, when filters and masks no longer follow each other."""
    starts = np.arange(0, len(energy), height)
    sizes = np.diff(starts, append=len(energy))
    most, best = -1.0, order
    for _ in range(TURNS):
        sums = np.add.reduceat(energy[order], starts, axis=0)
        means = sums / sizes[:, None]
        lost = int((1 - share) * means.size)
        masks = means >= np.partition(means, lost, axis=None)[lost]
        kept = float(sums[masks].sum())
        if kept <= most * (1 + LEAST_GAIN):
            break
        most, best = kept, order
        order = _assigned(energy @ masks.T.astype(np.float32), sizes)
    return most, best


def _directions(energy: Singles) -> Singles:
    """Roots of the energies, each filter of length 1: a large filter differs no more than a small one."""
    roots = np.sqrt(energy)
    return np.asarray(roots / np.maximum(np.linalg.norm(roots, axis=1, keepdims=True), TINY))


def _halved(roots: Singles, part: Labels, height: int) -> list[Labels]:
    """``part`` of the filters in pieces of ``height``, the last one maybe smaller, neighbours alike."""
    if len(part) <= height:
        return [part]
    rows = roots[part] - roots[part].mean(axis=0)
    along = np.random.default_rng(0).standard_normal(len(part), np.float32)
    for _ in range(POWER_STEPS):
        along = rows @ (rows.T @ along)
        along /= max(math.sqrt(along @ along), TINY)
    ordered = part[np.argsort(along, kind="stable")]
    middle = (-(-len(part) // height) + 1) // 2 * height
    return [*_halved(roots, ordered[:middle], height), *_halved(roots, ordered[middle:], height)]


def _assigned(gains: Singles, sizes: Labels) -> Labels:
    """The filters ordered by block, for ``gains`` [filters, blocks] and as many filters as each block has room for.

    Deferred acceptance (Gale, Shapley 1962): each filter asks the blocks in the order of its gains, and a block keeps
    those that gain most over their average. A full block takes no less than what it has, so that no filter that gains
    less needs to ask it.
    """
    value = gains - gains.mean(axis=1, keepdims=True)
    unplaced, block, gain = np.arange(len(gains)), np.zeros(len(gains), np.int64), np.zeros(len(gains))
    least = np.full(len(sizes), -np.inf)
    while len(unplaced):
        wishes = value[unplaced]
        wishes[wishes < least] = -np.inf
        block[unplaced] = wishes.argmax(axis=1)
        gain[unplaced] = value[unplaced, block[unplaced]]
        growing = np.zeros(len(sizes), np.bool_)
        growing[block[unplaced]] = True
        asked = growing[block].nonzero()[0]
        order = asked[np.lexsort((-gain[asked], block[asked]))]
        own = block[order]
        room = sizes[own] - (np.arange(len(own)) - np.searchsorted(own, own))
        least[own[room == 1]] = gain[order[room == 1]]
        unplaced = order[room < 1]
        value[unplaced, block[unplaced]] = -np.inf
    return np.argsort(block, kind="stable")


def _equal(mask: Mask, height: int) -> Labels:
    """An order in which filters of equal masks fill whole blocks of ``height``, what is left over last."""
    _, which, counts = np.unique(mask.reshape(len(mask), -1), axis=0, return_inverse=True, return_counts=True)
    which = which.ravel()
    order = np.argsort(which, kind="stable")
    place = np.arange(len(order)) - (np.cumsum(counts) - counts)[which[order]]
    left_over = place >= (counts // height * height)[which[order]]
    return order[np.argsort(left_over, kind="stable")]
