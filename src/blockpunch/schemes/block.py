"""``block`` (block-based): rows and columns removed independently inside p x q blocks of the weight matrix.

What is left of a block is a full submatrix. Meant for linear layers ``[out, in]``; a convolution is seen as the matrix
``[filters, channels * kernel positions]`` of its GEMM. Blocks start anew in each convolution group.

The projection removes rows and columns from the whole layer together, worst first by the mean square of what they still
hold, and looks again at the scores after each of a few rounds (a row is cheaper once its large columns are gone).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from blockpunch.schemes.base import Block, Floats, Labels, Layout, Mask, Regularity

ROUNDS = 6
"""Times that the scores are taken anew: more gains nothing measurable in the energy kept."""


class BlockBased(Regularity):
    """Two groupings at once: rows of blocks and columns of blocks."""

    name = "block"
    summary = "rows and columns inside p x q blocks of the weight matrix"
    default_block = (16, 16)

    def groupings(self, layout: Layout, block: Block) -> tuple[Labels, ...]:
        """Labels of the rows of blocks, then of the columns of blocks."""
        height, width = block
        length = layout.channels * layout.positions
        per_row = -(-length // width)
        block_row = layout.filter_blocks(height)[:, None]
        column = np.arange(length, dtype=np.int64)[None, :]
        rows = np.arange(layout.filters, dtype=np.int64)[:, None] * per_row + column // width
        columns = block_row * length + column
        return rows.reshape(layout.view), columns.reshape(layout.view)

    def project(self, weight: Floats, keep: int, layout: Layout, block: Block) -> Mask:
        """Rows and columns removed in rounds until about ``keep`` weights are left; at least one row x column is."""
        squares, there = (_in_blocks(values, layout, block) for values in
                          (np.square(weight, dtype=np.float64), np.ones(layout.view, dtype=np.bool_)))
        rows, columns = np.asarray(there.any(axis=4)), np.asarray(there.any(axis=2))
        for step in range(1, ROUNDS + 1):
            goal = round(layout.size * (keep / layout.size) ** (step / ROUNDS)) if step < ROUNDS else keep
            row_sums = np.einsum("grpcq,grcq->grpc", squares, columns.astype(np.float64))
            column_sums = np.einsum("grpcq,grpc->grcq", squares, rows.astype(np.float64))
            rows, columns = _without_worst(_means(row_sums, rows, columns.sum(axis=3)[:, :, None]),
                                           _means(column_sums, columns, rows.sum(axis=2)[..., None]), goal)
        return _from_blocks(rows[..., None] & columns[:, :, None], layout)


def _in_blocks(values: npt.NDArray[Any], layout: Layout, block: Block) -> npt.NDArray[Any]:
    """[convolution groups, block rows, p, block columns, q]: ``values`` by blocks, zeros where an edge block ends."""
    height, width = block
    groups, length = layout.conv_groups, layout.channels * layout.positions
    matrix = values.reshape(groups, -1, length)
    padded = np.pad(matrix, ((0, 0), (0, -matrix.shape[1] % height), (0, -length % width)))
    return padded.reshape(groups, padded.shape[1] // height, height, padded.shape[2] // width, width)


def _from_blocks(mask: Mask, layout: Layout) -> Mask:
    """The inverse of :func:`_in_blocks`."""
    groups, tall, height, wide, width = mask.shape
    matrix = mask.reshape(groups, tall * height, wide * width)
    return matrix[:, :layout.filters // groups, :layout.channels * layout.positions].reshape(layout.view)


def _means(sums: Floats, alive: Mask, counts: Labels) -> Floats:
    """Mean square of what each row (or column) of a block holds; -1 where it is gone."""
    return np.where(alive & (counts > 0), sums / np.maximum(counts, 1), -1.0)


def _without_worst(row_scores: Floats, column_scores: Floats, keep: int) -> tuple[Mask, Mask]:
    """The rows and columns that live when the worst go, as many as bring the weights left nearest to ``keep``.

    Never are all of them removed, and none that is gone (its score is negative) comes back.
    """
    scores = np.concatenate([row_scores.ravel(), column_scores.ravel()])
    rank = np.empty(len(scores), dtype=np.int64)
    rank[np.argsort(scores, kind="stable")] = np.arange(len(scores))
    row_rank = rank[:row_scores.size].reshape(row_scores.shape)
    column_rank = rank[row_scores.size:].reshape(column_scores.shape)

    def left(removed: int) -> int:
        living_rows, living_columns = (row_rank >= removed).sum(axis=2), (column_rank >= removed).sum(axis=3)
        return int((living_rows * living_columns).sum())

    low, high = int((scores < 0).sum()), len(scores)  # left(low) >= keep > left(high), and left() never grows
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if left(middle) >= keep else (low, middle)
    over, under = left(low) - keep, keep - left(high)
    removed = high if under < over and left(high) > 0 else low
    return row_rank >= removed, column_rank >= removed
