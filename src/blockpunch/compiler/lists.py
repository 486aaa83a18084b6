"""Weights as lists: a few columns of one channel, and all filters that have weights in just these columns.

What is left of pattern pruning, where the kernels of a layer keep few distinct sets of taps, packs into few long
lists. Any zeros will pack, into more and shorter ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from blockpunch.compiler.packing import Floats, Ints

Longs = npt.NDArray[np.int64]

MOST_TAPS = 62
"""Taps of a kernel, at most: a set of taps is a number with one bit per tap."""


@dataclass(frozen=True)
class Lists:
    """All lists of one length k.

    Attributes:
        columns: [lists, k] columns of the weight matrix, channel after channel.
        counts: [lists] filters of each list.
        filters: [entries] the filters, list after list.
    """

    columns: Ints
    counts: Ints
    filters: Ints

    def weights(self, matrix: Floats) -> Floats:
        """[entries, k] weights of each filter in the columns of its list."""
        columns = np.repeat(self.columns, self.counts, axis=0)
        return np.ascontiguousarray(matrix[self.filters[:, None], columns])


@dataclass(frozen=True)
class Runs:
    """Filters with equal sets of taps in one channel: all that a cost model needs.

    Attributes:
        sizes: [runs] taps of the set.
        filters: [runs] how many filters have it.
    """

    sizes: Longs
    filters: Longs

    def lists(self, most: int) -> Iterator[tuple[int, int, int]]:
        """(k, lists, filters in them), nearly as :func:`lists_of` will make them."""
        for size in np.unique(self.sizes).tolist():
            filters = self.filters[self.sizes == size]
            parts = -(-size // most)
            yield -(-size // parts), parts * len(filters), parts * int(filters.sum())


def tap_sets(nonzero: npt.NDArray[np.bool_], taps: int) -> Longs:
    """The set of taps of each kernel [filters, channels], one bit per tap.

    Args:
        nonzero: [filters, channels * taps] where the weights are.
        taps: taps of a kernel.
    """
    kernels = nonzero.reshape(len(nonzero), -1, taps)
    sets = np.zeros(kernels.shape[:2], np.int64)
    for tap in range(taps):
        sets |= kernels[:, :, tap].astype(np.int64) << tap
    return sets


def runs_of(sets: Longs, taps: int) -> Runs:
    """Count the filters with equal sets, channel by channel."""
    ordered = np.sort(sets.T.astype(np.int16 if taps < 15 else np.int64), axis=1)
    new = np.ones(ordered.shape, np.bool_)
    new[:, 1:] = np.diff(ordered, axis=1) != 0
    at = np.flatnonzero(new)
    distinct, counts = ordered.ravel()[at].astype(np.int64), np.diff(at, append=ordered.size)
    kept = distinct != 0
    return Runs(_sizes(distinct[kept], taps), counts[kept])


def lists_of(nonzero: npt.NDArray[np.bool_], taps: int, most: int) -> list[Lists]:
    """Lists that together hold every weight once, the longest k first.

    Args:
        nonzero: [filters, channels * taps] where the weights are.
        taps: taps of a kernel.
        most: columns of a list; larger sets of taps are cut.
    """
    kernels = nonzero.reshape(len(nonzero), -1, taps)
    rank, count = np.cumsum(kernels, axis=2, dtype=np.int16) - 1, kernels.sum(axis=2, keepdims=True, dtype=np.int16)
    parts = -(-count // most)
    bit = np.int64(1) << np.arange(taps, dtype=np.int64)
    found = []
    for part in range(int(parts.max(initial=0))):  # nearly equal parts of sets of many taps
        inside = kernels & (rank * parts // np.maximum(count, 1) == part) if most < taps else kernels
        sets = inside @ bit
        filter_, channel = np.nonzero(sets)
        found.append(np.stack([channel, sets[filter_, channel], filter_]))
    if not found:
        return []
    channel, sets, filter_ = np.concatenate(found, axis=1)
    size = _sizes(sets, taps)
    order = np.lexsort((filter_, _keys(channel, sets), -size))
    channel, sets, filter_, size = channel[order], sets[order], filter_[order], size[order]
    new = np.flatnonzero((np.diff(sets, prepend=-1) != 0) | (np.diff(channel, prepend=-1) != 0))
    counts = np.diff(new, append=len(sets))
    result = []
    for k in np.unique(size)[::-1]:
        which = size[new] == k
        tap = np.nonzero((sets[new[which], None] & bit) != 0)[1].reshape(-1, k)
        result.append(Lists((channel[new[which], None] * taps + tap).astype(np.int32), counts[which].astype(np.int32),
                            filter_[size == k].astype(np.int32)))
    return result


def _keys(channel: Longs, sets: Longs) -> Longs:
    """One number per (channel, set), in the order of the channels."""
    distinct, which = np.unique(sets, return_inverse=True)
    return channel * len(distinct) + which.ravel()


def _sizes(sets: Longs, taps: int) -> Longs:
    """Taps of each set."""
    size = np.zeros_like(sets)
    for tap in range(taps):
        size += (sets >> tap) & 1
    return size
