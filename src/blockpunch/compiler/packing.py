"""Blocked compressed storage (BCS): any pattern of zeros as row blocks with shared column lists.

The weights of a layer are a matrix ``[filters, columns]``, a column being one (input channel, ky, kx). A *row block*
of P filters stores the columns in which any of them has a weight, and a dense panel ``columns x P``. P = 1 is
unstructured, P = 8 with 8 x q block-punched zeros stores no zero at all, and with every column in every list it is
dense.
"""

from __future__ import annotations

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
        columns: [total] surviving columns, block after block; [total, P] where every filter has its own
            (:func:`pack_own`).
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
    _, same, count = np.unique(np.packbits(weights != 0, axis=1), axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(same.ravel(), kind="stable")
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


def pack_own(weights: Floats, height: int) -> list[Segment]:
    """Store ``weights`` [filters, columns] in blocks of ``height`` filters, each with its own list of columns.

    Filters with nearly as many weights share a block. All lists of a block are as long as its longest: the others end
    with zeros for the first column.
    """
    segments = []
    counts = np.count_nonzero(weights, axis=1)
    order = np.argsort(-counts, kind="stable")
    start = 0
    for p, rows in heights(len(weights), height):
        rows_of = order[start:start + rows].reshape(-1, p)
        start += rows
        rows_of = rows_of[_spread(counts[rows_of].max(axis=1))]
        starts = np.zeros(rows // p + 1, np.int32)
        np.cumsum(counts[rows_of].max(axis=1), out=starts[1:])
        columns, panel = np.zeros((starts[-1], p), np.int32), np.zeros((starts[-1], p), np.float32)
        for index, row in enumerate(rows_of.ravel()):
            kept, begin = np.flatnonzero(weights[row]), starts[index // p]
            columns[begin:begin + len(kept), index % p] = kept
            panel[begin:begin + len(kept), index % p] = weights[row, kept]
        segments.append(Segment(p, rows_of.ravel().astype(np.int32), starts, columns, panel))
    return segments


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
        np.add.at(out, (rows, s.columns if s.columns.ndim == 2 else s.columns[:, None]), s.panel)
    return out
