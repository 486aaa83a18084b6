"""``filter``: whole output channels (rows of a linear layer).

A removed filter still puts out its bias, and its batch-norm's shift: whoever zeroes the filter must zero those as well
(:mod:`blockpunch.pruning` does so by default for this regularity).
"""

from __future__ import annotations

import numpy as np

from blockpunch.schemes.base import Block, Labels, Layout, Regularity


class Filter(Regularity):
    """The group is one filter: all its channels and kernel positions."""

    name = "filter"
    summary = "whole filters (output channels)"

    def groupings(self, layout: Layout, block: Block) -> tuple[Labels, ...]:
        """The filter's index."""
        labels = np.arange(layout.filters, dtype=np.int64)[:, None, None]
        return (np.broadcast_to(labels, layout.view),)
