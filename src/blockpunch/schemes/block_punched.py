"""``block-punched``: one kernel position removed across all p filters x q channels of a block (p*q weights at once).

On 1x1 convolutions and linear layers the unit is the whole p x q block. Shapes that p or q do not divide get smaller
blocks at the edge. Blocks start anew in each convolution group, so that all filters of a block read the same channels.
"""

from __future__ import annotations

import numpy as np

from blockpunch.schemes.base import Block, Labels, Layout, Regularity


class BlockPunched(Regularity):
    """The group is one kernel position of one p x q block of filters x channels."""

    name = "block-punched"
    summary = "one kernel position across a block of p filters x q channels"
    default_block = (8, 4)

    def groupings(self, layout: Layout, block: Block) -> tuple[Labels, ...]:
        """``(block row, block column, position)`` as one number."""
        height, width = block
        rows = layout.filter_blocks(height)[:, None, None]
        columns = np.arange(layout.channels, dtype=np.int64)[None, :, None] // width
        positions = np.arange(layout.positions, dtype=np.int64)[None, None, :]
        per_row = -(-layout.channels // width)
        return ((rows * per_row + columns) * layout.positions + positions,)
