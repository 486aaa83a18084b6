"""``channel``: whole input channels (columns of a linear layer).

In a grouped convolution each group has input channels of its own, and a channel is removed from that group's filters.
"""

from __future__ import annotations

import numpy as np

from blockpunch.schemes.base import Block, Labels, Layout, Regularity


class Channel(Regularity):
    """The group is one input channel, across all filters that read it."""

    name = "channel"
    summary = "whole input channels"

    def groupings(self, layout: Layout, block: Block) -> tuple[Labels, ...]:
        """The input channel's index in the whole layer."""
        group = np.arange(layout.filters, dtype=np.int64) // (layout.filters // layout.conv_groups)
        labels = group[:, None, None] * layout.channels + np.arange(layout.channels, dtype=np.int64)[None, :, None]
        return (np.broadcast_to(labels, layout.view),)
