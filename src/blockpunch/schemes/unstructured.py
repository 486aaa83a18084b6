"""``unstructured``: each weight on its own. The most accurate regularity, and the hardest to make fast."""

from __future__ import annotations

import numpy as np

from blockpunch.schemes.base import Block, Labels, Layout, Regularity


class Unstructured(Regularity):
    """The group is one weight."""

    name = "unstructured"
    summary = "single weights"

    def groupings(self, layout: Layout, block: Block) -> tuple[Labels, ...]:
        """One label per weight."""
        return (np.arange(layout.size, dtype=np.int64).reshape(layout.view),)
