"""``block`` (block-based): rows and columns removed independently inside p x q blocks of the weight matrix.

What is left of a block is a full submatrix. Meant for linear layers ``[out, in]``; a convolution is seen as the matrix
``[filters, channels * kernel positions]`` of its GEMM. Blocks start anew in each convolution group.

The projection removes rows and columns from the whole layer together, worst first by the mean square of what they still
hold, and looks again at the scores after each of a few rounds (a row is cheaper once its large columns are gone).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from blockpunch.schemes.base import Block, Floats, Labels, Layout, Mask, Regularity

ROUNDS = 6
"""Times that the scores are taken anew: more gains nothing measurable in the energy kept."""


@dataclass
class _Half:
    """Rows or columns of all blocks: the label of each weight, and the block that each label lies in."""

    labels: Labels
    block_of: Labels
    alive: Mask

    def scores(self, squares: Floats, live: Mask) -> Floats:
        """Mean square of the living weights of each label; removed labels score -1."""
        flat = self.labels[live]
        count = np.bincount(flat, minlength=len(self.alive))
        total = np.bincount(flat, weights=squares[live], minlength=len(self.alive))
        return np.where(self.alive & (count > 0), total / np.maximum(count, 1), -1.0)


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
        rows, columns = _halves(self.groupings(layout, block), layout, block)
        squares = np.square(weight, dtype=np.float64)
        live = np.ones(layout.view, dtype=np.bool_)
        for step in range(1, ROUNDS + 1):
            goal = round(layout.size * (keep / layout.size) ** (step / ROUNDS)) if step < ROUNDS else keep
            _remove_worst(rows, columns, rows.scores(squares, live), columns.scores(squares, live), goal)
            live = rows.alive[rows.labels] & columns.alive[columns.labels]
        return live


def _halves(groupings: tuple[Labels, ...], layout: Layout, block: Block) -> tuple[_Half, _Half]:
    """Both groupings with the block that each row and column lies in."""
    rows, columns = groupings
    per_row = -(-layout.channels * layout.positions // block[1])
    n_rows, n_columns = int(rows.max()) + 1, int(columns.max()) + 1
    row_index, length = np.arange(n_rows), layout.channels * layout.positions
    row_block = layout.filter_blocks(block[0])[row_index // per_row] * per_row + row_index % per_row
    column_index = np.arange(n_columns)
    column_block = column_index // length * per_row + column_index % length // block[1]
    return (_Half(rows, row_block, np.ones(n_rows, dtype=np.bool_)),
            _Half(columns, column_block, np.ones(n_columns, dtype=np.bool_)))


def _remove_worst(rows: _Half, columns: _Half, row_scores: Floats, column_scores: Floats, keep: int) -> None:
    """Remove the worst rows and columns, as many as bring the weights left nearest to ``keep`` (never to none)."""
    scores = np.concatenate([row_scores, column_scores])
    rank = np.empty(len(scores), dtype=np.int64)
    rank[np.argsort(scores, kind="stable")] = np.arange(len(scores))
    row_rank, column_rank = rank[: len(row_scores)], rank[len(row_scores):]
    n_blocks = int(rows.block_of.max()) + 1

    def left(removed: int) -> int:
        living_rows = np.bincount(rows.block_of, weights=row_rank >= removed, minlength=n_blocks)
        living_columns = np.bincount(columns.block_of, weights=column_rank >= removed, minlength=n_blocks)
        return int(np.dot(living_rows, living_columns))

    low, high = 0, len(scores)  # left(low) >= keep > left(high), and left() never grows
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if left(middle) >= keep else (low, middle)
    over, under = left(low) - keep, keep - left(high)
    removed = high if under < over and left(high) > 0 else low
    rows.alive, columns.alive = row_rank >= removed, column_rank >= removed
