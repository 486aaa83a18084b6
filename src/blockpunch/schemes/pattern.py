"""``pattern``: 3x3 kernels keep 4 of 9 weights by one of 8 patterns, and whole kernels are removed (connectivity).

A pattern keeps the centre and 3 of the 8 weights around it (56 candidates). The 8 candidates that most kernels of the
layer would choose for themselves are its library, and each kernel takes the one that keeps most of its energy.

- Rates of 2.25 and more: every kernel that stays is a pattern; whole kernels go, least energy first.
- Rates below 2.25: no kernel is removed, and the kernels that a pattern would cost most stay whole (9 of 9).
- Layers that are not 3x3 have no patterns: whole kernels alone are removed (on 1x1 and linear layers, single weights).
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from blockpunch.schemes.base import Block, Floats, Labels, Layout, Mask, Regularity, keep_largest

CENTRE = 4
LIBRARY = 8
KEPT = 4


def candidates() -> Mask:
    """The 56 patterns ``[56, 9]``: the centre and 3 of the other 8 positions."""
    around = [position for position in range(9) if position != CENTRE]
    table = np.zeros((56, 9), dtype=np.bool_)
    table[:, CENTRE] = True
    for row, chosen in enumerate(combinations(around, KEPT - 1)):
        table[row, list(chosen)] = True
    return table


class Pattern(Regularity):
    """Patterns from a library of 8 per layer, and connectivity (whole kernels)."""

    name = "pattern"
    summary = "4 of the 9 weights of a 3x3 kernel, by one of 8 patterns; whole kernels above rate 2.25"

    def groupings(self, layout: Layout, block: Block) -> tuple[Labels, ...]:
        """Connectivity: the group is one kernel."""
        labels = np.arange(layout.filters * layout.channels, dtype=np.int64).reshape(layout.filters, layout.channels, 1)
        return (np.broadcast_to(labels, layout.view),)

    def penalty_groupings(self, weight: Floats, layout: Layout, block: Block) -> tuple[Labels, ...]:
        """In each 3x3 kernel the weights of its pattern are one group, and those outside of it another."""
        (kernels,) = self.groupings(layout, block)
        if layout.kernel != (3, 3):
            return (kernels,)
        inside, _ = _best_patterns(np.square(weight, dtype=np.float64).reshape(-1, 9))
        return (2 * kernels + ~inside.reshape(layout.view),)

    def supports(self, kind: str, shape: tuple[int, ...]) -> bool:
        """Patterns exist for 3x3 convolutions."""
        return kind == "conv" and tuple(shape[2:]) == (3, 3)

    def project(self, weight: Floats, keep: int, layout: Layout, block: Block) -> Mask:
        """Choose the library, a pattern per kernel, then which kernels go (or stay whole) to meet ``keep``."""
        if layout.kernel != (3, 3):
            return super().project(weight, keep, layout, block)
        squares = np.square(weight, dtype=np.float64).reshape(-1, 9)
        masks, energy = _best_patterns(squares)
        kernels = len(masks)
        if keep < KEPT * kernels:
            alive = keep_largest(energy, np.full(kernels, KEPT, dtype=np.int64), keep)
            masks &= alive[:, None]
        else:
            whole = int((keep - KEPT * kernels) / (9 - KEPT) + 0.5)
            cost = squares.sum(axis=1) - energy
            masks[np.argsort(-cost, kind="stable")[:whole]] = True
        return masks.reshape(layout.view)

    def violation(self, mask: Mask, layout: Layout, block: Block) -> str | None:
        """Living 3x3 kernels must be whole or one of at most 8 patterns; other kernels whole."""
        if layout.kernel != (3, 3):
            return super().violation(mask, layout, block)
        kernels = mask.reshape(-1, 9)
        count = kernels.sum(axis=1)
        wrong = ~np.isin(count, (0, KEPT, 9)) | ((count == KEPT) & ~kernels[:, CENTRE])
        if wrong.any():
            filter_, channel = divmod(int(np.argmax(wrong)), layout.channels)
            return f"the kernel of filter {filter_}, channel {channel} is neither removed, whole, nor a pattern"
        library = np.unique(kernels[count == KEPT], axis=0)
        return f"{len(library)} patterns, more than {LIBRARY}" if len(library) > LIBRARY else None


def _best_patterns(squares: Floats) -> tuple[Mask, Floats]:
    """For each kernel ``[kernels, 9]`` the best pattern of the layer's library and the energy that it keeps."""
    table = candidates()
    favourite = np.argmax(squares @ table.T.astype(np.float64), axis=1)
    votes = np.bincount(favourite, minlength=len(table))
    library = table[np.argsort(-votes, kind="stable")[:LIBRARY]]
    energy = squares @ library.T.astype(np.float64)
    best = np.argmax(energy, axis=1)
    return library[best], energy[np.arange(len(best)), best]
