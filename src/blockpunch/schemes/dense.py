"""``dense``: nothing is removed."""

from __future__ import annotations

import numpy as np

from blockpunch.schemes.base import Block, Floats, Labels, Layout, Mask, Regularity


class Dense(Regularity):
    """Every weight stays; the only rate is 1."""

    name = "dense"
    summary = "nothing is removed"
    prunes = False

    def groupings(self, layout: Layout, block: Block) -> tuple[Labels, ...]:
        """No partition: nothing can be removed."""
        return ()

    def project(self, weight: Floats, keep: int, layout: Layout, block: Block) -> Mask:
        """All true."""
        return np.ones(layout.view, dtype=np.bool_)
