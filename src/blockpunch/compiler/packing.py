"""Blocked compressed storage (BCS): any pattern of zeros as row blocks with shared column lists.

The weights of a layer are a matrix ``[filters, columns]``, a column being one (input channel, ky, kx). A *row block*
of P filters stores the columns in which any of them has a weight, and a dense panel ``columns x P``. P = 1 is
unstructured, P = 8 with 8 x q block-punched zeros stores no zero at all, and with every column in every list it is
dense.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Segment:
    """Row blocks of one height.

    Attributes:
        height: P, filters per block.
        filters: [blocks * P] original filter of each row.
        starts: [blocks + 1] first column of each block in ``columns``.
        columns: [total] surviving columns, block after block.
        panel: [total, P] weights.
    """

    height: int
    filters: Ints
    starts: Ints
    columns: Ints
    panel: Floats

    @property
    def blocks(self) -> int:
        """Number of row blocks."""
        return len(self.starts) - 1


@dataclass(frozen=True)
class OwnLists:
    """Row blocks of one height in which every filter has its own columns, slice after slice of the columns.

    Attributes:
        height: P, filters per block, whose lists are walked in step.
        parts: [parts + 1] first block of each part; a part has the same filters in every slice.
        filters: [slices, blocks * P] original filter of each row.
        starts: [slices * blocks + 1] first step of each block of each slice.
        columns: [steps, P] columns of the matrix.
        panel: [steps, P] weights.
    """

    height: int
    parts: Ints
    filters: Ints
    starts: Ints
    columns: Ints
    panel: Floats

    @property
    def blocks(self) -> int:
        """Number of row blocks of a slice."""
        return int(self.parts[-1])


@dataclass(frozen=True)
class RowOrder:
    """Filters in an order that is worth trying.

    Attributes:
        height: P, filters per block.
        grouped: whether filters with equal column lists were brought side by side.
        rows: [filters] the filters in their new order.
    """

    height: int
    grouped: bool
    rows: npt.NDArray[np.intp]


def row_orders(weights: Floats, heights: Sequence[int]) -> Iterator[RowOrder]:
    """The filters as they are, for every block height, then those with equal column lists side by side.

    Of every set of equal lists, as many as fill whole blocks come first; what is left over shares the last blocks.
    """
    for height in heights:
        yield RowOrder(height, False, np.arange(len(weights)))
    kept = [row.tobytes() for row in np.packbits(weights != 0, axis=1)]
    order = np.array(sorted(range(len(kept)), key=kept.__getitem__))
    times = Counter(kept)
    count = np.array([times[same] for same in sorted(times)])
    place = np.arange(len(order)) - np.repeat(np.cumsum(count) - count, count)  # of a row in its set
    for height in heights:
        left_over = place >= np.repeat(count // height * height, count)
        yield RowOrder(height, True, order[np.argsort(left_over, kind="stable")])


def heights(filters: int, height: int) -> list[tuple[int, int]]:
    """(P, number of rows) of the segments of a layer: blocks of ``height``, the rest in ever smaller powers of two."""
    parts = [(height, filters // height * height)]
    rest = filters % height
    while rest:
        part = 1 << (rest.bit_length() - 1)
        parts.append((part, part))
        rest -= part
    return [(p, rows) for p, rows in parts if rows]


def stored_columns(nonzero: npt.NDArray[np.bool_], height: int) -> Iterator[tuple[int, Ints]]:
    """(P, columns per block) of each segment, for rows already in order: all that a cost model needs."""
    start = 0
    for p, rows in heights(len(nonzero), height):
        part = nonzero[start:start + rows].reshape(rows // p, p, -1).any(axis=1)
        yield p, part.sum(axis=1, dtype=np.int32)
        start += rows


def pack(weights: Floats, order: npt.NDArray[np.intp], height: int) -> list[Segment]:
    """Store ``weights`` [filters, columns], rows taken in ``order``, in blocks of ``height`` filters."""
    segments = []
    start = 0
    for p, rows in heights(len(weights), height):
        rows_of = order[start:start + rows].reshape(-1, p)
        start += rows
        picked = rows_of[_spread((weights[rows_of] != 0).any(axis=1).sum(axis=1))].ravel()
        blocks = weights[picked].reshape(rows // p, p, -1)
        block, column = np.nonzero((blocks != 0).any(axis=1))
        starts = np.zeros(rows // p + 1, np.int32)
        np.cumsum(np.bincount(block, minlength=rows // p), out=starts[1:])
        panel = np.ascontiguousarray(blocks[block, :, column])
        segments.append(Segment(p, picked.astype(np.int32), starts, column.astype(np.int32), panel))
    return segments


def pack_own(weights: Floats, height: int, slice_columns: int, parts: int) -> list[OwnLists]:
    """Store ``weights`` [filters, columns] in blocks of ``height`` filters, each with its own list of columns.

    Filters with nearly as many weights share a block. All lists of a block are as long as its longest: the others end
    with zeros for the first column of the slice.

    Args:
        weights: [filters, columns].
        height: P, filters per block.
        slice_columns: columns of a slice; the last one may have fewer.
        parts: sets of filters with about equal work; of fewer blocks, one for each block.
    """
    nonzero = weights != 0
    order, start, found = np.argsort(-nonzero.sum(axis=1), kind="stable"), 0, []
    for p, rows in heights(len(weights), height):
        rows_of = order[start:start + rows].reshape(-1, p)
        start += rows
        rows_of = rows_of[_spread(nonzero[rows_of].sum(axis=2).max(axis=1))]
        sets = [part.ravel() for part in np.array_split(rows_of, min(parts, len(rows_of)))]
        slices = [_pack_slice(weights, sets, p, first, min(first + slice_columns, weights.shape[1]))
                  for first in range(0, weights.shape[1], slice_columns)]
        steps = np.concatenate([[0], np.cumsum(np.concatenate([counts for _, counts, _, _ in slices]))])
        found.append(OwnLists(
            p, np.cumsum([0, *(len(part) // p for part in sets)], dtype=np.int32),
            np.stack([filters for filters, _, _, _ in slices]).astype(np.int32), steps.astype(np.int32),
            np.concatenate([columns for _, _, columns, _ in slices]),
            np.concatenate([panel for _, _, _, panel in slices])))
    return found


def _pack_slice(weights: Floats, sets: Sequence[npt.NDArray[np.intp]], p: int, first: int,
                behind: int) -> tuple[npt.NDArray[np.intp], Ints, Ints, Floats]:
    """Filters [rows], steps of each block, columns and weights [steps, P], of the columns ``first`` to ``behind``."""
    count = np.count_nonzero(weights[:, first:behind], axis=1)
    filters = np.concatenate([part[np.argsort(-count[part], kind="stable")] for part in sets])
    steps = count[filters].reshape(-1, p).max(axis=1).astype(np.int32)
    starts = np.cumsum(steps) - steps
    row, column = np.nonzero(weights[filters, first:behind])
    place = np.arange(len(row)) - np.repeat(np.cumsum(count[filters]) - count[filters], count[filters])
    columns = np.full((steps.sum(), p), first, np.int32)
    panel = np.zeros((steps.sum(), p), np.float32)
    columns[starts[row // p] + place, row % p] = column + first
    panel[starts[row // p] + place, row % p] = weights[filters[row], column + first]
    return filters, steps, columns, panel


def _spread(work: npt.NDArray[np.int_]) -> npt.NDArray[np.intp]:
    """An order in which any range of the blocks has about its share of the work: threads take ranges.

    The heaviest block comes first, the next heaviest one half of the way behind it, then at the quarters, and so on.
    """
    count = len(work)
    if work.min(initial=0) == work.max(initial=0):
        return np.arange(count)
    bits = max(count - 1, 1).bit_length()
    places = [int(f"{i:0{bits}b}"[::-1], 2) for i in range(1 << bits)]
    order = np.empty(count, np.intp)
    order[[place for place in places if place < count]] = np.argsort(-work, kind="stable")
    return order


def unpack(segments: list[Segment], columns: int) -> Floats:
    """The matrix that was packed: the inverse of :func:`pack`, for tests."""
    out = np.zeros((sum(len(s.filters) for s in segments), columns), np.float32)
    for s in segments:
        block = np.repeat(np.arange(s.blocks), np.diff(s.starts))
        rows = s.filters.reshape(s.blocks, s.height)[block]
        np.add.at(out, (rows, s.columns[:, None]), s.panel)
    return out


def unpack_own(segments: list[OwnLists], columns: int) -> Floats:
    """The matrix that was packed: the inverse of :func:`pack_own`, for tests."""
    out = np.zeros((sum(s.filters.shape[1] for s in segments), columns), np.float32)
    for s in segments:
        block = np.repeat(np.arange(len(s.starts) - 1), np.diff(s.starts))
        np.add.at(out, (s.filters.reshape(-1, s.height)[block], s.columns), s.panel)
    return out
